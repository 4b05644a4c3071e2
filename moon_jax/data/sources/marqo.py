"""Marqo-GS-10M and Marqo's evaluation sets: Parquet files `{split}-00000-of-00010.parquet` with embedded pictures.

Columns of the first: image, query, product_id, position, title, pair_id, score_linear, score_reciprocal, no_score,
query_id; of the others image, item_ID, query, title, position, or, without queries, image, category1 .. category3,
color, description, text, item_ID. Scores are not read. Written from the published description (column names and types);
files in this layout were made for the tests, none of Marqo's was at hand.

Every split is a part. "train" and "in_domain" hold triplets to train on, one a row; in the others a query asks once,
the listing with the smallest position is its positive and all listings that it names are relevant. Without a column of
queries it is a catalogue. Pictures stay in the files and are read from there, a row group at a time.
"""

import collections
import math
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from moon_jax.config import DataConfig
from moon_jax.data.policy import is_number, shown
from moon_jax.data.records import DataError, Dataset, ImageRef, Product, Query, fill
from moon_jax.data.sources import files, lines
from moon_jax.data.sources.embedded import ParquetImage
from moon_jax.data.sources.lines import Reading, RecordError
from moon_jax.data.split import Row, assemble

COLUMNS = {
    "id": ("product_id", "item_ID", "item_id"),
    "title": ("title", "text"),
    "description": ("description",),
    "query": ("query",),
    "query_id": ("query_id",),
    "position": ("position",),
    "category1": ("category1",),
    "category2": ("category2",),
    "category3": ("category3",),
    "color": ("color",),
}
TRAINING = ("train", "in_domain")
ROWS = 1000  # that are turned into Python objects at a time


def read(config: DataConfig, reading: Reading) -> Dataset:
    """Returns the data set of the Parquet files of a folder and the folders in it.

    Raises:
        DataError: see `moon_jax.data.sources.read`; also when columns are missing, or pyarrow.
    """
    folder, found = files.matching(config, "**/*.parquet", "Parquet files")
    splits = {path: split_of(path.name) for path in found}
    if unknown := set(config.parts) - set(splits.values()):
        there = ", ".join(sorted(set(splits.values())))
        raise DataError(f"config.data.parts: {folder} has no part {', '.join(sorted(unknown))}; it has {there}")
    products: dict[str, Product] = {}
    rows: list[Row] = []
    tests: dict[tuple[str, str], list[tuple[float, str]]] = collections.defaultdict(list)  # (part, query) -> answers
    for path, part in splits.items():
        if config.parts and part not in config.parts:
            continue
        reader = _Rows(path, part, products, reading)
        for number, (product_id, query, position) in enumerate(reading.apply(path, reader.entries(), reader.row), 1):
            if not query:
                continue
            if part in TRAINING:
                rows.append(Row(f"{path.name}:{number}", True, part, Query(query, None), product_id, None))
            else:
                tests[part, query].append((position, product_id))
    for number, ((part, query), answers) in enumerate(tests.items(), 1):
        relevant = frozenset(product_id for _, product_id in answers)
        rows.append(Row(f"{part}:{number}", False, part, Query(query, None), min(answers)[1], None, relevant))
    return assemble(rows, products, config, reading.fingerprint(), reading.report())


def split_of(name: str) -> str:
    """Returns the split that a file's name says: "in_domain" of "in_domain-00000-of-00353.parquet"."""
    return re.sub(r"(-\d+-of-\d+)?\.parquet$", "", name)


def column_names(path: pathlib.Path) -> list[str]:
    """Returns the names of the columns.

    Raises:
        DataError: no Parquet file, or pyarrow is not installed.
    """
    with open_parquet(path) as file:
        return file.schema_arrow.names


