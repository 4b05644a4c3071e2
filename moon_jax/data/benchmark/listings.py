"""The catalogue as the benchmark needs it: one id per product, what is personal removed, the side of each product."""

import collections
import dataclasses
import itertools
import os
import pathlib
from typing import Any

import ibis.expr.types as ir
import pyarrow as pa
from tqdm import tqdm

from moon_jax.data.benchmark import personal
from moon_jax.data.benchmark.engine import Engine
from moon_jax.data.benchmark.functions import clean, reference
from moon_jax.data.records import DataError, Dataset, Product, identity
from moon_jax.data.sources import lines
from moon_jax.data.split import is_unseen

BAR_FROM = 200_000  # listings that take long enough for a bar


@dataclasses.dataclass(frozen=True)
class Listings:
    """What may be bought, and what may be a hard negative.

    Attributes:
        products: by id; of listings with the same title and first picture only the one with the smallest id.
        product_of: id of a listing -> id in `products`, for every listing of the catalogue that may be used.
        test_share: of the products, by the hash of their id, for the test set.
        report: how many listings were left out or changed, and why.
    """

    products: dict[str, Product]
    product_of: dict[str, str]
    test_share: float
    report: dict[str, Any]

    def of_test(self, product: str) -> bool:
        """Returns whether a product belongs to the test set: as `moon_jax.data.split` says it is unseen."""
        return is_unseen(product, self.test_share)

    def table(self, engine: Engine) -> ir.Table:
        """Returns (item, product, test, industry) of every listing; industry is the first level, "" = none.

        Items are ids as `clean` makes them, as those of the log are.

        Raises:
            DataError: two products have the same id after that.
        """
        items: dict[str, str] = {}
        for item in self.product_of:
            if self.product_of[items.setdefault(clean(item), item)] != self.product_of[item]:
                raise DataError(f"listings {items[clean(item)]!r} and {item!r}: ids that differ in white space only")
        found = [self.products[self.product_of[item]] for item in items.values()]
        columns = {
            "item": pa.array(items.keys(), pa.string()),
            "product": pa.array((product.id for product in found), pa.string()),
            "test": pa.array((self.of_test(product.id) for product in found), pa.bool_()),
            "industry": pa.array((product.category[0] if product.category else "" for product in found), pa.string()),
        }
        return engine.put(pa.table(columns), "listings.parquet")


def listings(dataset: Dataset, test_share: float, home: pathlib.Path = pathlib.Path("/")) -> Listings:
    """Returns the listings of a catalogue, for a benchmark that will lie in `home`.

    Two listings with the same title (but for case and spaces) and first picture are one product under two ids: one
    could not be told from the other, so they must not be each other's negative, nor lie on both sides of the split. A
    listing whose title holds something personal by its look is left out; such a description, attribute or picture is
    removed, and a category ends before such a level.

    Raises:
        DataError: its pictures are inside other files.
    """
    first: dict[str, str] = {}
    product_of: dict[str, str] = {}
    report: collections.Counter[str] = collections.Counter(listings=len(dataset.products))
    ordered = dataset.products.items()  # in the order of their ids
    for item, product in tqdm(ordered, "checking the catalogue", unit="listing", disable=len(ordered) < BAR_FROM):
        if not all(isinstance(image.path, str) for image in product.images):
            raise DataError(
                f"listing {item!r}: its pictures lie inside another file, and a benchmark refers to pictures by path "
                "or address; write them to files first"
            )
        if personal.text_look(product.title):
            report["listings_with_a_personal_title"] += 1
            continue
        same = identity(product.title, reference(product.images[0].path, "/") if product.images else "")
        report["repeated_listings"] += same in first
        product_of[item] = first.setdefault(same, item)
    used = set(first.values())
    products = {item: _impersonal(product, home, report) for item, product in ordered if item in used}
    return Listings(products, product_of, test_share, dict(report))


def _impersonal(product: Product, home: pathlib.Path, report: collections.Counter[str]) -> Product:
    """Returns the product without what looks personal in what will be written of it."""
    changes: dict[str, Any] = {}
    if personal.text_look(product.description):
        report["personal_descriptions_removed"] += 1
        changes["description"] = ""
    kept = tuple(pair for pair in product.attributes if not any(map(personal.text_look, (pair[0], *pair[1]))))
    if len(kept) < len(product.attributes):
        report["personal_attributes_removed"] += len(product.attributes) - len(kept)
        changes["attributes"] = kept
    levels = tuple(itertools.takewhile(lambda level: not personal.text_look(level), product.category))
    if len(levels) < len(product.category):
        report["personal_categories_cut"] += 1
        changes["category"] = levels
    images = tuple(image for image in product.images if not personal.picture_look(written(image.path, home)))
    if len(images) < len(product.images):
        report["personal_pictures_removed"] += len(product.images) - len(images)
        changes["images"] = images
    return dataclasses.replace(product, **changes) if changes else product


def written(path: str, home: pathlib.Path) -> str:
    """Returns how the benchmark in `home` refers to a picture: an address, or a path from there."""
    return path if lines.is_url(path) else os.path.relpath(path, home)
