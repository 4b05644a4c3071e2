"""A plain catalogue: CSV or TSV with a header, or JSON Lines, one product a row, pictures as paths.

Columns are found by their usual names (ROLES), and config.data.columns names others: (("title", "Bezeichnung"),
("attribute", "Farbe"), ("attribute", "Marke")). Columns that are neither are not read, and the report lists them. One
cell may hold several pictures, values or levels: as a JSON list, or split by "|"; levels also by ">". In JSON Lines,
category and attributes may be objects as well. Rows without an id get a digest of title and first picture.

A cell of boxes holds x1, y1, x2, y2 in pixels of the upright picture: "[10, 20, 200, 300]" or "10 20 200 300". Several
pictures have as many boxes, as a JSON list of lists and nulls or split by "|" with nothing for none: "10 20 200 300||".
"""

import contextlib
import json
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

from moon_jax.config import DataConfig
from moon_jax.data.policy import is_number
from moon_jax.data.records import DataError, Dataset, Product, identity
from moon_jax.data.sources import files, lines
from moon_jax.data.sources.delimited import Cells, csv_rows
from moon_jax.data.sources.lines import Reading, RecordError
from moon_jax.data.split import assemble
from moon_jax.data.strict_json import unique_json

ROLES = {
    "id": ("id", "item_id", "product_id", "sku", "asin", "article_id"),
    "title": ("title", "name", "product_name", "product_title"),
    "description": ("description", "product_description", "body"),
    "images": ("images", "image", "image_path", "img_path", "picture", "pictures", "photo", "file", "filename"),
    "boxes": ("boxes", "box", "bboxes", "bbox", "image_bboxes", "image_bbox"),
    "category": ("category", "categories", "category_path", "product_type"),
    **{level: (level,) for level in ("industry", "cate1", "cate2", "cate3", "cate4")},
    "attributes": ("attributes",),  # an object
}
ATTRIBUTE = "attribute"  # the role of a column of its own, any number of times
ATTRIBUTES = ("brand", "color", "colour", "material", "size", "gender", "style", "pattern", "season", "origin")
LEVELS = ("industry", "cate1", "cate2", "cate3", "cate4")
ENDINGS = (".csv", ".tsv", ".jsonl")


def read(config: DataConfig, reading: Reading) -> Dataset:
    """Returns the products of a table; it has no triplets.

    Raises:
        DataError: see `moon_jax.data.sources.read`; also when there is neither a title nor a picture column.
    """
    folder, found = files.matching(config, "*.*", "table (.csv, .tsv or .jsonl)")
    tables = [path for path in found if path.suffix.lower() in ENDINGS]
    if not tables:
        raise DataError(f"{folder}: no table (.csv, .tsv or .jsonl); it holds {', '.join(p.name for p in found[:20])}")
    pictures, part = files.image_folder(config, folder), files.only_part(config, folder)
    products: dict[str, Product] = {}
    unread: dict[str, None] = {}
    for path in tables:
        rows = _Rows(config, pictures, part, reading, path)
        of_json = path.suffix.lower() == ".jsonl"
        entries = json_rows(reading, path) if of_json else csv_rows(reading, path, rows.check)
        for product in reading.apply(path, entries, rows.product):
            if product.id in products:
                reading.counts["repeated_ids"] += 1
            products.setdefault(product.id, product)
        if of_json:
            rows.check(rows.columns)
        unread |= rows.unread
    report = reading.report() | {"columns_not_read": tuple(unread)}
    return assemble([], products, config, reading.fingerprint(), report)


def json_rows(reading: Reading, path: pathlib.Path) -> Iterator[tuple[int, Cells]]:
    """Yields (line, object) of a JSON Lines file."""
    for number, line in reading.lines(path):
        try:
            yield number, lines.parse_line(line)
        except RecordError as error:
            yield number, error


