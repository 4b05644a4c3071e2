"""A JSON Lines file of records to embed: checked in one pass, then read window by window."""

import array
import dataclasses
import hashlib
import pathlib
from collections.abc import Iterator, Mapping

import numpy as np

from moon_jax.data import policy
from moon_jax.data.documents import Document
from moon_jax.data.embed_records import Reader, listed, name_of
from moon_jax.data.records import DataError
from moon_jax.data.sources import lines

Bad = dict[int, str]  # number of a record -> what is wrong with it


@dataclasses.dataclass(frozen=True)
class Scan:
    """What the first pass has found."""

    records: int
    sha256: str  # of the file
    starts: tuple[int, ...]  # byte offset of the first line of every window
    first_lines: tuple[int, ...]  # and its number
    bad: Bad
    repeated_ids: int  # records whose id an earlier one has
    unread: Mapping[str, int]  # what items have that the model does not read -> in how many


class RecordFile:
    """The records of a file as documents; blank lines are no records, and record numbers start at 0."""

    def __init__(self, path: pathlib.Path, reader: Reader, window: int):
        """Opens nothing yet.

        Args:
            path: of the file.
            reader: turns records into documents.
            window: records of a window.
        """
        self.path, self._reader, self._window = path, reader, window

    def scan(self) -> Scan:
        """Reads and checks the whole file.

        Raises:
            DataError: no such file.
        """
        digest, bad, hashes = hashlib.sha256(), {}, array.array("q")
        starts, first_lines, records = [], [], 0
        for offset, number, line in self._lines(0, 1):
            digest.update(line)
            if not line.strip():
                continue
            if records % self._window == 0:
                starts.append(offset)
                first_lines.append(number)
            found = self._read(line, number)
            if isinstance(found, str):
                bad[records] = found
            if (given := _id(line)) is not None:
                hashes.append(hash(repr(given)))  # the hash of -1 is that of -2
            records += 1
        repeated = len(hashes) - len(np.unique(np.asarray(hashes, np.int64)))
        return Scan(
            records, digest.hexdigest(), tuple(starts), tuple(first_lines), bad, repeated, dict(self._reader.unread)
        )

    def windows(self, scan: Scan, start: int) -> Iterator[list[Document | None]]:
        """Yields the documents of the windows from number `start` on, None for the records that cannot be used.

        Raises:
            DataError: the file is not the one that was scanned.
        """
        if start >= len(scan.starts):
            return
        window: list[Document | None] = []
        records = start * self._window
        for _, number, line in self._lines(scan.starts[start], scan.first_lines[start]):
            if not line.strip():
                continue
            found = self._read(line, number)
            if isinstance(found, str) != (records in scan.bad):
                raise DataError(f"{self.path}:{number}: the file has changed since it was checked")
            window.append(None if isinstance(found, str) else found)
            records += 1
            if len(window) == self._window:
                yield window
                window = []
        if records != scan.records:
            raise DataError(f"{self.path} had {scan.records} records when it was checked, and {records} now")
        if window:
            yield window

    def ids(self, scan: Scan) -> Iterator[str | int | None]:
        """Yields the id of every record, None where it has none.

        Raises:
            DataError: at the end, if the file is not the one that was scanned.
        """
        digest = hashlib.sha256()
        for _, _, line in self._lines(0, 1):
            digest.update(line)
            if line.strip():
                yield _id(line)
        if digest.hexdigest() != scan.sha256:
            raise DataError(f"{self.path} has changed since it was checked, so the vectors are of no certain records")

    def _lines(self, offset: int, number: int) -> Iterator[tuple[int, int, bytes]]:
        """Yields (offset, number, line) from a place on."""
        try:
            with self.path.open("rb") as file:
                file.seek(offset)
                for line in file:
                    yield offset, number, line
                    offset, number = offset + len(line), number + 1
        except (FileNotFoundError, IsADirectoryError) as error:
            raise DataError(f"--input: there is no file {self.path}") from error

    def _read(self, line: bytes, number: int) -> Document | str:
        """Returns the document of a line, or what is wrong with it."""
        place = f"{self.path.name}:{number}"
        record = None
        try:
            record = lines.parse_line(line)
            return self._reader.document(record, place)
        except (DataError, lines.RecordError) as error:
            return f"{name_of(record, place)}: {error}"


def check_share(bad: Bad, scan: Scan, on_error: str, max_skipped_share: float) -> None:
    """Checks that the records that cannot be used may be skipped.

    Raises:
        DataError: names the first of them.
    """
    if bad and on_error == "raise":
        raise DataError(listed(list(bad.values())) + "\n--on_error=skip leaves them out (their rows are NaN)")
    if len(bad) > max_skipped_share * scan.records:
        raise DataError(
            f"more than --max_skipped_share = {max_skipped_share:g} of the {scan.records} records: "
            + listed(list(bad.values()))
        )


def _id(line: bytes) -> str | int | None:
    """Returns the id of a record as it stands in the file; None without a usable one."""
    try:
        given = lines.parse_line(line).get("id")
    except lines.RecordError:
        return None
    return policy.well_formed(given) if isinstance(given, str) else given if type(given) is int else None
