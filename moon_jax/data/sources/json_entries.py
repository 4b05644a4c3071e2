"""The entries of one large JSON array or object, one at a time: files of gigabytes need not fit into memory."""

import codecs
import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from moon_jax.data.records import DataError
from moon_jax.data.sources.lines import Reading, RecordError, WatchedFile

CHUNK_BYTES = 1 << 20
MAX_ENTRY_CHARACTERS = 1 << 26  # damage in the middle is told from a long entry by this
MAX_DIGITS = 1000  # of an integer: Python refuses more than 4,300, and none that is meant has so many
_SPACE = re.compile(r"[ \t\r\n]*")
_NOT_UTF8 = re.compile("[\udc80-\udcff]")


class Entry(NamedTuple):
    """An element of an array (key None) or a member of an object; `problem` says what makes it unusable."""

    key: str | None
    value: Any
    problem: str

    def checked(self) -> Any:
        """Returns the value.

        Raises:
            RecordError: it is not UTF-8, an object in it names a key twice, or an integer is endless.
        """
        if self.problem:
            raise RecordError("entry", self.problem)
        return self.value


def entries(reading: Reading, path: pathlib.Path) -> Iterator[tuple[int, Entry]]:
    """Yields (number from 1, entry) of the array or object that a file is.

    Raises:
        DataError: the file is neither, or ends or is damaged in the middle: what comes behind cannot be told apart.
    """
    with reading.open(path) as file:
        yield from _Scanner(file, path).entries()


class _Scanner:
    """A window of text that moves over the file."""

    def __init__(self, file: WatchedFile, path: pathlib.Path):
        self._file, self._path = file, path
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        self._json = json.JSONDecoder(object_pairs_hook=self._object, parse_int=self._integer)
        self._text, self._at, self._ended, self._number = "", 0, False, 0
        self._twice: list[str] = []
        self._digits = 0  # of the longest integer of the entry that is too long

    def entries(self) -> Iterator[tuple[int, Entry]]:
        opening = self._next()
        closing = {"[": "]", "{": "}"}.get(opening)
        if closing is None:
            raise DataError(f"{self._path}: must be a JSON array or object, begins with {opening!r}")
        if self._peek() == closing:
            self._next()
        else:
            last = ","
            while last == ",":
                self._number += 1
                yield self._number, self._entry(closing == "}")
                last = self._next()
            if last != closing:
                self._fail(f"{last!r} where ',' or {closing!r} must stand" if last else "the file ends here")
        if self._peek():
            self._fail("something stands behind the end")

    def _entry(self, member: bool) -> Entry:
        key = None
        if member:
            key, _ = self._value()
            if not isinstance(key, str) or self._next() != ":":
                self._fail("a member must be a text, ':' and a value")
        value, source = self._value()
        problem = "not UTF-8" if _NOT_UTF8.search(source) else ""
        if self._twice:
            problem = f"named twice: {', '.join(self._twice)}"
        if self._digits:
            problem = f"has an integer of {self._digits:,} digits"
        return Entry(key, value, problem)

    def _value(self) -> tuple[Any, str]:
        """Returns the next value and its text; more of the file is read while the value does not end in the window."""
        self._peek()
        while True:
            self._twice, self._digits = [], 0
            try:
                value, end = self._json.raw_decode(self._text, self._at)
            except (json.JSONDecodeError, RecursionError) as error:
                if self._ended or len(self._text) - self._at > MAX_ENTRY_CHARACTERS:
                    self._fail(f"not JSON ({error})")
            else:
                if end + 2 < len(self._text) or self._ended:  # "1e+" at the end of the window is not yet the number
                    source, self._at = self._text[self._at : end], end
                    return value, source
            self._fill(max(CHUNK_BYTES, len(self._text) - self._at))

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            self._twice += [name for name in found if names.count(name) > 1]
        return found

    def _integer(self, said: str) -> int:
        if len(said) > MAX_DIGITS:
            self._digits = max(self._digits, len(said.lstrip("-")))
            return 0
        return int(said)

    def _peek(self) -> str:
        """Returns the next character that is no space, "" at the end."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""
            self._fill(CHUNK_BYTES)

    def _next(self) -> str:
        found = self._peek()
        self._at += len(found)
        return found

    def _fill(self, size: int) -> None:
        data = self._file.read(size)
        self._ended = not data
        self._text, self._at = self._text[self._at :] + self._decoder.decode(data, self._ended), 0

    def _fail(self, problem: str) -> None:
        raise DataError(f"{self._path}: entry {self._number}: {problem}")
