"""M5Product: JSON objects {id: {"title", "pv"}} and {id: {"title", "label", "url"}}, lists of query and gallery ids.

pv is `prop#:#value#;#prop#:#value`. Which object a file is shows in its first entry; the lists are told by "query" or
"gallery" in the file's name. The picture of an id without url is `{id}_0.jpg`; so is one whose url is an address, where
config.data.image_folder is set: else the address stays, for an image store.

The query ids become test queries (picture and title), the gallery ids the listings that are searched, and relevant is
what has the query's label. Listings in neither list form the part "catalogue". Without lists all is a catalogue.
"""

import dataclasses
import pathlib
from typing import Any

from moon_jax.config import DataConfig
from moon_jax.data.policy import is_number
from moon_jax.data.records import DataError, Dataset, Labelled, Product, fill
from moon_jax.data.sources import by_label, files, lines
from moon_jax.data.sources.json_entries import Entry, entries
from moon_jax.data.sources.lines import Reading, RecordError


def read(config: DataConfig, reading: Reading) -> Dataset:
    """Returns the data set of a folder of M5Product's JSON files.

    Raises:
        DataError: see `moon_jax.data.sources.read`.
    """
    folder, found = files.matching(config, "*.json", "JSON files of M5Product")
    kinds = {path: kind_of(path) for path in found}
    listings: dict[str, Product] = {}
    labels: dict[str, str] = {}
    ids: dict[str, list[str]] = {"query": [], "gallery": []}
    for path in sorted(found, key=lambda path: kinds[path] != "info"):  # "info" first: it has more to say
        if kinds[path] in ("info", "label"):
            read_one = _Listings(reading, folder, config, listings, labels)
            for _ in reading.apply(path, entries(reading, path), read_one):
                pass
    for path, kind in kinds.items():
        if kind in ids:
            ids[kind] += [
                name for name in reading.apply(path, entries(reading, path), _id_of(reading, listings, labels)) if name
            ]
        elif not kind:
            reading.counts["files_not_read"] += 1
    if not listings:
        raise DataError(f'{folder}: no JSON object {{id: {{"title", "pv" or "label"}}}} in {_names(found)}')
    lists = ids.keys() & set(kinds.values())
    if len(lists) == 1:
        (there,), (missing,) = lists, ids.keys() - lists
        raise DataError(f"{folder}: a list of {there} ids, and no list of {missing} ids, in {_names(found)}")
    queries, gallery = (
        [Labelled(listings[i], (labels[i],)) for i in dict.fromkeys(ids[kind])] for kind in ("query", "gallery")
    )
    part = files.only_part(config, folder)
    return by_label.dataset(queries, gallery, listings.values(), part, config, reading)


def kind_of(path: pathlib.Path) -> str:
    """Returns "info", "label", "query" or "gallery" for a JSON file of M5Product, "" for any other."""
    try:
        _, entry = next(entries(Reading(DataConfig()), path), (0, None))
    except DataError:
        return ""
    if entry is None:
        return ""
    if entry.key is None:
        is_id = isinstance(entry.value, (str, int))
        return next((kind for kind in ("query", "gallery") if is_id and kind in path.name.lower()), "")
    value = entry.value if isinstance(entry.value, dict) else {}
    return next((kind for kind, key in (("label", "label"), ("info", "pv")) if key in value and "title" in value), "")


class _Listings:
    """Reads one entry of an object of listings."""

    def __init__(
        self,
        reading: Reading,
        folder: pathlib.Path,
        config: DataConfig,
        listings: dict[str, Product],
        labels: dict[str, str],
    ):
        self._reading, self._listings, self._labels = reading, listings, labels
        self._pictures, self._by_id = files.image_folder(config, folder), bool(config.image_folder)
        self._here: set[str] = set()

    def __call__(self, _: int, entry: Entry) -> None:
        item_id, said = lines.text(entry.key, "id"), lines.group(entry.checked(), "entry")
        if not item_id:
            raise RecordError("id", "is empty")
        if item_id in self._here:
            raise RecordError("id", f"{item_id!r} is listed twice")
        reference = lines.text(said.get("url"), "url")
        if not reference or (lines.is_url(reference) and self._by_id):
            reference = f"{item_id}_0.jpg"
        image = lines.image(reference, None, self._pictures, "url")
        label = lines.text(said.get("label"), "label")
        if "label" in said and not label:
            raise RecordError("label", f"of {item_id!r} is empty")
        pairs, malformed = lines.attribute_pairs(lines.text(said.get("pv"), "pv"), between="#;#", inside="#:#")
        product = Product(
            item_id,
            lines.text(said.get("title"), "title"),
            images=(image,),
            attributes=tuple(self._reading.same(pair) for pair in pairs),
        )
        self._here.add(item_id)
        self._reading.counts["malformed_attributes"] += malformed
        known = self._listings.get(item_id)
        if known is not None:  # the ground truth's url says more than the name that a picture has by default
            pictures = product.images if said.get("url") else known.images
            product = dataclasses.replace(fill(known, product), images=pictures)
        self._listings[item_id] = product
        if label:
            self._labels[item_id] = label


def _id_of(reading: Reading, listings: dict[str, Product], labels: dict[str, str]) -> Any:
    def read(_: int, entry: Entry) -> str:
        given = entry.checked()
        item_id = str(given) if is_number(given) else lines.text(given, "id")
        if item_id not in labels and reading.limit:  # it may stand behind what was read
            return ""
        if item_id not in labels:
            raise RecordError("id", f"{item_id!r} has no label" + ("" if item_id in listings else " and no listing"))
        return item_id

    return read


def _names(found: list[pathlib.Path]) -> str:
    return ", ".join(path.name for path in found[:20])
