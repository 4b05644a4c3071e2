"""One streaming pass over files of records: errors by file and line, counts, and a digest of every byte."""

import collections
import contextlib
import hashlib
import itertools
import json
import logging
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, TypeVar

from tqdm import tqdm

from moon_jax.config import DataConfig
from moon_jax.data.policy import MAX_LINE_BYTES, Ledger, Skipped, box_problem, shown, well_formed
from moon_jax.data.records import Box, DataError, ImageRef
from moon_jax.data.strict_json import unique_json

S = TypeVar("S")
T = TypeVar("T")
Attributes = tuple[tuple[str, tuple[str, ...]], ...]
_LOG = logging.getLogger(__name__)
LARGE_BYTES = 100_000_000  # a file that takes long enough for a bar


class RecordError(ValueError):
    """One record that cannot be used: which field, and why."""

    def __init__(self, field: str, problem: str):
        super().__init__(f"{field}: {problem}")
        self.field = field


class WatchedFile:
    """A file of bytes that reports all that is read from it.

    Of a line that is longer than `policy.MAX_LINE_BYTES`, as many bytes and one are given.
    """

    def __init__(self, file: BinaryIO, watch: Callable[[bytes], Any]):
        self._file, self._watch = file, watch
        self.position = 0  # bytes read

    def __iter__(self) -> Iterator[bytes]:
        while line := self._file.readline(MAX_LINE_BYTES + 1):
            rest = line
            self._note(line)
            while len(rest) > MAX_LINE_BYTES and not rest.endswith(b"\n"):
                rest = self._file.readline(MAX_LINE_BYTES + 1)
                self._note(rest)
            yield line

    def read(self, size: int) -> bytes:
        """Returns at most `size` bytes, none at the end."""
        data = self._file.read(size)
        self._note(data)
        return data

    def _note(self, data: bytes) -> None:
        self.position += len(data)
        self._watch(data)


class Reading:
    """What a pass over the files has met: it skips or refuses bad records (config.data.on_error), counts and hashes."""

    def __init__(self, config: DataConfig, limit: int = 0):
        """Starts with nothing read; `limit` > 0 ends every file after that many records."""
        self.limit = limit
        self._config = config
        self._digest = hashlib.sha256()
        self._same: dict[Any, Any] = {}
        self._ledger = Ledger("records", config)
        self.counts: collections.Counter[str] = collections.Counter(records=0, skipped=0)

    def parse(self, path: pathlib.Path, function: Callable[[int, dict[str, Any]], T]) -> Iterator[T]:
        """Yields `function(line_number, record)` for every line of a JSON Lines file, less those that are skipped.

        Lines end at a line feed only; blank lines and a byte order mark are ignored.

        Raises:
            DataError: a bad record (JSON, UTF-8, `RecordError` from `function`) and config.data.on_error is "raise".
        """
        return self.apply(path, self.lines(path), lambda number, line: function(number, parse_line(line)))

    def apply(
        self, path: pathlib.Path, entries: Iterable[tuple[int, S]], function: Callable[[int, S], T]
    ) -> Iterator[T]:
        """Yields `function(number, entry)` for every (number, entry) of a file, less those that are skipped.

        Raises:
            DataError: `function` raised RecordError and config.data.on_error is "raise".
        """
        for number, entry in itertools.islice(entries, self.limit or None):
            self.counts["records"] += 1
            try:
                result = function(number, entry)
            except RecordError as error:
                self._skip(f"{path}:{number}: {shown(error)}", error)
            else:
                yield result

    def lines(self, path: pathlib.Path) -> Iterator[tuple[int, bytes]]:
        """Yields (number from 1, line) for every line of a file that is not blank."""
        with self.open(path) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line

    @contextlib.contextmanager
    def open(self, path: pathlib.Path) -> Iterator["WatchedFile"]:
        """Gives a file whose bytes are hashed as they are read; a large one shows a bar."""
        size = path.stat().st_size
        self.note(f"{path.name}\0{size}\0".encode())
        with (
            path.open("rb") as file,
            tqdm(
                total=size,
                desc=f"reading {path.name}",
                unit="B",
                unit_scale=True,
                leave=False,
                disable=size < LARGE_BYTES,
            ) as bar,
        ):
            yield WatchedFile(file, lambda data: (self.note(data), bar.update(len(data))))

    def note(self, data: bytes) -> None:
        """Adds what was read to the fingerprint."""
        self._digest.update(data)

    def _skip(self, message: str, error: RecordError) -> None:
        if self._config.on_error == "raise":
            raise DataError(f'{message} (config.data.on_error = "skip" leaves such records out)') from error
        self.counts["skipped"] += 1
        self._ledger.add(Skipped(error.field, message))

    def same(self, value: T) -> T:
        """Returns the first value equal to this one: millions of records share few categories and attributes."""
        return self._same.setdefault(value, value)

    def report(self) -> dict[str, Any]:
        """Returns the counts, with the skipped records by reason.

        Raises:
            DataError: a larger share of the records than config.data.max_skipped_share was skipped.
        """
        ledger, records = self._ledger, self.counts["records"]
        ledger.check(records)
        if ledger.count:
            _LOG.warning("%d of %d records cannot be used:%s", ledger.count, records, ledger.listed())
        return dict(self.counts) | {
            "skipped_reasons": dict(ledger.reasons),
            "skipped_examples": tuple(ledger.examples),
        }

    def fingerprint(self) -> str:
        """Returns the sha256 of all bytes read so far and of the settings that decide what becomes of them."""
        c = self._config
        settings = json.dumps([c.format, c.parts, c.mbe_keys, c.columns, c.unseen_share, c.on_error, self.limit])
        digest = self._digest.copy()
        digest.update(settings.encode())
        return digest.hexdigest()


