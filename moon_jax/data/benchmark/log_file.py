"""A log of purchases, whatever file it is in: a table of query text, query picture, purchased item and time.

CSV, TSV and JSON Lines are read line by line in this process, with errors named by file and line, and become Parquet;
Parquet is read by the engine, which looks at nothing but the columns it needs. So both engines read the same.
"""

import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import ibis
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from moon_jax.config import DataConfig
from moon_jax.data.benchmark import personal
from moon_jax.data.benchmark.engine import BATCH_ROWS, Engine, naming
from moon_jax.data.benchmark.functions import SECONDS, UTF8
from moon_jax.data.records import DataError
from moon_jax.data.sources import lines
from moon_jax.data.sources.delimited import Cells, csv_rows
from moon_jax.data.sources.lines import Reading, RecordError
from moon_jax.data.sources.table import json_rows

ROLES = {
    "query_text": ("query_text", "query", "text", "search", "search_query", "keyword", "keywords"),
    "query_image": ("query_image", "image", "query_image_url", "image_url", "picture", "photo"),
    "item_id": ("item_id", "purchased_item_id", "purchased_item", "product_id", "sku", "item", "asin"),
    "time": ("time", "purchase_time", "timestamp", "date", "datetime", "ts"),
}
EXACT = {"item_id": 2.0**53, "time": 2.0**62}  # floats below are whole numbers of 64 bits, and ids are distinct
TEXT_FILES = (".csv", ".tsv", ".jsonl")


class LogFile(NamedTuple):
    """The log, as the engine reads it."""

    rows: ir.Table  # texts query_text, query_image, item_id ("" = none) and seconds since 1970
    columns: dict[str, str]  # role -> name in the file
    report: dict[str, Any]


class Columns:
    """Finds the columns that are needed by their names, and refuses personal ones; a given name is no mistake."""

    def __init__(self, path: str, given: dict[str, str], ignored: Iterable[str]):
        """Takes names for roles, and the personal columns that were allowed to be there unread.

        Raises:
            DataError: there is no such role.
        """
        if unknown := given.keys() - ROLES.keys():
            raise DataError(f"--columns: no role {', '.join(sorted(unknown))}; the roles are {', '.join(ROLES)}")
        self._path, self._given, self._ignored = path, given, frozenset(ignored)
        self._seen: dict[tuple[str, ...], dict[str, str]] = {}
        self.there: dict[str, None] = {}

    def find(self, names: Iterable[str]) -> dict[str, str]:
        """Returns role -> name for those that are there.

        Raises:
            DataError: a column is personal and not ignored; or there is no column for items, or none for queries.
        """
        names = tuple(names)
        if names not in self._seen:
            self._seen[names] = self._find(names)
        return self._seen[names]

    def _find(self, names: tuple[str, ...]) -> dict[str, str]:
        self.there |= dict.fromkeys(names)
        wanted = self._given.values()
        refused = personal.columns(name for name in names if name not in self._ignored and name not in wanted)
        if refused:
            said = ", ".join(f"{name!r} ({kind})" for name, kind in refused.items())
            raise DataError(
                f"{self._path}: columns with personal data: {said}. Remove them from the log; or, if they must stay "
                f"there, say so with --ignore_columns={','.join(refused)}: they are then not read"
            )
        folded = {name.strip().lower().replace(" ", "_"): name for name in reversed(names)}
        found = {role: next((folded[n] for n in usual if n in folded), None) for role, usual in ROLES.items()}
        found |= {role: name for role, name in self._given.items()}
        return {role: name for role, name in found.items() if name in names and name not in self._ignored}

    def need(self, names: Iterable[str]) -> None:
        """Notes the columns of a header and checks that a purchase can be read from them; see `find` and `check`."""
        self.find(names)
        self.check()

    def check(self) -> dict[str, str]:
        """Returns role -> name over all that is there; DataError if a purchase cannot be read from it."""
        found = self.find(self.there)
        there = ", ".join(map(repr, self.there)) or "nothing"
        if lost := sorted(name for role, name in self._given.items() if role not in found):
            raise DataError(f"{self._path}: --columns: there is no column {', '.join(lost)}; there are {there}")
        if "item_id" not in found or not found.keys() & {"query_text", "query_image"}:
            raise DataError(
                f"{self._path}: a purchase needs an item and the text or the picture of a query; there are {there}. "
                "Name them: --columns=query_text=...,query_image=...,item_id=...,time=..."
            )
        return found


