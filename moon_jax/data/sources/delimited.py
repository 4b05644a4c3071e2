"""Rows of a CSV or TSV file with a header: one bad row is told, and never takes the rows behind it along."""

import collections
import csv
import itertools
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from moon_jax.data.policy import MAX_LINE_BYTES
from moon_jax.data.records import DataError
from moon_jax.data.sources import lines
from moon_jax.data.sources.lines import Reading, RecordError

FIELD_LIMIT = 10_000_000  # characters of one cell; Python's own limit is 131,072
ROW_LINES = 1000  # that a row with line ends in its quotes may span

Cells = dict[str, Any] | RecordError  # a row by the names of its columns, or what is wrong with it


def csv_rows(
    reading: Reading, path: pathlib.Path, check: Callable[[list[str]], None] = lambda header: None
) -> Iterator[tuple[int, Cells]]:
    """Yields (first line of the row, cells by column) of a file with a header; its separator is the header's.

    Lines end at LF, CR LF or, where the header does so, at CR. A row that cannot be read, for example one whose quote
    is never closed, is one bad row: reading goes on at the next line. With tabs between the cells, quotes that do not
    balance on their line are plain characters where the line then has as many cells as the header.

    Raises:
        DataError: the header cannot be read, or names a column twice.
    """
    csv.field_size_limit(FIELD_LIMIT)
    with reading.open(path) as file:
        texts = _Lines(line.decode("utf-8", "surrogateescape") for line in _split(map(_checked, file)))
        first = texts.take(1)[0].removeprefix("\ufeff") if texts.more() else ""
        between = max("\t,;|", key=first.count)
        try:
            header = [cell.strip() for cell in _cells([first], between)]
        except csv.Error as error:
            raise DataError(f"{path}:1: must be a header of column names, is not CSV ({error})") from error
        if not any(header) or lines.has_bad_bytes(first):
            raise DataError(f"{path}:1: must be a header of column names in UTF-8, is {lines.short(first)}")
        if twice := sorted({name for name in header if header.count(name) > 1}):
            raise DataError(f"{path}:1: two columns have the name {', '.join(map(repr, twice))}")
        check(header)
        while texts.more():
            number = texts.number + 1
            cells = _next(texts, between, header)
            if cells:
                yield number, cells


class _Lines:
    """Lines that can be given back."""

    def __init__(self, texts: Iterator[str]):
        self._texts, self._waiting = texts, collections.deque[str]()
        self.number = 0  # of the last line that was taken

    def more(self) -> bool:
        """Returns whether there is another line."""
        self._waiting.extend(itertools.islice(self._texts, 0 if self._waiting else 1))
        return bool(self._waiting)

    def take(self, most: int) -> list[str]:
        """Returns the next lines, at most so many."""
        self._waiting.extend(itertools.islice(self._texts, max(0, most - len(self._waiting))))
        taken = [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
        self.number += len(taken)
        return taken

    def give_back(self, taken: list[str]) -> None:
        """Puts lines back that were taken last."""
        self._waiting.extendleft(reversed(taken))
        self.number -= len(taken)


def _next(texts: _Lines, between: str, header: list[str]) -> Cells:
    """Returns the next row and leaves what is behind it; an empty one for a blank line."""
    (line,) = texts.take(1)
    try:
        return _row(header, _cells([line], between))
    except csv.Error as error:
        problem = error
    if '"' not in line:
        return RecordError("line", f"not CSV ({problem})")
    held = [line]

    def following() -> Iterator[str]:
        yield line
        while len(held) < ROW_LINES and (more := texts.take(1)):
            held.extend(more)
            yield more[0]

    try:
        row = _row(header, _cells(following(), between))
    except csv.Error as error:
        row = RecordError("line", f"not CSV ({error})")
    plain = held if isinstance(row, dict) else held[:1]  # lines that are rows as they stand
    if between == "\t" and all(text.count(between) + 1 == len(header) for text in plain):
        texts.give_back(held[1:])
        return _row(header, line.rstrip("\r\n").split(between))
    if isinstance(row, RecordError):  # an unclosed quote found another one: what lies between may be good rows
        texts.give_back(held[1:])
    return row


def _cells(texts: Iterable[str], between: str) -> list[str]:
    return next(csv.reader(texts, delimiter=between, strict=True), [])


def _row(header: list[str], cells: list[str]) -> Cells:
    if not cells:
        return {}
    if len(cells) != len(header):
        return RecordError("line", f"has {len(cells)} cells, the header has {len(header)}")
    if any(map(lines.has_bad_bytes, cells)):
        return RecordError("line", "not UTF-8")
    return dict(zip(header, cells, strict=True))


def _checked(line: bytes) -> bytes:
    """Returns the line; one that was too long to be read as a cell that the csv module refuses."""
    return b"x" * (FIELD_LIMIT + 1) if len(line) > MAX_LINE_BYTES else line


def _split(given: Iterator[bytes]) -> Iterator[bytes]:
    """Yields the lines, cut at every CR where the first one has a CR that is not its end."""
    first = next(given, b"")
    by_return = b"\r" in first.rstrip(b"\r\n")
    for line in itertools.chain([first] if first else [], given):
        yield from line.splitlines(keepends=True) if by_return else [line]