def parse_line(line: bytes) -> dict[str, Any]:
    """Returns the JSON object that a line is.

    Raises:
        RecordError: not UTF-8, not JSON, or not an object.
    """
    said = decode(line)
    try:
        record = unique_json(said)
    except ValueError as error:
        raise RecordError("line", f"not JSON ({error})") from error
    if not isinstance(record, dict):
        raise RecordError("line", f"a record is a JSON object, this is {short(record)}")
    return record


def decode(line: bytes) -> str:
    """Returns a line as text, without a byte order mark; RecordError if it is not UTF-8, or too long."""
    check_length(line)
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecordError("line", f"not UTF-8 at byte {error.start} (0x{line[error.start]:02x})") from error


def check_length(line: bytes) -> None:
    """Raises RecordError for a line of which `WatchedFile` gave a part."""
    if len(line) > MAX_LINE_BYTES:
        raise RecordError("line", f"is longer than {MAX_LINE_BYTES:,} bytes")


def has_bad_bytes(text: str) -> bool:
    """Returns whether a text that was decoded with "surrogateescape" was not UTF-8."""
    return any("\udc80" <= character <= "\udcff" for character in text) if not text.isascii() else False


def short(value: Any) -> str:
    """Returns a value as an error shows it, at most 80 characters."""
    try:
        text = repr(value)
    except RecursionError:
        return "something nested too deeply"
    return text if len(text) <= 80 else text[:77] + "..."


def text(value: Any, field: str) -> str:
    """Returns a text field, stripped and well-formed; None (null or a missing key) is ""."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RecordError(field, f"must be a text, is {short(value)}")
    return well_formed(value).strip()


def group(value: Any, field: str) -> dict[str, Any]:
    """Returns a nested object; None is {}."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise RecordError(field, f"must be an object, is {short(value)}")
    return value


def several(value: Any) -> list[Any]:
    """Returns a list field; a single value is a list of one, None an empty list."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def attribute_pairs(said: str, *, between: str, inside: str, values: str = "") -> tuple[Attributes, int]:
    """Returns the (key, values) pairs that are written in one text, and how many of them were malformed.

    A pair without a key or a value is malformed; empty pairs (a separator at the end) are not counted. A key that
    occurs twice has the values of both.

    Args:
        said: the text.
        between: what stands between two pairs.
        inside: what stands between a key and its values.
        values: what stands between two values; "" = a pair has one.
    """
    pairs: dict[str, dict[str, None]] = collections.defaultdict(dict)
    malformed = 0
    for pair in filter(None, (p.strip() for p in said.split(between))):
        key, _, value = (p.strip() for p in pair.partition(inside))
        found = [v.strip() for v in (value.split(values) if values else [value]) if v.strip()]
        if key and found:
            pairs[key].update(dict.fromkeys(found))
        else:
            malformed += 1
    return tuple((key, tuple(found)) for key, found in pairs.items()), malformed


def box(value: Any, field: str) -> Box | None:
    """Returns [x1, y1, x2, y2] as floats; None is None. It may reach beyond the picture, not be empty or inverted."""
    if value is None:
        return None
    if problem := box_problem(value):
        raise RecordError(field, f"{problem}, is {short(value)}")
    x1, y1, x2, y2 = map(float, value)
    return x1, y1, x2, y2


def is_url(path: str) -> bool:
    """Returns whether a reference to a picture is an address on the web."""
    return path.startswith(("http://", "https://"))


def image(value: Any, where: Any, folder: pathlib.Path, field: str) -> ImageRef | None:
    """Returns a picture and its box; None or "" is None. Files are not touched.

    A path is resolved against `folder`. A URL stays what it is: an image store may hold its picture, and nothing else
    loads it.
    """
    path = text(value, field)
    if not path:
        return None
    return ImageRef(path if is_url(path) else os.path.join(folder, path), box(where, field + " box"))
