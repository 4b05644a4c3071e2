"""A map of the embeddings: neighbours there are neighbours here; colours are the largest groups."""

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

from moon_jax.data.records import Product
from moon_jax.evaluation.page.html import Html, bdi, el, number
from moon_jax.evaluation.page.methods import short
from moon_jax.evaluation.page.tsne import tsne

POINTS = 600
_COLORS = 8  # --g1 ... of the style sheet; smaller groups are grey
_SIZE, _MARGIN = 560, 14
_NEAR = 11  # points around a name, its own among them


@dataclasses.dataclass(frozen=True)
class Embedded:
    """Listings that have an embedding.

    Attributes:
        ids: of the products.
        vectors: gives the embeddings of some of them, in the order of the ids that it is given.
    """

    ids: Sequence[str]
    vectors: Callable[[Sequence[str]], Float[np.ndarray, "n d"]]


def embedding_map(embedded: Embedded, products: Mapping[str, Product]) -> Html | None:
    """Returns the figure, of `POINTS` listings evenly taken from all in the order of their ids; None for less than 5.

    The colour is the first level of the category (industry) or, if all have the same, the next at which they differ.

    Args:
        embedded: the model's.
        products: by id; listings that are not among them are left out.

    Raises:
        ValueError: a vector is not finite, or there are too few.
    """
    known = sorted(name for name in embedded.ids if name in products)
    if len(known) < 5:
        return None
    taken = np.unique(np.linspace(0, len(known) - 1, min(POINTS, len(known))).astype(int))
    shown = [products[known[place]] for place in taken]
    vectors = np.asarray(embedded.vectors([product.id for product in shown]))
    if vectors.shape[:1] != (len(shown),) or not np.isfinite(vectors).all():
        raise ValueError(f"the map needs {len(shown)} finite embeddings; what came has the shape {vectors.shape}")
    groups, titles = _groups(shown), [product.title or product.id for product in shown]
    places, height = _fitted(tsne(vectors))
    counts = collections.Counter(group for group in groups if group)
    large = [name for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_COLORS]]
    class_of = {name: f"g{place}" for place, name in enumerate(large, 1)}
    rest = sum(group not in class_of for group in groups)
    dots = [
        el("circle", cx=float(x), cy=float(y), r=3.4, class_=class_of.get(group, "g0"), data_tip=_tip(title, group))
        for (x, y), group, title in zip(places.tolist(), groups, titles, strict=True)
    ]
    texts = [_name(name, places, np.array([group == name for group in groups]), class_of[name]) for name in large]
    keys = [_key(name, class_of[name], counts[name]) for name in large] + ([_key("other", "g0", rest)] if rest else [])
    svg = el(
        "svg",
        el("g", *dots),
        el("g", *texts, aria_hidden="true"),
        viewBox=f"0 0 {_SIZE} {number(height)}",
        class_="map",
        role="img",
        aria_label=f"Map of {len(titles)} listings: {', '.join(f'{name} {counts[name]}' for name in large)}",
    )
    note = f"t-SNE of {len(titles):,} listings" + (f" of {len(known):,}" if len(taken) < len(known) else "")
    caption = el("figcaption", "Listings by their embeddings", el("small", note))
    legend = el("div", *keys, class_="legend", role="group", aria_label="Bring a group out")
    return el("figure", caption, legend, svg, class_="chart map-figure")


def _groups(products: Sequence[Product]) -> list[str]:
    depths = max(len(product.category) for product in products)
    for depth in range(depths):
        names = [product.category[depth] if depth < len(product.category) else "" for product in products]
        if len(set(names) - {""}) > 1:
            return names
    return [product.category[0] if product.category else "" for product in products]


def _fitted(places: Float[np.ndarray, "n 2"]) -> tuple[Float[np.ndarray, "n 2"], float]:
    """Returns the places in the figure, one scale for both directions, and its height: no more than they need."""
    low, high = places.min(0), places.max(0)
    scale = (_SIZE - 2 * _MARGIN) / max(float((high - low).max()), 1e-12)
    wide, high = ((high - low) * scale).tolist()
    return (places - low) * scale + [(_SIZE - wide) / 2, _MARGIN], high + 2 * _MARGIN


def _tip(title: str, group: str) -> str:
    return "\n".join(filter(None, (short(title, 160), group)))


def _name(name: str, places: Float[np.ndarray, "n 2"], own: Bool[np.ndarray, " n"], class_: str) -> Html | None:
    """Returns the group's name at its middle: at the point with the smallest sum of distances to the others.

    None where many points around the middle are of other groups: a name there would promise what is not so.
    """
    distances = np.linalg.norm(places[own][:, None] - places[None], axis=-1)
    middle = distances[:, own].sum(1).argmin()
    if own[distances[middle].argsort(kind="stable")[:_NEAR]].mean() < 2 / 3:
        return None
    x, y = places[own][middle].tolist()
    text = short(name, 22)
    half = 3.6 * len(text)
    x = min(max(x, half), _SIZE - half)
    return el("text", text, x=number(x), y=number(y), text_anchor="middle", class_=f"{class_} name")


def _key(name: str, class_: str, count: int) -> Html:
    swatch = el("i", class_=f"swatch {class_}")
    return el(
        "button",
        swatch,
        bdi(name),
        el("small", f"{count:,}"),
        type="button",
        class_="key",
        data_key=class_,
        aria_pressed="false",
    )
