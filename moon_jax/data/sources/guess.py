"""Which format a file or folder is in, by the names in it and the first record, with the reason."""

import pathlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from moon_jax.config import DataConfig
from moon_jax.data import catalogue
from moon_jax.data.records import DataError
from moon_jax.data.sources import lines, m5product, marqo, muge, product1m, table
from moon_jax.data.sources.delimited import csv_rows
from moon_jax.data.sources.json_entries import entries
from moon_jax.data.sources.lines import Reading, RecordError

LOOKED_FOR = (
    "[PART.]train.jsonl or test.jsonl (jsonl, mbe), *.mbe.jsonl (mbe), *_imgs.tsv (muge), *.parquet (marqo), JSON "
    "objects of M5Product or arrays of MEP-3M, #####-separated text files (product1m), .csv, .tsv or .jsonl (table)"
)
MOST_TABLES = 20  # Parquet files that are opened until one can be read


class Guess(NamedTuple):
    """A format that fits, and what speaks for it."""

    format: str
    reason: str


def guess(path: str | pathlib.Path) -> list[Guess]:
    """Returns the formats that fit what is at a path, the best one first.

    Raises:
        DataError: there is nothing, or nothing that any reader knows; the message lists both.
    """
    path = pathlib.Path(path).expanduser().resolve()
    if not path.exists():
        raise DataError(f"{path} does not exist")
    names = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    found: list[Guess] = []
    damaged = ""
    for look in _LOOKS:
        try:
            found.extend(look(path, names))
        except DataError as error:
            damaged = f"\n{error}"
    if not found:
        there = ", ".join(p.name for p in names[:20]) or "no files"
        raise DataError(f"{path}: no known format. There is {there}; looked for {LOOKED_FOR}{damaged}")
    return found


def _lines_of_triplets(path: pathlib.Path, names: list[pathlib.Path]) -> Iterator[Guess]:
    if path.is_dir() and catalogue.stamp(path) is not None:
        yield Guess("catalogue", "the folder bears the stamp of the drawn catalogue")
        return
    files = [p for p in names if p.name.endswith(("train.jsonl", "test.jsonl"))]
    for file in files or ([path] if path.suffix == ".jsonl" and not path.name.endswith(".mbe.jsonl") else []):
        keys = _keys_of_first_line(file)
        if "query" in keys and keys & {"positive", "negative"}:
            yield Guess("jsonl", f"{file.name} has records with {', '.join(sorted(keys & {'query', 'positive'}))}")
            break
    for file in (*(p for p in names if p.name.endswith(".mbe.jsonl")), *files, path):
        if file.suffix == ".jsonl" and (keys := _keys_of_first_line(file)) & {"doc_title", "doc_image"}:
            yield Guess(
                "mbe", f"{file.name} has rows with {', '.join(sorted(k for k in keys if k.startswith('doc_')))}"
            )
            return


def _embedded(path: pathlib.Path, names: list[pathlib.Path]) -> Iterator[Guess]:
    tsv = next((p for p in names if p.name.endswith(muge.IMAGES)), None)
    if tsv is not None:
        yield Guess("muge", f"{tsv.name} holds pictures by id")
    tables = sorted(path.glob("**/*.parquet")) if path.is_dir() else [p for p in names if p.suffix == ".parquet"]
    damaged = None
    for file in tables[:MOST_TABLES]:
        try:
            columns = marqo.column_names(file)
        except DataError as error:
            damaged = damaged or error
            continue
        if "image" in columns and set(columns) & set(marqo.COLUMNS["id"]):
            yield Guess("marqo", f"{file.name} is a Parquet file with the columns {', '.join(columns)}")
        return
    if damaged:
        raise damaged


def _published(_: pathlib.Path, names: list[pathlib.Path]) -> Iterator[Guess]:
    kinds = {m5product.kind_of(path): path for path in names if path.suffix == ".json"}
    if known := [kind for kind in _M5_WORDS if kind in kinds]:
        yield Guess("m5product", f"{kinds[known[0]].name} is M5Product's {_M5_WORDS[known[0]]}")
    if (other := kinds.get("")) and _is_mep3m(other):
        yield Guess("mep3m", f"{other.name} is an array of products with class_name and img_path")
    for path in (p for p in names if p.suffix == ".txt" and product1m.role_of(p.name)):
        with path.open("rb") as file:
            first = file.readline(1 << 20)
        if first.count(product1m.BETWEEN.encode()) >= 3:
            yield Guess("product1m", f"{path.name} has fields between {product1m.BETWEEN}")
            break


def _tables(_: pathlib.Path, names: list[pathlib.Path]) -> Iterator[Guess]:
    for path in names:
        if path.suffix.lower() in (".csv", ".tsv"):
            header: list[str] = []
            try:
                next(csv_rows(Reading(DataConfig()), path, header.extend), None)
            except DataError:
                continue
        elif path.suffix.lower() == ".jsonl":
            header = list(_keys_of_first_line(path))
        else:
            continue
        columns = {name.strip().lower().replace(" ", "_") for name in header}
        known = columns & {*table.ROLES["title"], *table.ROLES["images"]}
        if known:
            yield Guess("table", f"{path.name} has the columns {', '.join(sorted(known))}")
            return


_LOOKS: tuple[Callable[[pathlib.Path, list[pathlib.Path]], Iterator[Guess]], ...] = (
    _lines_of_triplets,
    _embedded,
    _published,
    _tables,
)
_M5_WORDS = {
    "info": "object of listings (title, pv)",
    "label": "ground truth (title, label, url)",
    "query": "list of query ids",
    "gallery": "list of gallery ids",
}


def _keys_of_first_line(path: pathlib.Path) -> set[str]:
    """Returns the keys of the first line that is an object, among the first few."""
    with path.open("rb") as file:
        for _ in range(10):
            try:
                return set(lines.parse_line(file.readline(1 << 24)))
            except RecordError:
                continue
    return set()


def _is_mep3m(path: pathlib.Path) -> bool:
    try:
        _, entry = next(entries(Reading(DataConfig()), path), (0, None))
    except DataError:
        return False
    return entry is not None and isinstance(entry.value, dict) and {"img_path", "class_name"} <= entry.value.keys()