class _Rows:
    """Reads the rows of one file."""

    def __init__(self, config: DataConfig, pictures: pathlib.Path, part: str, reading: Reading, path: pathlib.Path):
        self._pictures, self._part, self._reading, self._path = pictures, part, reading, path
        if unknown := {role for role, _ in config.columns} - ROLES.keys() - {ATTRIBUTE}:
            roles = ", ".join((*ROLES, ATTRIBUTE))
            raise DataError(f"config.data.columns: no role {', '.join(sorted(unknown))}; the roles are {roles}")
        self._given = config.columns
        self._role_of: dict[str, str] = {}  # column -> role, "" where it is not read
        self.unread: dict[str, None] = {}

    @property
    def columns(self) -> list[str]:
        """The columns met so far."""
        return list(self._role_of)

    def check(self, columns: list[str]) -> None:
        """Checks that all columns that are needed are there.

        Raises:
            DataError: one that config.data.columns names is not, or none holds titles or pictures.
        """
        there = f"it has {', '.join(map(repr, columns))}"
        for _, name in self._given:
            if name not in columns:
                raise DataError(f"{self._path}: config.data.columns: there is no column {name!r}; {there}")
        if not {"title", "images"} & {self._role(column, columns) for column in columns}:
            raise DataError(
                f"{self._path}: no column for a title or a picture; {there}. Name them in config.data.columns as "
                '(role, column) pairs, for example ("title", "Bezeichnung")'
            )

    def product(self, _: int, cells: Cells) -> Product:
        """Returns the product of a row."""
        if isinstance(cells, RecordError):
            raise cells
        said: dict[str, Any] = {}
        attributes: dict[str, Any] = {}
        for column, value in cells.items():
            role = self._role(column, cells)
            if role == ATTRIBUTE:
                attributes[column] = value
            elif role:
                said[role] = value
        paths = [lines.text(path, "images") for path in parts_of(said.get("images"), "|")]
        boxes = list(_boxes(said.get("boxes"), len(paths)))
        images = [lines.image(p, b, self._pictures, "images") for p, b in zip(paths, boxes, strict=True)]
        title, item_id = lines.text(said.get("title"), "title"), _text(said.get("id"), "id")
        images = tuple(image for image in images if image is not None)
        if not title and not images:
            raise RecordError("row", "has neither a title nor a picture")
        return Product(
            item_id or identity(title, paths[0] if paths else ""),
            title,
            lines.text(said.get("description"), "description"),
            images,
            self._reading.same(tuple(_levels(said))),
            tuple(self._reading.same(pair) for pair in _attributes(attributes, said.get("attributes"))),
            self._part,
        )

    def _role(self, column: str, cells: Iterable[str]) -> str:
        if column not in self._role_of:
            self._role_of[column] = role = self._find(column, cells)
            if not role:
                self.unread[column] = None
        return self._role_of[column]

    def _find(self, column: str, cells: Iterable[str]) -> str:
        for role, name in self._given:
            if name == column:
                return role
        known = column.strip().lower().replace(" ", "_")
        taken = {role for role, name in self._given if name in cells}
        for role, names in ROLES.items():
            if known in names and role not in taken:
                there = {name.strip().lower().replace(" ", "_") for name in cells}
                return role if next(name for name in names if name in there) == known else ""  # the first name wins
        return ATTRIBUTE if known in ATTRIBUTES else ""


def parts_of(value: Any, between: str) -> list[Any]:
    """Returns the entries of a cell: of a list, of a text that is a JSON list, or of a text that is split."""
    if isinstance(value, str):
        if value.lstrip().startswith("["):
            try:
                found = json.loads(value)
            except RecursionError:
                raise RecordError("cell", f"a list nested too deeply, begins with {lines.short(value[:80])}") from None
            except ValueError:
                found = None
            if isinstance(found, list):
                return found
        return [part.strip() for part in value.split(between) if part.strip()]
    return lines.several(value)


def _boxes(value: Any, pictures: int) -> list[Any]:
    """Returns a box or None for each picture, as they stand in the cell.

    Raises:
        RecordError: there is not one for each.
    """
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = unique_json(value)
    if isinstance(value, str):
        value = [_corners(part) for part in value.split("|")] if value.strip() else None
    elif isinstance(value, list) and all(map(is_number, value)):
        value = [value] if value else None
    if value is None:
        return [None] * pictures
    if not isinstance(value, list) or len(value) != pictures:
        raise RecordError(
            "boxes", f"must be one box or nothing for each of the {pictures} images, is {lines.short(value)}"
        )
    return [None if box in ("", []) else box for box in value]


def _corners(said: str) -> list[float] | None:
    try:
        return [float(number) for number in re.split(r"[\s,;]+", said.strip("()[] \t"))] if said.strip() else None
    except ValueError as error:
        raise RecordError("boxes", f"must be four numbers, is {lines.short(said)}") from error


def _text(value: Any, field: str) -> str:
    return str(value) if is_number(value) else lines.text(value, field)


def _levels(said: dict[str, Any]) -> Iterator[str]:
    given = said.get("category")
    if isinstance(given, dict):
        given = [given.get(level) for level in LEVELS]
    elif isinstance(given, str) and ">" in given:
        given = given.split(">")
    named: Iterable[Any] = [*(said.get(level) for level in LEVELS)]
    for level in (*parts_of(given, "|"), *named):
        if text := lines.text(level, "category"):
            yield text


def _attributes(columns: dict[str, Any], given: Any) -> Iterator[tuple[str, tuple[str, ...]]]:
    if isinstance(given, str) and given.strip():
        try:
            given = unique_json(given)
        except ValueError as error:
            raise RecordError("attributes", f"must be a JSON object, is {lines.short(given)} ({error})") from error
    given = lines.group(given or None, "attributes")
    for key, value in (*columns.items(), *given.items()):
        values = [_text(part, key) for part in parts_of(value, "|")]
        if values := tuple(text for text in values if text):
            yield lines.text(key, "attributes"), values
