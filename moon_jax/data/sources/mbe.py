"""The row layout of MBE (Hugging Face `Daoze/MM-Bench-E-Commerce`): flat JSON lines.

The keys of the product (`doc_*`) are as programs that read MBE use them; those of the query and of the hard negative
were never published, so each role has candidates, and config.data.mbe_keys can name the key: (("query_image", "pic"),).
The sample on which this reader was tried has guessed keys for these roles, too.
"""

import dataclasses
import itertools
import pathlib
from typing import Any

from moon_jax.config import DataConfig
from moon_jax.data.records import DataError, Dataset, ImageRef, Product, Query, fill, identity
from moon_jax.data.sources import files, lines
from moon_jax.data.sources.lines import Reading, RecordError
from moon_jax.data.split import Row, assemble

LEVELS = ("industry", "cate1", "cate2", "cate3", "cate4")

REQUIRED = {
    "query_text": ("query_title", "query_text", "query"),
    "query_image": ("query_image", "query_pic", "query_img", "query_image_url"),
    "query_box": ("query bbox", "query_bbox"),
    "title": ("doc_title",),
    "image": ("doc_image",),
    "industry": ("doc_industry_name",),
    "cate1": ("doc_cate1_name",),
    "cate2": ("doc_cate2_name",),
    "cate3": ("doc_cate3_name",),
    "cate4": ("doc_cate4_name",),
    "attributes": ("doc_attributes",),
    "negative_title": ("neg_title", "negative_title", "hard_neg_title", "neg_doc_title"),
    "negative_image": ("neg_image", "negative_image", "hard_neg_image", "neg_doc_image"),
}
OPTIONAL = {
    "id": ("id",),  # names the row, not the product
    "item_id": ("item_id", "doc_item_id", "doc_id"),
    "negative_item_id": ("neg_item_id", "negative_item_id", "neg_doc_id"),
    "box": ("doc bbox", "doc_bbox"),
    "negative_box": ("neg bbox", "neg_bbox"),
}
PEEK = 1000  # records whose keys are looked at: a writer may leave out the empty ones


def read(config: DataConfig, reading: Reading) -> Dataset:
    """Returns the data set of `{part}.train.mbe.jsonl`, ... or, where there are none, of `{part}.train.jsonl`, ...

    Products have no description, and boxes only where the rows have them. A hard negative has a category and
    attributes where the same product is a positive elsewhere.

    Raises:
        DataError: see `moon_jax.data.sources.read`; also when the rows lack the key of a role.
    """
    path = pathlib.Path(config.path).expanduser()
    named = any(path.glob("*.mbe.jsonl")) if path.is_dir() else path.name.endswith(".mbe.jsonl")
    found = files.find(config, ".mbe.jsonl" if named else ".jsonl")
    products: dict[str, Product] = {}
    rows = []
    for file in found.files:
        reader = _Rows(reading, files.image_folder(config, found.folder), file, config, products)
        rows += reading.parse(file.path, reader.row)
    return assemble(rows, products, config, reading.fingerprint(), reading.report())


def key_map(there: set[str], config: DataConfig, file: pathlib.Path) -> dict[str, str]:
    """Returns role -> key of the rows that have the keys `there`; "" where the role is left out.

    config.data.mbe_keys comes first (the key "" says that the data has no such field), then the first candidate there.

    Raises:
        DataError: a required role has no key; the message lists the roles and the keys that are there.
    """
    roles = REQUIRED | OPTIONAL
    chosen = dict(config.mbe_keys)
    if unknown := chosen.keys() - roles.keys():
        raise DataError(f"config.data.mbe_keys: no role {', '.join(sorted(unknown))}; the roles are {', '.join(roles)}")
    keys, problems = {}, []
    for role, candidates in roles.items():
        candidates = (chosen[role],) if role in chosen else candidates
        keys[role] = next((key for key in candidates if key in there), "")
        if not keys[role] and candidates != ("",) and (role in REQUIRED or role in chosen):
            problems.append(f"{role} (looked for {', '.join(map(repr, candidates))})")
    if problems:
        raise DataError(
            f"{file}: no key for {'; '.join(problems)}. The rows have the keys {', '.join(map(repr, sorted(there)))}. "
            'Name the right ones in config.data.mbe_keys as (role, key) pairs; the key "" leaves a role out'
        )
    return keys


