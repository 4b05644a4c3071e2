"""Writing an image store: shards that appear whole or not at all, a journal of what is left out, and the index."""

import collections
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
import re
import uuid
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from jaxtyping import Bool, UInt64

from moon_jax.data.records import DataError
from moon_jax.data.store import FORMAT, INDEX, LINES, RECORDS, ROW, SETTINGS, digests, open_shard, shard_names
from moon_jax.data.store_encode import Encoded, StoreSettings
from moon_jax.data.whole_file import sync

SHARD_PICTURES = 1024
_STORE_ANEW = "remove the two files of this shard and run the command again: its pictures are then stored anew"
_START_ANEW = "write the store into another folder, or remove this one"
_WRITE = "group_size:1,uncompressed"  # a picture file does not shrink, and is read alone


@dataclasses.dataclass(frozen=True)
class Part:
    """The share of the pictures that one of several machines writes into the same store."""

    number: int = 0
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> "Part":
        """Returns the part that "2/8" names: number 2 of 0 .. 7.

        Raises:
          DataError: it names none.
        """
        match = re.fullmatch(r"(\d{1,3})/(\d{1,3})", text)
        if not match or not int(match[1]) < int(match[2]):
            raise DataError(f"--host={text}: must be NUMBER/OF, e.g. 0/4, 1/4, 2/4 and 3/4 on four machines")
        return cls(int(match[1]), int(match[2]))

    def holds(self, keys: UInt64[np.ndarray, "n 2"]) -> Bool[np.ndarray, " n"]:
        """Returns which digests of keys belong to this part."""
        return keys[:, 1] % np.uint64(self.of) == self.number


class Shard:
    """A shard that is being written."""

    def __init__(self, folder: pathlib.Path, name: str):
        self._base = folder / name
        self._writing = folder / f".{name}{RECORDS}.unfinished"
        self._writer = ArrayRecordWriter(str(self._writing), _WRITE)
        self._lines: list[str] = []

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, key: str, picture: Encoded) -> None:
        """Writes a picture."""
        self._writer.write(picture.content)
        said = {
            "key": key,
            "height": picture.size[1],
            "width": picture.size[0],
            "source_height": picture.source_size[1],
            "source_width": picture.source_size[0],
            "bytes": len(picture.content),
            "crc32": zlib.crc32(picture.content),
        }
        self._lines.append(json.dumps(said, ensure_ascii=False) + "\n")

    def finish(self) -> None:
        """Gives the shard its name, or removes it where it is empty. What is named is on the disk whole."""
        self._writer.close()
        if not self._lines:
            self._writing.unlink()
            return
        sync(self._writing)
        self._writing.rename(f"{self._base}{RECORDS}")
        write_whole(pathlib.Path(f"{self._base}{LINES}"), "".join(self._lines).encode("utf-8", "replace"))

    def discard(self) -> None:
        """Removes what was written."""
        self._writer.close()
        self._writing.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(folder: pathlib.Path, settings: StoreSettings, part: Part) -> Iterator[None]:
    """Makes the folder, checks that it is of these settings, and keeps other writers of the same part out.

    Raises:
      DataError: the store has other settings, or the part is being written by another process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    said = {"format": FORMAT, **dataclasses.asdict(settings)}
    if not (folder / SETTINGS).exists() and any(folder.iterdir()) and not list(folder.glob(".lock-*")):
        raise DataError(f"{folder} holds other files and no image store: choose another folder")
    with (folder / f".lock-{part.number:03d}").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"image store {folder}: another process writes part {part.number} of it") from None
        except OSError:  # a file system without locks
            pass
        with _alone(folder):
            _agree(folder, said)
        for left_over in folder.glob(f".{part.number:03d}-*.unfinished"):
            left_over.unlink()
        yield


@contextlib.contextmanager
def _alone(folder: pathlib.Path) -> Iterator[None]:
    """Waits until no other part is at what the parts have in common: the settings and the index."""
    with (folder / ".lock-index").open("w") as lock:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _agree(folder: pathlib.Path, said: Mapping[str, Any]) -> None:
    """Writes the settings, or checks that those that are there are the same."""
    if not (folder / SETTINGS).exists():
        write_whole(folder / SETTINGS, (json.dumps(said, indent=2) + "\n").encode())
    elif (there := _settings(folder)) != said:
        changed = ", ".join(f"{k} was {there.get(k)!r}, is {said.get(k)!r}" for k in said if there.get(k) != said[k])
        raise DataError(f"image store {folder}: its pictures were stored with other settings: {changed}")


def next_number(folder: pathlib.Path, part: Part) -> int:
    """Returns the number of the next shard of a part."""
    there = [int(path.name[4:10]) for path in folder.glob(f"{part.number:03d}-*{RECORDS}")]
    return max(there, default=-1) + 1


def known(folder: pathlib.Path) -> UInt64[np.ndarray, "n 2"]:
    """Returns the digests of the keys of all pictures in finished shards.

    Raises:
      DataError: a shard's lines are damaged, or its pictures are not all there.
    """
    parts = [digests(_keys(folder, name)) for name in shard_names(folder)]
    return np.concatenate(parts) if parts else np.empty((0, 2), np.uint64)


def absent(keys: UInt64[np.ndarray, "n 2"], there: UInt64[np.ndarray, "m 2"]) -> Bool[np.ndarray, " n"]:
    """Returns which digests are not among those that are there."""
    pair = np.dtype([("high", "<u8"), ("low", "<u8")])
    return ~np.isin(np.ascontiguousarray(keys).view(pair)[:, 0], np.ascontiguousarray(there).view(pair)[:, 0])


def seal(folder: pathlib.Path) -> dict[str, Any]:
    """Writes the index over all finished shards, of all parts, and returns its description.

    One writer at a time: of parts that end together, each sees the shards of those before it.
    """
    with _alone(folder):
        return _seal(folder)


def _seal(folder: pathlib.Path) -> dict[str, Any]:
    names, tables = shard_names(folder), []
    counts: collections.Counter[str] = collections.Counter()
    for number, name in enumerate(names):
        said = list(_lines(folder, name))
        table = np.zeros(len(said), ROW)
        table["high"], table["low"] = digests([line["key"] for line in said]).T
        table["shard"], table["record"] = number, np.arange(len(said))
        for field in ("height", "width", "source_height", "source_width", "crc32"):
            table[field] = [line[field] for line in said]
        counts["bytes"] += sum(line["bytes"] for line in said)
        tables.append(table)
    rows = np.concatenate(tables) if tables else np.zeros(0, ROW)
    rows = rows[np.argsort(rows, order=("high", "low"), kind="stable")]
    same = (rows["high"][1:] == rows["high"][:-1]) & (rows["low"][1:] == rows["low"][:-1])
    rows = rows[np.concatenate([[True], ~same])] if len(rows) else rows
    digest = hashlib.sha256(rows.tobytes()).hexdigest()
    table_name = f"index-{digest[:16]}.npy"
    with (folder / f".{table_name}").open("wb") as file:
        np.save(file, rows)
    sync(folder / f".{table_name}")
    (folder / f".{table_name}").rename(folder / table_name)
    settings = _settings(folder)
    about = {"rows": table_name, "sha256": digest, "pictures": len(rows), "bytes": counts["bytes"], "shards": names}
    write_whole(folder / INDEX, (json.dumps(settings | about, indent=1) + "\n").encode())
    for old in folder.glob("index-*.npy"):
        if old.name != table_name:
            old.unlink(missing_ok=True)
    return settings | about


class Journal:
    """A JSON Lines file of keys and why they are not in the store; every line is on its way to the disk at once."""

    def __init__(self, path: pathlib.Path, kept: list[Mapping[str, Any]]):
        """Starts the file anew with the lines that are kept of an earlier one."""
        write_whole(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept).encode())
        self._file = path.open("a", encoding="utf-8", errors="replace")

    @staticmethod
    def read(path: pathlib.Path) -> list[dict[str, Any]]:
        """Returns the lines of a journal that are JSON objects: the last one may not be whole."""
        if not path.exists():
            return []
        out = []
        for line in path.read_text("utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                out.append(json.loads(line))
        return [line for line in out if isinstance(line, dict)]

    def add(self, key: str, reason: str, **more: Any) -> None:
        """Writes a line."""
        self._file.write(json.dumps({"key": key, "reason": reason, **more}, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Ends writing."""
        self._file.close()


