"""Training and test sets from the rows of a source: the split by product, so that `unseen` is never trained on."""

import bisect
import collections
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from moon_jax.config import DataConfig
from moon_jax.data.records import Dataset, Labelled, Product, Query, Triplet


class Row(NamedTuple):
    """A triplet as its file gives it, its products by id: they are complete only when every file has been read."""

    id: str
    training: bool  # from a train file
    part: str
    query: Query
    positive: str
    negative: str | None
    relevant: frozenset[str] = frozenset()  # see Triplet
    listing: Labelled | None = None  # see Triplet


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def is_unseen(product_id: str, share: float) -> bool:
    """Returns whether the product is kept from training: a stable function of its id alone."""
    return _hash(product_id) < share * 2**64


class _Substitutes:
    """Finds another seen product for a triplet whose hard negative training must not see."""

    def __init__(self, seen: Iterable[Product]):  # in the order of their ids
        self._by_category: dict[tuple[str, ...], list[str]] = collections.defaultdict(list)
        for product in seen:
            for depth in range(len(product.category) + 1):
                self._by_category[(product.part, *product.category[:depth])].append(product.id)

    def find(self, row: Row, positive: Product) -> str | None:
        """Returns a product that shares the deepest possible category with the positive, chosen by hash; or None."""
        for depth in range(len(positive.category), -1, -1):
            ids = self._by_category.get((positive.part, *positive.category[:depth]), [])
            own = bisect.bisect_left(ids, positive.id)
            held = own < len(ids) and ids[own] == positive.id
            others = len(ids) - held
            if others:
                choice = _hash(f"{row.id}\0{positive.id}") % others
                return ids[choice + (held and choice >= own)]
        return None


def assemble(
    rows: Sequence[Row], products: dict[str, Product], config: DataConfig, fingerprint: str, report: dict[str, Any]
) -> Dataset:
    """Returns the data set of `rows`, split by product.

    A product is unseen if the hash of its id falls into `config.unseen_share`. Training gets the rows of train files
    with a seen positive; where the negative is unseen, another seen product takes its place: one that shares the
    deepest possible category with the positive, within the part. `seen` gets the rows of test files with a seen
    positive, `unseen` the rows of both kinds of file with an unseen one. The order of the rows is kept. A catalogue has
    products and no rows: `moon_jax.data.sources.read` refuses it where triplets are asked for.
    """
    products = dict(sorted(products.items()))
    unseen_ids = {product_id for product_id in products if is_unseen(product_id, config.unseen_share)}
    substitutes = _Substitutes(p for p in products.values() if p.id not in unseen_ids)
    train, seen, unseen = [], [], []
    replaced = dropped = 0
    for row in rows:
        positive, negative = products[row.positive], row.negative
        split = unseen if row.positive in unseen_ids else train if row.training else seen
        if split is train and negative in unseen_ids:
            negative = substitutes.find(row, positive)
            replaced += negative is not None
            dropped += negative is None
        negative = None if negative is None else products[negative]
        split.append(Triplet(row.id, row.query, positive, negative, row.part, row.relevant, row.listing))
    trained = {triplet.positive.id for triplet in train}
    pictures = [image for product in products.values() for image in product.images]
    report = report | {
        "train": len(train),
        "seen": len(seen),
        "unseen": len(unseen),
        "products": len(products),
        "unseen_products": len(unseen_ids),
        "replaced_negatives": replaced,
        "dropped_negatives": dropped,
        "seen_queries_without_training_triplet": sum(triplet.positive.id not in trained for triplet in seen),
        "query_pictures_without_box": sum(row.query.image is not None and row.query.image.box is None for row in rows),
        "listing_pictures_without_box": sum(image.box is None for image in pictures),
    }
    return Dataset(tuple(train), tuple(seen), tuple(unseen), products, fingerprint, report)
