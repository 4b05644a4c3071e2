"""Our own layout: `{part}.train.jsonl` and `{part}.test.jsonl` (or train.jsonl, test.jsonl), and items.jsonl.

A record: {"id", "query": {"image", "text", "kind", "bbox"}, "positive": {"item_id", "images", "title", "description"},
"negative": the same or null, "category": {"industry", "cate1", ... "cate4"}, "attributes": {key: value or values}};
category and attributes are the positive's. A listing of items.jsonl: {"item_id", "title", "description", "category",
"attributes", "image", "image_bbox"} or, with several pictures, "images" and "image_bboxes" (one box or null each).
Missing keys and null are the same. Any "item_id" may be missing in records: then title and picture identify a product.
"""

import dataclasses
import pathlib
from typing import Any

from moon_jax.config import DataConfig
from moon_jax.data.policy import is_number
from moon_jax.data.records import Dataset, ImageRef, Product, Query, fill, identity
from moon_jax.data.sources import files, lines
from moon_jax.data.sources.lines import Reading, RecordError
from moon_jax.data.split import Row, assemble

LEVELS = ("industry", "cate1", "cate2", "cate3", "cate4")


def read(config: DataConfig, reading: Reading) -> Dataset:
    """Returns the data set of a folder in our layout.

    What items.jsonl says of a product wins; fields that it leaves empty, and products that it does not list, are
    filled from the records in the order in which they are read.

    Raises:
        DataError: see `moon_jax.data.sources.read`.
    """
    found = files.find(config, ".jsonl")
    shelf = _Shelf(reading, files.image_folder(config, found.folder))
    items = found.folder / "items.jsonl"
    if items.exists():
        for _ in shelf.reading.parse(items, shelf.listing):
            pass
    listed = len(shelf.products)
    rows = []
    for file in found.files:
        rows += [row for row in shelf.reading.parse(file.path, lambda n, r, f=file: shelf.row(n, r, f)) if row]
    report = shelf.reading.report() | {"listings": listed, "products_not_in_items": len(shelf.products) - listed}
    products, report["listings_of_no_part"] = _of_parts(shelf.products, rows, found)
    return assemble(rows, products, config, shelf.reading.fingerprint(), report)


def _of_parts(products: dict[str, Product], rows: list[Row], found: files.Found) -> tuple[dict[str, Product], int]:
    """Returns the products of the parts that are read, each with its part, and how many products no part claims.

    A listing belongs to the part it names ("dataset"), else to the part of the first record that names it, else to
    the part before the colon of its id, else to the only part of the folder.
    """
    selected = {file.part for file in found.files}
    named: dict[str, str] = {}
    for row in rows:
        named.setdefault(row.positive, row.part)
        if row.negative is not None:
            named.setdefault(row.negative, row.part)
    kept, homeless = {}, 0
    for product in products.values():
        candidates = (product.part, named.get(product.id), product.id.partition(":")[0])
        part = next((p for p in candidates if p in found.parts), found.parts[0] if len(found.parts) == 1 else None)
        homeless += part is None
        if product.id in named or part in selected:
            kept[product.id] = product if product.part == part else dataclasses.replace(product, part=part)
    return kept, homeless