def write_whole(path: pathlib.Path, content: bytes) -> None:
    """Writes a file that has its name only when all of it is on the disk.

    Unlike in `whole_file` its first name is its own: without locks, several machines may write the same file at once.
    """
    writing = path.with_name(f".{path.name}.unfinished-{uuid.uuid4().hex}")
    with writing.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    writing.rename(path)


def _settings(folder: pathlib.Path) -> dict[str, Any]:
    try:
        said = json.loads((folder / SETTINGS).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{folder / SETTINGS}: cannot be read ({error}); {_START_ANEW}") from error
    if not isinstance(said, dict):
        raise DataError(f"{folder / SETTINGS}: holds {type(said).__name__}, not an object; {_START_ANEW}")
    return said


def _keys(folder: pathlib.Path, name: str) -> list[str]:
    """Returns the keys of a shard whose pictures are all there, as far as its size and its footer tell."""
    said, path = list(_lines(folder, name)), folder / f"{name}{RECORDS}"
    try:
        size, least = path.stat().st_size, sum(line["bytes"] for line in said)
        if size < least:
            raise DataError(f"{size} bytes, fewer than its pictures have")
        with contextlib.closing(open_shard(folder, name)) as reader:
            if (there := reader.num_records()) != len(said):
                raise DataError(f"it has {there} pictures, not {len(said)}")
    except Exception as error:  # whatever the library raises on a damaged file
        raise DataError(f"{path}: is damaged or missing ({error}); {_STORE_ANEW}") from error
    return [line["key"] for line in said]


def _lines(folder: pathlib.Path, name: str) -> Iterator[dict[str, Any]]:
    path = folder / f"{name}{LINES}"
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                said = json.loads(line)
                said["key"].encode()
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise DataError(f"{path}:{number}: is damaged ({error!r}); {_STORE_ANEW}") from error
            yield said
