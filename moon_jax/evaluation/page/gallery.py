"""Queries with what was ranked first: hits, late finds and misses, chosen by a hash and not by how they look."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from moon_jax.data.records import Dataset, ImageRef, Query
from moon_jax.evaluation.page.html import Html, bdi, el, join
from moon_jax.evaluation.page.methods import label, short
from moon_jax.evaluation.page.pictures import Pictures
from moon_jax.evaluation.page.predictions import Asked, Predictions
from moon_jax.evaluation.page.results_file import Results, recall_ks

TILES = 7  # ranked products beside a query
EACH = 3  # queries of each outcome, set and modality
TITLE_CHARACTERS, QUERY_CHARACTERS, RIVALS = 70, 160, 4
OUTCOMES = {"first": "found first", "later": f"found in the first {TILES}", "missed": f"not in the first {TILES}"}


class Shown(NamedTuple):
    """What is known of a listing or query beyond the predictions: its picture and its text."""

    image: ImageRef | None
    text: str


class Catalogue:
    """The pictures and titles behind ids; without a data set only what stands in the predictions.

    A part's rows may repeat an id: of such queries too what stands in the predictions is shown.
    """

    def __init__(self, dataset: Dataset | None):
        self._products = dataset.products if dataset else {}
        self._queries: dict[tuple[str, str], Query | None] = {}  # None: several queries
        for triplet in (*dataset.seen, *dataset.unseen) if dataset else ():
            key = (triplet.part, triplet.id)
            self._queries[key] = triplet.query if self._queries.get(key, triplet.query) == triplet.query else None

    def product(self, product_id: str) -> Shown:
        """Returns a listing's first picture and title."""
        found = self._products.get(product_id)
        return (
            Shown(None, product_id) if found is None else Shown(found.images[0] if found.images else None, found.title)
        )

    def query(self, asked: Asked) -> Shown:
        """Returns what was asked with: a picture, a text or both."""
        found = self._queries.get((asked.part or "", str(asked.query["triplet"])))
        image, text = (found.image, found.text) if found else (_file(asked.query.get("image")), asked.query.get("text"))
        return Shown(image if asked.modality != "text" else None, (text or "") if asked.modality != "image" else "")


def gallery(results: Results, predictions: Predictions, dataset: Dataset | None, pictures: Pictures) -> Html | None:
    """Returns the shown queries of the model with buttons that choose among them; None without its predictions."""
    catalogue, rows, places = Catalogue(dataset), [], []
    for (set_name, modality), triplets in sorted(predictions.sample.items(), key=lambda item: _order(item[0], results)):
        by_outcome: dict[str, list[dict[str, Asked]]] = {outcome: [] for outcome in OUTCOMES}
        for ranked in triplets.values():
            own = ranked.get(results.methods[0])
            if own is not None and own.top:
                by_outcome[outcome_of(own)].append(ranked)
        for outcome, found in by_outcome.items():
            for ranked in found[:EACH]:
                rows.append(_row(ranked, outcome, results, catalogue, pictures))
                places.append((set_name, modality, outcome))
    if not rows:
        return None
    choices = [
        _choice("set", list(dict.fromkeys(place[0] for place in places)), {}),
        _choice("modality", list(dict.fromkeys(place[1] for place in places)), {}),
        _choice("outcome", ["all", *(o for o in OUTCOMES if any(o == place[2] for place in places))], OUTCOMES),
    ]
    note = (
        f"Up to {EACH} queries of each outcome, drawn by a hash of their ids. "
        "Framed: the product that the customer bought, or another right answer."
    )
    return join(
        el("h3", "Queries and what they find"),
        el("p", note, class_="note"),
        el("div", *choices, class_="choices", data_filters="queries"),
        el("div", *rows, class_="queries", id="queries"),
    )


def outcome_of(asked: Asked) -> str:
    """Returns "first", "later" or "missed": as far as the tiles show."""
    return "missed" if asked.rank is None or asked.rank > TILES else "first" if asked.rank == 1 else "later"


def _order(place: tuple[str, str], results: Results) -> tuple[int, int]:
    sets, modalities = results.values("retrieval", "set"), results.values("retrieval", "modality")
    return sets.index(place[0]), modalities.index(place[1])


def _choice(field: str, values: Sequence[str], names: Mapping[str, str]) -> Html | None:
    """Returns buttons for the values of a field; the first is chosen."""
    if len(values) < 2:
        return None
    buttons = [
        el("button", names.get(value, value), type="button", data_field=field, data_value=value, aria_pressed="false")
        for value in values
    ]
    return el("div", *buttons, class_="choice", role="group", aria_label=f"Choose {field}")


def _row(ranked: Mapping[str, Asked], outcome: str, results: Results, catalogue: Catalogue, pictures: Pictures) -> Html:
    methods, kept = results.methods, max(recall_ks(results.select("retrieval")), default=0)
    own = ranked[methods[0]]
    query = catalogue.query(own)
    others = [
        el("span", bdi(label(method)), el("b", _rank(ranked[method].rank, kept)))
        for method in methods[1:]
        if method in ranked
    ][:RIVALS]
    kind = (own.query.get("kind") or "") if own.modality != "text" else ""  # how the picture was taken
    card = el(
        "div",
        _picture(query.image, pictures, f"Picture of the query {own.query['triplet']}") if query.image else None,
        el("p", bdi(short(query.text, QUERY_CHARACTERS)), class_="asked") if query.text else None,
        el("p", el("b", _rank(own.rank, kept), class_=f"badge {outcome}"), bdi(kind.replace("_", " ")), class_="muted"),
        el("p", others, class_="rivals") if others else None,
        class_="query",
    )
    shown = own.top[: TILES - (outcome == "missed")]
    tiles = [_tile(place, name, name in own.truth, catalogue, pictures) for place, (name, _) in enumerate(shown, 1)]
    if outcome == "missed":
        tiles.append(_tile(own.rank, own.truth[0], True, catalogue, pictures, "sought"))
    found = el("ol", *tiles, class_="found", tabindex="0", aria_label="Ranked products")
    return el(
        "article", card, found, class_="asked-row", data_set=own.set, data_modality=own.modality, data_outcome=outcome
    )


def _rank(rank: int | None, kept: int) -> str:
    return f"beyond {kept:,}" if rank is None else f"rank {rank:,}"


def _tile(
    rank: int | None, name: str, right: bool, catalogue: Catalogue, pictures: Pictures, class_: str | None = None
) -> Html:
    shown = catalogue.product(name)
    place = el("span", "✓ " if right else "", f"{rank:,}" if rank else "–", class_="rank")
    classes = " ".join(filter(None, ("tile-p", "right" if right else None, class_)))
    title = bdi(short(shown.text, TITLE_CHARACTERS), class_="title")
    picture = _picture(shown.image, pictures, "right" if right else "not right")
    return el("li", picture, place, title, class_=classes, data_tip=short(shown.text, 300))


def _picture(ref: ImageRef | None, pictures: Pictures, spoken: str) -> Html:
    name = pictures.class_of(ref.path) if ref else None
    if name is None:
        return el("div", "no picture" if ref is None else "not shown", class_="picture none")
    return el("div", class_=f"picture {name}", role="img", aria_label=spoken)


def _file(path: str | None) -> ImageRef | None:
    return ImageRef(path) if path else None
