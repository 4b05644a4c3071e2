"""What a data set holds, in numbers: counts, fields found and missing, categories, attributes, lengths, sizes."""

import collections
import concurrent.futures
import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tqdm import tqdm

from moon_jax.config import DataConfig, VisionConfig
from moon_jax.data import images, picture_files
from moon_jax.data.contact_sheet import Cell
from moon_jax.data.documents import Document, attribute_text, category_text, has_modality
from moon_jax.data.histogram import Histogram, histogram
from moon_jax.data.records import Dataset, ImageRef, Product, Triplet

MOST_TEXTS = 20_000  # of each kind are measured
MOST_NAMED = 5  # broken pictures that are named, and the most frequent values


def counts(dataset: Dataset) -> dict[str, Any]:
    """Returns the numbers of triplets, listings, pictures and queries, in all and by part."""
    sets = {"train": dataset.train, "seen": dataset.seen, "unseen": dataset.unseen}
    triplets = all_triplets(dataset)
    parts = sorted({p.part for p in dataset.products.values()} | {t.part for t in triplets})
    by_part = collections.Counter(product.part for product in dataset.products.values())
    asked = collections.Counter((name, t.part) for name, found in sets.items() for t in found)
    return {
        "listings": len(dataset.products),
        "listing_pictures": sum(len(p.images) for p in dataset.products.values()),
        "listings_with_several_pictures": sum(len(p.images) > 1 for p in dataset.products.values()),
        "triplets": {name: len(found) for name, found in sets.items()},
        "triplets_with_hard_negative": sum(t.negative is not None for t in triplets),
        "queries_with_several_answers": sum(len(t.relevant) > 1 for t in triplets),
        "queries": {
            "picture and text": sum(has_modality(t.query, "both") for t in triplets),
            "picture only": sum(not t.query.text for t in triplets),
            "text only": sum(t.query.image is None for t in triplets),
        },
        "query_kinds": dict(collections.Counter(t.query.kind for t in triplets if t.query.kind).most_common()),
        "parts": {part: {"listings": by_part[part]} | {name: asked[name, part] for name in sets} for part in parts},
    }


def fields(dataset: Dataset) -> dict[str, dict[str, int]]:
    """Returns for listings and queries how many have each field, out of "all"."""
    products = dataset.products.values()
    queries = [triplet.query for triplet in all_triplets(dataset)]
    out = {
        "listings": {"all": len(products)}
        | {
            name: sum(bool(getattr(p, name)) for p in products)
            for name in ("title", "description", "images", "category", "attributes")
        }
        | {"a box": sum(any(i.box for i in p.images) for p in products)}
    }
    if queries:
        out["queries"] = {
            "all": len(queries),
            "text": sum(bool(q.text) for q in queries),
            "image": sum(q.image is not None for q in queries),
            "a box": sum(q.image is not None and q.image.box is not None for q in queries),
            "kind": sum(bool(q.kind) for q in queries),
        }
    return out


def categories(dataset: Dataset) -> list[dict[str, Any]]:
    """Returns for every level, from the top, how many listings have it, its distinct names and the most frequent."""
    levels: list[collections.Counter[str]] = []
    for product in dataset.products.values():
        for depth, name in enumerate(product.category):
            if depth == len(levels):
                levels.append(collections.Counter())
            levels[depth][name] += 1
    return [
        {"listings": found.total(), "distinct": len(found), "most_frequent": dict(found.most_common(MOST_NAMED))}
        for found in levels
    ]


def attributes(dataset: Dataset) -> dict[str, dict[str, Any]]:
    """Returns for every attribute, the most frequent first, how many listings have it, with several values, which."""
    values: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    listings, several = collections.Counter(), collections.Counter()
    for product in dataset.products.values():
        for key, found in product.attributes:
            values[key].update(found)
            listings[key] += 1
            several[key] += len(found) > 1
    return {
        key: {
            "listings": count,
            "with_several_values": several[key],
            "distinct": len(values[key]),
            "most_frequent": dict(values[key].most_common(MOST_NAMED)),
        }
        for key, count in listings.most_common()
    }


