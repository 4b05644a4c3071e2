"""Hard negatives by a trained model: what is most similar to the query, but less so than what was bought."""

import collections
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32

from moon_jax.data.benchmark.listings import Listings
from moon_jax.data.records import Product
from moon_jax.data.sources import lines

BLOCK_SCORES = 2**25  # similarities that are held at a time: 128 MB


@runtime_checkable
class Embeds(Protocol):
    """What a model must do: `moon_jax.load` returns one."""

    def encode_query(self, records: Sequence[dict], **settings: Any) -> Float32[np.ndarray, "n d"]:
        """Returns unit vectors of queries."""

    def encode_item(self, records: Sequence[dict], **settings: Any) -> Float32[np.ndarray, "n d"]:
        """Returns unit vectors of listings."""


class Miner:
    """Replaces negatives that were chosen by hash; one that finds none below the ceiling leaves the row as it is.

    Candidates are all products on the row's side of the split but those bought for the same text or picture. The
    ceiling is the similarity of query and bought product, less a margin: what comes closer is likely a right answer
    that nobody bought yet.
    """

    def __init__(
        self, model: Embeds, listings: Listings, bought: Mapping[str, Sequence[str]], margin: float, batch: int = 32
    ):
        """Embeds all products.

        Args:
            model: for queries and products. What it cannot embed (a broken picture) is not mined.
            listings: the products.
            bought: key of a text or a picture -> products.
            margin: below the similarity of the bought product, >= 0.
            batch: records that the model embeds at a time on a device.
        """
        self._model, self._margin, self._batch, self._bought = model, margin, batch, bought
        self._products = listings.products
        self._sides: dict[bool, tuple[dict[str, int], Float32[np.ndarray, "n d"]]] = {}
        self.counts: collections.Counter[str] = collections.Counter(mined=0, kept=0)
        for side in (False, True):
            ids = [product for product in listings.products if listings.of_test(product) == side]
            vectors = self._encode(model.encode_item, [item(listings.products[product]) for product in ids])
            self._sides[side] = ({product: number for number, product in enumerate(ids)}, vectors)

    def _encode(self, encode: Any, records: list[dict]) -> Float32[np.ndarray, "n d"]:
        return encode(records, batch_size=self._batch, on_error="skip", progress=len(records) > 1000)

    def apply(self, rows: Iterable[Sequence[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
        """Yields the rows of all batches, each with the negative that was mined and the levels that it shares.

        Args:
            rows: batches of dicts with test, text, image (a path that can be opened), keys, product, negative, depth.
        """
        for part in rows:
            for side in (False, True):
                here = [row for row in part if row["test"] == side]
                numbers, vectors = self._sides[side]
                step = max(1, BLOCK_SCORES // max(1, len(numbers)))
                for start in range(0, len(here), step):
                    self._mine(here[start : start + step], numbers, vectors)
            yield from part

    def _mine(self, rows: list[dict[str, Any]], numbers: dict[str, int], vectors: Float32[np.ndarray, "n d"]) -> None:
        ids = list(numbers)
        queries = self._encode(self._model.encode_query, [query(row) for row in rows])
        own = np.array([numbers[row["product"]] for row in rows])
        scores = queries @ vectors.T
        ceiling = scores[np.arange(len(rows)), own] - self._margin
        banned = np.zeros(scores.shape, bool)
        for number, row in enumerate(rows):
            same = (product for key in row["keys"] for product in self._bought.get(key, ()))
            banned[number, [numbers[product] for product in same if product in numbers]] = True
        banned[np.arange(len(rows)), own] = True
        for row, best in zip(rows, closest(scores, ceiling, banned), strict=True):
            self.counts["mined" if best >= 0 else "kept"] += 1
            if best >= 0:
                row["negative"] = ids[best]
                row["depth"] = shared(self._products[row["product"]], self._products[ids[best]])


def closest(
    scores: Float32[np.ndarray, "n m"], ceiling: Float32[np.ndarray, " n"], banned: Bool[np.ndarray, "n m"]
) -> np.ndarray:
    """Returns for each row the column of the greatest score below its ceiling, the first of equals; -1 = none.

    NaN (something that could not be embedded) is never chosen, nor is anything for a ceiling that is NaN.
    """
    fits = (scores < ceiling[:, None]) & ~banned
    best = np.where(fits, scores, -np.inf).argmax(1)
    return np.where(fits.any(1), best, -1)


def shared(one: Product, other: Product) -> int:
    """Returns how many levels two products share, from the top."""
    depth = 0
    for mine, theirs in zip(one.category, other.category, strict=False):
        if mine != theirs:
            break
        depth += 1
    return depth


def item(product: Product) -> dict[str, Any]:
    """Returns a product as `Encoder.encode_item` takes it; pictures that are still on the web are left out."""
    images = [image for image in product.images if not lines.is_url(image.path)]
    return {
        "id": product.id,
        "title": product.title,
        "description": product.description,
        "category": list(product.category),
        "attributes": {key: list(values) for key, values in product.attributes},
        "images": [image.path for image in images],
        "boxes": [list(image.box) if image.box else None for image in images],
    }


def query(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the query of a row as `Encoder.encode_query` takes it."""
    picture = row["image"] and not lines.is_url(row["image"])
    return {"text": row["text"], "images": [row["image"]] if picture else []}