def parse_attributes(said: str) -> tuple[lines.Attributes, int]:
    """Returns the (key, values) pairs of a `doc_attributes` text and how many pairs were malformed.

    Pairs are split by ",,", key and value by the first ":", several values by "!!!". A pair without ":", key or value
    is malformed; empty pairs (a trailing ",,") are not counted. A key that occurs twice has the values of both.
    """
    return lines.attribute_pairs(said, between=",,", inside=":", values="!!!")


class _Rows:
    """Reads the rows of one file into products and triplets."""

    def __init__(
        self,
        reading: Reading,
        folder: pathlib.Path,
        file: files.PartFile,
        config: DataConfig,
        products: dict[str, Product],
    ):
        self._reading, self._folder, self._file, self._products = reading, folder, file, products
        peek = Reading(dataclasses.replace(config, on_error="skip")).parse(file.path, lambda _, record: record.keys())
        there = set().union(*itertools.islice(peek, PEEK))
        self._keys = key_map(there, config, file.path) if there else {}

    def row(self, number: int, record: dict[str, Any]) -> Row:
        """Returns the triplet of a row."""
        said = {role: record.get(key) if key else None for role, key in self._keys.items()}
        image = self._image(said["query_image"], said["query_box"], "query_image")
        query = Query(lines.text(said["query_text"], "query_text"), image)
        if not query.text and query.image is None:
            raise RecordError("query", "has neither a text nor an image")
        positive = self._product(said, "")
        if positive is None:
            raise RecordError("positive", "has neither a title nor an image")
        negative = self._product(said, "negative_")
        if negative and negative.id == positive.id:
            raise RecordError("negative", f"is the positive itself ({positive.title!r})")
        for product in (positive, negative) if negative else (positive,):
            known = self._products.get(product.id)
            self._products[product.id] = product if known is None else fill(known, product)
        row_id = lines.text(said["id"], "id") or f"{self._file.path.name}:{number}"
        return Row(row_id, self._file.training, self._file.part, query, positive.id, negative.id if negative else None)

    def _image(self, path: Any, box: Any, field: str) -> ImageRef | None:
        return lines.image(path, box, self._folder, field)

    def _product(self, said: dict[str, Any], prefix: str) -> Product | None:
        """Returns the positive (prefix "") or the hard negative ("negative_"); None where the row has none."""
        title = lines.text(said[f"{prefix}title"], f"{prefix}title")
        paths = lines.several(said[f"{prefix}image"])
        boxes = [said[f"{prefix}box"] if i == 0 else None for i in range(len(paths))]  # the row's box is the first's
        images = [self._image(p, b, f"{prefix}image") for p, b in zip(paths, boxes, strict=True)]
        images = tuple(ref for ref in images if ref is not None)
        if not title and not images:
            return None
        item_id = lines.text(said[f"{prefix}item_id"], f"{prefix}item_id")
        product = Product(
            item_id or identity(title, lines.text(paths[0] if images else None, "image")),
            title,
            images=images,
            part=self._file.part,
        )
        return fill(product, self._aspects(said, product.id)) if not prefix else product

    def _aspects(self, said: dict[str, Any], product_id: str) -> Product:
        levels = (lines.text(said[level], level) for level in LEVELS)
        attributes, malformed = parse_attributes(lines.text(said["attributes"], "attributes"))
        self._reading.counts["malformed_attributes"] += malformed
        return Product(
            product_id,
            category=self._reading.same(tuple(level for level in levels if level)),
            attributes=tuple(self._reading.same(pair) for pair in attributes),
        )