def text_lengths(dataset: Dataset, length: Callable[[str], int], unit: str) -> list[Histogram]:
    """Returns histograms of the lengths of query texts, titles, descriptions, categories and attribute texts.

    Args:
        dataset: at most MOST_TEXTS texts of a kind are measured, chosen by hash.
        length: of a text.
        unit: of `length`, for the titles.
    """
    products = by_hash(dataset.products.values(), MOST_TEXTS, lambda p: p.id)
    queries = by_hash(all_triplets(dataset), MOST_TEXTS, lambda t: t.id)
    texts = {
        "query text": [t.query.text for t in queries],
        "title": [p.title for p in products],
        "description": [p.description for p in products],
        "category": [category_text(p.category) for p in products],
        "attributes": [attribute_text(p.attributes) for p in products],
    }
    found = (histogram(f"{name}, {unit}", [length(t) for t in given if t]) for name, given in texts.items())
    return [one for one in found if one is not None]


@dataclasses.dataclass(frozen=True)
class PictureSizes:
    """What a sample of the pictures showed."""

    looked_at: int
    of: int
    broken: tuple[str, ...]  # messages, all of them
    histograms: tuple[Histogram, ...]


def picture_sizes(dataset: Dataset, data: DataConfig, most: int) -> PictureSizes:
    """Returns the sizes of pictures, of which at most `most` are decoded, chosen by hash.

    Args:
        dataset: its listings and queries.
        data: the pixel budget that decides the visual tokens, those of the crop counted with the picture's.
        most: pictures.
    """
    refs = {image: None for p in dataset.products.values() for image in p.images}
    refs |= {t.query.image: None for t in all_triplets(dataset) if t.query.image is not None}
    chosen = by_hash(refs, most, lambda ref: str(ref.path))
    vision = VisionConfig()

    def look(ref: ImageRef) -> tuple[tuple[int, int], int] | str:
        try:
            size = picture_files.load(ref.path).size
            patches = (h * w for (h, w), _ in images.grids(Document((ref,)), data, vision))
            return size, sum(patches) // vision.merge_unit
        except picture_files.ImageError as error:
            return str(error)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        bar = tqdm(pool.map(look, chosen), total=len(chosen), desc="looking at pictures", unit="picture", leave=False)
        found = list(bar)
    seen = [one for one in found if not isinstance(one, str)]
    drawn = (
        histogram("longer side of pictures, px", [max(size) for size, _ in seen]),
        histogram("shorter side of pictures, px", [min(size) for size, _ in seen]),
        histogram(f"visual tokens at most {data.max_pixels:,} px, with the crop", [tokens for _, tokens in seen]),
    )
    broken = tuple(one for one in found if isinstance(one, str))
    return PictureSizes(len(chosen), len(refs), broken, tuple(one for one in drawn if one is not None))


def cells(dataset: Dataset, most: int) -> tuple[list[Cell], int]:
    """Returns (cells of a contact sheet, columns): triplets side by side, or listings where there are no triplets.

    A data set without hard negatives shows pairs.

    Args:
        dataset: triplets and listings are chosen by hash.
        most: cells.
    """
    negatives = any(t.negative is not None for t in all_triplets(dataset))
    triplets = by_hash(all_triplets(dataset), most // (3 if negatives else 2), lambda t: t.id)
    if not triplets:
        chosen = by_hash(dataset.products.values(), most, lambda p: p.id)
        return [_listing("listing", product) for product in chosen], 6
    out = []
    for triplet in triplets:
        query = triplet.query
        out.append(Cell(query.image, f"query {query.kind}".strip(), query.text or "(no text)"))
        out.append(_listing("positive", triplet.positive))
        if negatives:
            negative = triplet.negative
            out.append(Cell(None, "no negative", "") if negative is None else _listing("negative", negative))
    return out, 6


def _listing(heading: str, product: Product) -> Cell:
    leaf = f" [{product.category[-1]}]" if product.category else ""
    return Cell(product.images[0] if product.images else None, heading, (product.title or product.id) + leaf)


def all_triplets(dataset: Dataset) -> tuple[Triplet, ...]:
    """Returns the triplets of all sets."""
    return (*dataset.train, *dataset.seen, *dataset.unseen)


def by_hash(things: Iterable[Any], most: int, name: Callable[[Any], str]) -> Sequence[Any]:
    """Returns at most `most` of the things, those with the lowest hash of their names: no corner is favoured."""
    return sorted(things, key=lambda thing: hashlib.sha256(name(thing).encode()).digest())[:most]