def open_parquet(path: pathlib.Path) -> Any:
    """Returns the pyarrow.parquet.ParquetFile.

    Raises:
        DataError: no Parquet file, or pyarrow is not installed.
    """
    try:
        import pyarrow.parquet  # large, and the other formats do without it
    except ModuleNotFoundError as error:
        raise DataError(f"{path}: Parquet files are read by pyarrow, which is not here: pip install pyarrow") from error
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: cannot be read as a Parquet file: {error}") from error


class _Rows:
    """Reads the rows of one file, all but their pictures."""

    def __init__(self, path: pathlib.Path, part: str, products: dict[str, Product], reading: Reading):
        self._path, self._part, self._products, self._reading = path, part, products, reading
        there = column_names(path)
        self._columns = {role: next((c for c in names if c in there), "") for role, names in COLUMNS.items()}
        if "image" not in there or not self._columns["id"]:
            raise DataError(
                f"{path}: needs the columns 'image' and one of {', '.join(COLUMNS['id'])}; it has {', '.join(there)}"
            )
        self._name = str(path)

    def entries(self) -> Iterator[tuple[int, tuple[ImageRef, dict[str, Any] | RecordError]]]:
        """Yields (number of the row from 1, (picture, what stands in the other columns by role)).

        Raises:
            DataError: a row group is damaged.
        """
        wanted = [column for column in self._columns.values() if column]
        number = 0
        with open_parquet(self._path) as file:
            leaves = [file.schema.column(i).path for i in range(len(file.schema))]
            image = "image.bytes" if "image.bytes" in leaves else "image"
            for group in range(file.num_row_groups):
                batches = file.iter_batches(ROWS, row_groups=[group], columns=wanted)
                for row, said in enumerate(_dicts(batches, f"{self._path}: row group {group}")):
                    self._reading.note(repr(said).encode("utf-8", "surrogatepass"))
                    number += 1
                    if isinstance(said, dict):
                        said = {role: said.get(column) for role, column in self._columns.items()}
                    yield number, (ImageRef(ParquetImage(self._name, group, row, image)), said)

    def row(self, _: int, entry: tuple[ImageRef, dict[str, Any] | RecordError]) -> tuple[str, str, float]:
        """Returns (product id, query, position), "" where there is no query, and puts the product on the shelf."""
        picture, said = entry
        if isinstance(said, RecordError):
            raise said
        product_id = str(said["id"]) if is_number(said["id"]) else lines.text(said["id"], "id")
        if not product_id:
            raise RecordError(self._columns["id"], "is empty")
        position = said["position"]
        if position is not None and not is_number(position):
            raise RecordError("position", f"must be a number, is {lines.short(position)}")
        query = self._reading.same(lines.text(said["query"], "query"))
        if not query and self._columns["query"]:
            raise RecordError("query", "is empty")
        levels = (lines.text(said[f"category{i}"], f"category{i}") for i in (1, 2, 3))
        color = lines.text(said["color"], "color")
        product = Product(
            product_id,
            lines.text(said["title"], "title"),
            lines.text(said["description"], "description"),
            (picture,),
            self._reading.same(tuple(level for level in levels if level)),
            self._reading.same((("color", (color,)),)) if color else (),
            self._part,
        )
        known = self._products.get(product_id)
        self._products[product_id] = product if known is None else fill(known, product)
        return product_id, query, math.inf if position is None else float(position)


def _dicts(batches: Iterator[Any], where: str) -> Iterator[dict[str, Any] | RecordError]:
    """Yields the rows of record batches by column, or what is wrong with one.

    Raises:
        DataError: a page is damaged; the message says `where`.
    """
    import pyarrow

    while True:
        try:
            batch = next(batches, None)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{where} cannot be read: {shown(error)}") from error
        if batch is None:
            return
        try:
            yield from batch.to_pylist()
        except UnicodeDecodeError:
            for row in range(batch.num_rows):
                try:
                    (said,) = batch.slice(row, 1).to_pylist()
                except UnicodeDecodeError:
                    said = RecordError("row", "a text is not UTF-8")
                yield said