class _Shelf:
    """The products met so far, and the functions that read one line."""

    def __init__(self, reading: Reading, folder: pathlib.Path):
        self.reading = reading
        self.products: dict[str, Product] = {}
        self._folder = folder

    def listing(self, _: int, record: dict[str, Any]) -> None:
        """Adds a line of items.jsonl."""
        item_id = lines.text(record.get("item_id"), "item_id")
        if not item_id:
            raise RecordError("item_id", "a listing needs one")
        if item_id in self.products:
            raise RecordError("item_id", f"{item_id!r} is listed twice")
        self.products[item_id] = self._product(
            record, record, "listing", part=lines.text(record.get("dataset"), "dataset")
        )

    def row(self, number: int, record: dict[str, Any], file: files.PartFile) -> Row | None:
        """Returns the triplet of a record; None where it has no positive (a picture without a product, counted)."""
        said = lines.group(record.get("query"), "query")
        picture = lines.image(said.get("image"), said.get("bbox"), self._folder, "query.image")
        query = Query(lines.text(said.get("text"), "query.text"), picture, lines.text(said.get("kind"), "query.kind"))
        if not query.text and query.image is None:
            raise RecordError("query", "has neither a text nor an image")
        if record.get("positive") is None:
            self.reading.counts["no_positive"] += 1
            return None
        positive = self._product(lines.group(record["positive"], "positive"), record, "positive")
        negative = None
        if record.get("negative") is not None:
            negative = self._product(lines.group(record["negative"], "negative"), {}, "negative")
            if negative.id == positive.id:
                raise RecordError("negative", f"is the positive itself ({positive.id!r})")
        for product in (positive, negative) if negative else (positive,):
            self._put(product)
        row_id = lines.text(record.get("id"), "id") or f"{file.path.name}:{number}"
        return Row(row_id, file.training, file.part, query, positive.id, negative.id if negative else None)

    def _put(self, product: Product) -> None:
        known = self.products.get(product.id)
        if known is None:
            self.products[product.id] = product
            return
        pictures = [image.path for image in product.images]
        if (product.title and known.title and product.title != known.title) or (
            pictures and known.images and pictures != [image.path for image in known.images]
        ):
            self.reading.counts["mentions_that_differ_from_listing"] += 1
        self.products[product.id] = fill(known, product)

    def _product(self, said: dict[str, Any], aspects: dict[str, Any], field: str, part: str = "") -> Product:
        """Returns the product that `said` describes, its category and attributes from `aspects`."""
        title = lines.text(said.get("title"), f"{field}.title")
        images = self._images(said, field)
        if not title and not images:
            raise RecordError(field, "has neither a title nor an image")
        paths = _paths(said, field)
        item_id = lines.text(said.get("item_id"), f"{field}.item_id") or identity(title, paths[0] if paths else "")
        category = lines.group(aspects.get("category"), "category")
        levels = (lines.text(category.get(level), f"category.{level}") for level in LEVELS)
        return Product(
            id=item_id,
            title=title,
            description=lines.text(said.get("description"), f"{field}.description"),
            images=images,
            category=self.reading.same(tuple(level for level in levels if level)),
            attributes=self._attributes(lines.group(aspects.get("attributes"), "attributes")),
            part=part,
        )

    def _images(self, said: dict[str, Any], field: str) -> tuple[ImageRef, ...]:
        paths, boxes = _paths(said, field), said.get("image_bboxes")
        if boxes is None:
            main = lines.text(said.get("image"), f"{field}.image") or (paths[0] if paths else "")
            boxes = [said.get("image_bbox") if path == main else None for path in paths]
        if not isinstance(boxes, list) or len(boxes) != len(paths):
            raise RecordError(f"{field}.image_bboxes", f"must be one box or null for each of the {len(paths)} images")
        refs = (lines.image(p, b, self._folder, f"{field}.images") for p, b in zip(paths, boxes, strict=True))
        return tuple(ref for ref in refs if ref is not None)

    def _attributes(self, said: dict[str, Any]) -> tuple[tuple[str, tuple[str, ...]], ...]:
        pairs = []
        for name, given in said.items():
            key = lines.text(name, "attributes")
            values = tuple(v for v in (_value(v, f"attributes.{key}") for v in lines.several(given)) if v)
            if key and values:
                pairs.append(self.reading.same((key, values)))
        return tuple(pairs)


def _paths(said: dict[str, Any], field: str) -> list[str]:
    """Returns the picture references as they stand in the record: "images", or else "image" alone."""
    given = said.get("image") if said.get("images") is None else said["images"]
    return [lines.text(path, f"{field}.images") for path in lines.several(given)]


def _value(value: Any, field: str) -> str:
    """Returns an attribute's value as text; sources write numbers as numbers."""
    if is_number(value):
        return str(value)
    return lines.text(value, field)