def open_log(engine: Engine, config: DataConfig, columns: Columns) -> LogFile:
    """Returns the log at `config.path`: one file, or a folder of Parquet files.

    Raises:
        DataError: it cannot be read, lacks a column or has a personal one; or more of its lines cannot be used than
            the policy of `config` allows.
    """
    if pathlib.Path(config.path).suffix.lower() not in TEXT_FILES:
        rows = engine.read(config.path)
        columns.find(rows.columns)
        found = columns.check()
        return LogFile(_plain(rows, found, config.path), found, {"columns_not_read": _unread(columns, found)})
    path = pathlib.Path(config.path).expanduser().absolute()
    if not path.is_file():
        raise DataError(f"there is no log {path}")
    reading = Reading(config)
    _convert(path, reading, columns, engine.folder / "log.parquet")
    found = columns.check()
    rows = engine.connection.read_parquet(str(engine.folder / "log.parquet"))
    report = {name: value for name, value in reading.report().items() if name != "records"}
    return LogFile(_timed(rows), found, report | {"columns_not_read": _unread(columns, found)})


def _unread(columns: Columns, found: dict[str, str]) -> list[str]:
    return [name for name in columns.there if name not in found.values()]


def _convert(path: pathlib.Path, reading: Reading, columns: Columns, target: pathlib.Path) -> None:
    """Writes the rows of a text file as Parquet, all columns as texts."""
    of_json = path.suffix.lower() == ".jsonl"
    entries = json_rows(reading, path) if of_json else csv_rows(reading, path, columns.need)

    def row(_: int, cells: Cells) -> tuple[str, ...]:
        if isinstance(cells, RecordError):
            raise cells
        found = columns.find(cells)
        return tuple(_text(cells.get(found.get(role)), role) for role in ROLES)

    schema = pa.schema([(role, pa.string()) for role in ROLES])
    with pq.ParquetWriter(target, schema) as writer:
        for part in _parts(reading.apply(path, entries, row)):
            writer.write_batch(pa.record_batch(list(map(pa.array, zip(*part, strict=True))), schema=schema))


def _parts(rows: Iterator[tuple[str, ...]]) -> Iterator[list[tuple[str, ...]]]:
    part: list[tuple[str, ...]] = []
    for row in tqdm(rows, "reading the log", unit="row", unit_scale=True, leave=False):
        part.append(row)
        if len(part) == BATCH_ROWS:
            yield part
            part = []
    if part:
        yield part


def _text(value: Any, role: str) -> str:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return str(value) if whole else lines.text(value, role)


def _plain(rows: ir.Table, found: dict[str, str], path: str) -> ir.Table:
    """Returns the columns of a Parquet table as texts and seconds.

    Raises:
        DataError: a column holds what is no text, id or time.
    """
    texts = {role: _as_text(rows, found[role], role, path) if role in found else ibis.literal("") for role in ROLES}
    return _timed(rows.select(**texts))


def _as_text(rows: ir.Table, name: str, role: str, path: str) -> ir.StringValue:
    column = rows[name]
    kind = column.type()
    number = role in ("item_id", "time")
    if kind.is_string():
        made = column
    elif kind.is_binary():
        made = column.isnull().ifelse("", UTF8(column.fill_null(b"")))
    elif number and (kind.is_integer() or (kind.is_decimal() and kind.scale == 0)):
        made = column.cast("string")
    elif role == "time" and (kind.is_timestamp() or kind.is_date()):
        made = column.cast("timestamp('UTC')").epoch_seconds().cast("string")
    elif number and kind.is_floating():
        made = _whole(rows, name, role, path)
    elif _any(rows, column.notnull(), path):
        raise DataError(f"{path}: the column {name!r} ({role}) holds {kind}, which cannot be used")
    else:  # of nothing but nulls, whatever type that is for the engine
        return ibis.literal("")
    return made.fill_null("")


def _whole(rows: ir.Table, name: str, role: str, path: str) -> ir.StringValue:
    """Returns floats without their fraction; ids must have none (a column with nulls often becomes one of floats)."""
    column = rows[name].cast("float64")
    fits = column.abs() < EXACT[role]  # not so for NaN, which both engines take for the greatest number
    lossy = ~column.isnan() & (~fits | (fits.ifelse(column, 0.0) % 1 != 0))
    if role == "item_id" and _any(rows, lossy, path):
        raise DataError(f"{path}: the column {name!r} ({role}) holds numbers that are no ids: write them as texts")
    return fits.ifelse(column, ibis.null("float64")).floor().cast("int64").cast("string")


def _any(rows: ir.Table, test: ir.BooleanValue, path: str) -> bool:
    with naming(path):
        return bool(rows.select(test=test).test.any().to_pyarrow().as_py())


def _timed(rows: ir.Table) -> ir.Table:
    return rows.mutate(time=SECONDS(rows.time))
