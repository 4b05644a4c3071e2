"""Which triplet, in which form, stands in which row of which step: pure functions of the seed, the step and the row.

Nothing depends on hosts, shards or workers, and nothing is remembered between steps: any process can compute any step.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from moon_jax.config import DataConfig
from moon_jax.data.documents import MODALITIES, attribute_text, category_text, has_modality
from moon_jax.data.records import DataError, Dataset, Product, Query, Triplet

# The first number after the seed in the key of a random stream: streams of different purposes never meet.
_ORDER, _MODALITY, _FORM, _NEGATIVE, _SPARE, _AUGMENT = range(6)
MAX_SPARES = 50  # triplets tried in the place of one with a broken picture


class Form(NamedTuple):
    """What the positive and the hard negative of a row have of their listings, both the same."""

    aspects: bool  # category and attribute texts
    title: bool = True
    images: bool = True


class Row(NamedTuple):
    """One triplet of a batch and the form that it takes there."""

    triplet: Triplet
    negative: Product
    modality: str  # of the query, one of documents.MODALITIES
    query: Query  # the triplet's own, or with the picture of the positive in the place of its own
    form: Form
    own_picture: bool  # whether it has that of the positive


def quotas(batch_size: int, mix: Sequence[int]) -> tuple[int, ...]:
    """Returns how many rows of a batch get each modality: shares of `mix`, rounded by the largest remainder."""
    exact = [batch_size * part / sum(mix) for part in mix]
    counts = [int(share) for share in exact]
    by_remainder = sorted(range(len(mix)), key=lambda i: (counts[i] - exact[i], i))
    for i in by_remainder[: batch_size - sum(counts)]:
        counts[i] += 1
    return tuple(counts)


def assign_modalities(
    queries: Sequence[Query], mix: Sequence[int], rng: np.random.Generator
) -> tuple[list[str], dict[str, int]]:
    """Returns each query's modality by quota, and counts of "swapped_modalities" and "missed_modalities".

    A query that lacks its modality swaps with the first that suits both; where there is none, the query is asked
    by what it has, which is a text or a picture, never both.
    """
    counts = quotas(len(queries), mix)
    dealt = rng.permutation(np.repeat(np.arange(len(MODALITIES)), counts))
    has = np.array([[has_modality(query, modality) for modality in MODALITIES] for query in queries])
    info = {"swapped_modalities": 0, "missed_modalities": 0}
    for i in np.flatnonzero(~has[np.arange(len(queries)), dealt]):
        if has[i, dealt[i]]:
            continue  # got it by an earlier swap
        partners = np.flatnonzero(has[i, dealt] & has[:, dealt[i]])
        if len(partners):
            j = partners[0]
            dealt[i], dealt[j] = dealt[j], dealt[i]
            info["swapped_modalities"] += 1
        else:
            dealt[i] = MODALITIES.index("image") if queries[i].image is not None else MODALITIES.index("text")
            info["missed_modalities"] += 1
    return [MODALITIES[m] for m in dealt], info


def balanced(a: Product, b: Product) -> bool:
    """Returns whether both products have a category text or neither, and attributes or neither.

    If one of them had what the other lacks, the presence of such a text would tell a positive from its hard negative.
    """
    return bool(a.category) == bool(b.category) and bool(a.attributes) == bool(b.attributes)


def aspects_differ(a: Product, b: Product) -> bool:
    """Returns whether the aspect texts alone tell the products apart (and there are any)."""
    texts = [category_text(p.category) + "\n" + attribute_text(p.attributes) for p in (a, b)]
    return balanced(a, b) and texts[0] != texts[1]


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Deals the training triplets to the rows of global batches.

    Draw number k of a run is entry k % N of permutation k // N of the N triplets: the paper's epoch of 1.7 N draws sees
    every triplet once and 70% of them twice.
    """

    dataset: Dataset
    data: DataConfig
    seed: int
    batch_size: int

    def rows(self, step: int) -> tuple[list[Row], dict[str, int]]:
        """Returns the rows of the global batch and counts over all of it."""
        triplets = [self._draw(step * self.batch_size + i) for i in range(self.batch_size)]
        rng = self._rng(_MODALITY, step)
        modalities, info = assign_modalities([t.query for t in triplets], self.data.modality_mix, rng)
        rows = [self._row(step, i, *pair) for i, pair in enumerate(zip(triplets, modalities, strict=True))]
        return rows, info | {"triplets_with_aspects": sum(row.form.aspects for row in rows)}

    def spares(self, step: int, row: int, modality: str) -> Iterator[Row]:
        """Yields what may take a row's place when a picture of it is broken, best first, `MAX_SPARES` at most."""
        train = self.dataset.train
        for index in self._rng(_SPARE, step, row).integers(0, len(train), MAX_SPARES):
            if has_modality(train[index].query, modality):
                yield self._row(step, row, train[index], modality)

    def augment_key(self, step: int, row: int, document: int) -> tuple[int, ...]:
        """Returns the key of the random view of a row's query (document 0), positive (1) or negative (2)."""
        return (self.seed, _AUGMENT, step, row, document)

    def _row(self, step: int, row: int, triplet: Triplet, modality: str) -> Row:
        data = self.data
        drop, only, untitled, own = self._rng(_FORM, step, row).random(4)
        negative = triplet.negative or self._some_negative(step, row, triplet.positive)
        pair, query = (triplet.positive, negative), triplet.query
        pictured = all(product.images for product in pair)
        form = Form(
            aspects=bool(drop >= data.aspect_dropout) and balanced(*pair),
            title=not (pictured and untitled < data.title_dropout),
        )
        if only < data.aspect_only and aspects_differ(*pair):
            form = Form(aspects=True, title=False, images=False)
        own_picture = bool(own < data.own_picture and modality == "image" and form.images and triplet.positive.images)
        if own_picture:
            query = dataclasses.replace(query, image=triplet.positive.images[0])
        return Row(triplet, negative, modality, query, form, own_picture)

    def _some_negative(self, step: int, row: int, positive: Product) -> Product:
        """Returns another training product, of the same category as deep as there is one."""
        for depth in range(len(positive.category), -1, -1):
            others = [p for p in self._by_category.get(positive.category[:depth], ()) if p.id != positive.id]
            if others:
                return others[self._rng(_NEGATIVE, step, row).integers(len(others))]
        raise DataError("training needs at least two products, or there is no hard negative")

    @functools.cached_property
    def _by_category(self) -> dict[tuple[str, ...], list[Product]]:
        used = {p.id: p for t in self.dataset.train for p in (t.positive, t.negative) if p is not None}
        groups: dict[tuple[str, ...], list[Product]] = {}
        for _, product in sorted(used.items()):
            for depth in range(len(product.category) + 1):
                groups.setdefault(product.category[:depth], []).append(product)
        return groups

    def _draw(self, number: int) -> Triplet:
        lap, place = divmod(number, len(self.dataset.train))
        return self.dataset.train[order(self.seed, lap, len(self.dataset.train))[place]]

    def _rng(self, *key: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, *key))


@functools.lru_cache(maxsize=4)
def order(seed: int, lap: int, count: int) -> Int[np.ndarray, "count"]:
    """Returns the permutation in which lap number `lap` through `count` examples draws them."""
    return np.random.default_rng((seed, _ORDER, lap)).permutation(count)
