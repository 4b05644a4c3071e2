"""One streaming pass over JSON Lines files: errors by file and line, counts, and a digest of every byte."""

import collections
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from moon_jax.config import DataConfig
from moon_jax.data.records import Box, DataError, ImageRef, well_formed
from moon_jax.data.strict_json import unique_json

T = TypeVar("T")
NAMED_EXAMPLES = 5  # skipped records that the report names


class RecordError(ValueError):
    """One record that cannot be used: which field, and why."""

    def __init__(self, field: str, problem: str):
        super().__init__(f"{field}: {problem}")
        self.field = field


class Reading:
    """What a pass over the files has met: it skips or refuses bad records (config.data.on_error), counts and hashes."""

    def __init__(self, config: DataConfig):
        self._config = config
        self._digest = hashlib.sha256()
        self._same: dict[Any, Any] = {}
        self._reasons: collections.Counter[str] = collections.Counter()
        self._examples: list[str] = []
        self.counts: collections.Counter[str] = collections.Counter(records=0, skipped=0)

    def parse(self, path: pathlib.Path, function: Callable[[int, dict[str, Any]], T]) -> Iterator[T]:
        """Yields `function(line_number, record)` for every line of a file, less the records that are skipped.

        Lines end at a line feed only; blank lines and a byte order mark are ignored.

        Raises:
            DataError: a bad record (JSON, UTF-8, `RecordError` from `function`) and config.data.on_error is "raise".
        """
        self._digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                self._digest.update(line)
                if not line.strip():
                    continue
                self.counts["records"] += 1
                try:
                    result = function(number, parse_line(line))
                except RecordError as error:
                    self._skip(f"{path}:{number}: {error}", error)
                else:
                    yield result

    def _skip(self, message: str, error: RecordError) -> None:
        if self._config.on_error == "raise":
            raise DataError(f'{message} (config.data.on_error = "skip" leaves such records out)') from error
        self.counts["skipped"] += 1
        self._reasons[error.field] += 1
        if len(self._examples) < NAMED_EXAMPLES:
            self._examples.append(message)

    def same(self, value: T) -> T:
        """Returns the first value equal to this one: millions of records share few categories and attributes."""
        return self._same.setdefault(value, value)

    def report(self) -> dict[str, Any]:
        """Returns the counts, with the skipped records by reason.

        Raises:
            DataError: a larger share of the records than config.data.max_skipped_share was skipped.
        """
        skipped, records = self.counts["skipped"], self.counts["records"]
        if skipped > self._config.max_skipped_share * records:
            raise DataError(
                f"{self._config.path}: {skipped} of {records} records cannot be used, a larger share than "
                f"config.data.max_skipped_share = {self._config.max_skipped_share:g}; the first:\n  "
                + "\n  ".join(self._examples)
            )
        return dict(self.counts) | {"skipped_reasons": dict(self._reasons), "skipped_examples": tuple(self._examples)}

    def fingerprint(self) -> str:
        """Returns the sha256 of all bytes read so far and of the settings that decide what becomes of them."""
        c = self._config
        settings = json.dumps([c.format, c.parts, c.mbe_keys, c.unseen_share, c.on_error])
        digest = self._digest.copy()
        digest.update(settings.encode())
        return digest.hexdigest()


def parse_line(line: bytes) -> dict[str, Any]:
    """Returns the JSON object that a line is.

    Raises:
        RecordError: not UTF-8, not JSON, or not an object.
    """
    try:
        record = unique_json(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise RecordError("line", f"not UTF-8 at byte {error.start} (0x{line[error.start]:02x})") from error
    except ValueError as error:
        raise RecordError("line", f"not JSON ({error})") from error
    if not isinstance(record, dict):
        raise RecordError("line", f"a record is a JSON object, this is {short(record)}")
    return record


def short(value: Any) -> str:
    """Returns a value as an error shows it, at most 80 characters."""
    text = repr(value)
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


def is_number(value: Any) -> bool:
    """Returns whether the value is a finite number (Python reads NaN and Infinity from JSON, and true is an int)."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53


def box(value: Any, field: str) -> Box | None:
    """Returns [x1, y1, x2, y2] as floats; None is None. It may reach beyond the picture, not be empty or inverted."""
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 4 or not all(is_number(v) for v in value):
        raise RecordError(field, f"must be null or four finite numbers [x1, y1, x2, y2], is {short(value)}")
    x1, y1, x2, y2 = map(float, value)
    if x1 >= x2 or y1 >= y2:
        raise RecordError(field, f"must have x1 < x2 and y1 < y2, is {short(value)}")
    return x1, y1, x2, y2


def image(value: Any, where: Any, folder: pathlib.Path, field: str) -> ImageRef | None:
    """Returns a picture and its box, the path resolved against `folder`; None or "" is None. Files are not touched."""
    path = text(value, field)
    if not path:
        return None
    if path.startswith(("http://", "https://")):
        raise RecordError(field, f"is a URL ({short(path)}); download the pictures and name the files here")
    return ImageRef(os.path.join(folder, path), box(where, field + " box"))
