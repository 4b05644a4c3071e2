"""Benchmarks of query and gallery listings with labels: right is what shares a label (M5Product, Product1M)."""

import collections
import dataclasses
import functools
from collections.abc import Iterable

from moon_jax.config import DataConfig
from moon_jax.data.records import Dataset, Labelled, Product, Query
from moon_jax.data.sources.lines import Reading
from moon_jax.data.split import Row, assemble

NO_GALLERY = "catalogue"  # the part of listings that are in no gallery: what training may use, not what is searched


def dataset(
    queries: Iterable[Labelled],
    gallery: Iterable[Labelled],
    others: Iterable[Product],
    part: str,
    config: DataConfig,
    reading: Reading,
) -> Dataset:
    """Returns a data set whose test queries are the query listings: picture and title ask, the gallery answers.

    Every gallery listing that shares a label with the query is relevant; the first of them stands as the positive.
    Each query keeps its own listing with its labels: that is what is classified, among the labels of all queries and of
    the gallery. There is no hard negative and nothing to train on. A query whose labels no gallery listing has is
    counted (`queries_without_answer`) and left out; so is one whose id is in the gallery as well
    (`queries_in_gallery`), which would find itself.

    Args:
        queries: are no products themselves.
        gallery: in the order of the source.
        others: further listings, which are not searched; those that are queries or in the gallery are left out.
        part: of queries and gallery.
        config: the split; with `unseen_share=1` all queries count as unseen.
        reading: has read them.
    """
    products: dict[str, Product] = {}
    with_label: dict[str, list[str]] = collections.defaultdict(list)
    for product, labels in gallery:
        products[product.id] = dataclasses.replace(product, part=part)
        for label in labels:
            with_label[label].append(product.id)

    @functools.cache
    def answers(labels: tuple[str, ...]) -> tuple[str, frozenset[str]]:
        ids = list(dict.fromkeys(name for label in labels for name in with_label.get(label, ())))
        return (ids[0] if ids else ""), frozenset(ids)

    rows, asked, said = [], set(), set(with_label)
    for product, labels in queries:
        asked.add(product.id)
        said.update(labels)
        positive, relevant = answers(labels)
        if product.id in products:
            reading.counts["queries_in_gallery"] += 1
        elif not positive:
            reading.counts["queries_without_answer"] += 1
        else:
            query = Query(product.title, product.images[0] if product.images else None)
            rows.append(Row(product.id, False, part, query, positive, None, relevant, Labelled(product, labels)))
    report = reading.report() | {"gallery": len(products)}
    for product in others:
        if product.id not in products and product.id not in asked:
            products[product.id] = dataclasses.replace(product, part=NO_GALLERY if rows else part)
    found = assemble(rows, products, config, reading.fingerprint(), report)
    return dataclasses.replace(found, labels=tuple(sorted(said)))
