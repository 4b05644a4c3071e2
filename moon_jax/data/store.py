"""A packed image store: picture files in a few large ArrayRecord files, found by key, with an index of their sizes.

A folder with
  settings.json          what pictures were stored as (store_encode.StoreSettings)
  HOST-NUMBER.array_record, HOST-NUMBER.jsonl
                         a shard: one picture file a record; one line a record with its key, sizes and checksum
  index.json, index-*.npy
                         all shards in one table, sorted by the digest of the key; read from the disk as it is needed,
                         40 bytes a picture, shared by the processes of a machine
  skipped-HOST.jsonl, failed-HOST.jsonl
                         what was left out and why

The record of a picture is an ordinary JPEG (PNG, ...) file. Keys are what data sets call their pictures: a path
relative to the folder of the data set, or a URL.
"""

import bisect
import collections
import dataclasses
import functools
import hashlib
import json
import pathlib
import threading
import zlib
from collections.abc import Sequence

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader
from jaxtyping import Int64, UInt64

from moon_jax.data.records import DataError

FORMAT = 1
SETTINGS, INDEX, RECORDS, LINES = "settings.json", "index.json", ".array_record", ".jsonl"
ROW = np.dtype(
    [
        ("high", "<u8"), ("low", "<u8"),  # digest of the key
        ("shard", "<u4"), ("record", "<u4"),
        ("height", "<u2"), ("width", "<u2"),  # of the stored picture, upright
        ("source_height", "<u4"), ("source_width", "<u4"),  # of the picture that it was made of
        ("crc32", "<u4"),
    ]
)  # fmt: skip
_READ = "readahead_buffer_size:0,max_parallelism:0"  # best for random access
_READ_BUFFER_BYTES = 64 * 1024
_OPEN_SHARDS = 256


def digests(keys: Sequence[str]) -> UInt64[np.ndarray, "n 2"]:
    """Returns the 128-bit digests of keys as (high, low)."""
    joined = b"".join(hashlib.blake2b(key.encode("utf-8", "replace"), digest_size=16).digest() for key in keys)
    return np.frombuffer(joined, ">u8").reshape(-1, 2).astype(np.uint64)


class Store:
    """A finished store, for reading: random access by row, in any number of threads."""

    def __init__(self, folder: str | pathlib.Path):
        """Reads the small part of the index, and checks the table's checksum (once in a process).

        Raises:
          DataError: no store there, or one that is not finished or damaged.
        """
        self.folder = pathlib.Path(folder).expanduser().absolute()
        self.index = _index(self.folder)
        try:
            self.rows = np.load(self.folder / self.index["rows"], mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self.folder / self.index['rows']}: the index of the store is damaged: {error}"
            ) from error
        if self.rows.dtype != ROW or len(self.rows) != self.index["pictures"]:
            raise DataError(f"{self.folder / self.index['rows']}: is not the index that {INDEX} describes")
        self.shards: list[str] = self.index["shards"]
        self.digest: str = self.index["sha256"]
        stat = (self.folder / self.index["rows"]).stat()
        if _table_digest(str(self.folder / self.index["rows"]), stat.st_ino, stat.st_mtime_ns) != self.digest:
            raise DataError(
                f"{self.folder / self.index['rows']}: is damaged (its checksum differs from {INDEX}); run the command "
                "that writes the store again: it makes the index anew"
            )
        self._readers: collections.OrderedDict[int, ArrayRecordReader] = collections.OrderedDict()
        self._opening = threading.Lock()

    def __len__(self) -> int:
        return len(self.rows)

    def find(self, keys: Sequence[str]) -> Int64[np.ndarray, " n"]:
        """Returns the rows of keys, -1 for those that are not in the store."""
        wanted = digests(keys)
        high, low = np.ascontiguousarray(self.rows["high"]), self.rows["low"]
        at = np.searchsorted(high, wanted[:, 0]).astype(np.int64)
        if not len(self.rows):
            return np.full(len(keys), -1, np.int64)
        while True:  # ends at once unless two keys share the first half of their digests
            inside = at.clip(max=len(high) - 1)
            same = (at < len(high)) & (high[inside] == wanted[:, 0])
            hit = same & (low[inside] == wanted[:, 1])
            if not (same & ~hit).any():
                return np.where(hit, at, -1)
            at += same & ~hit

    def find_one(self, key: str) -> int:
        """Returns the row of a key, -1 without one: a few reads of the index, where `find` takes a column of it."""
        high, low = (int(half) for half in digests([key])[0])
        at = bisect.bisect_left(range(len(self.rows)), (high, low), key=self._digest_of)
        return at if at < len(self.rows) and self._digest_of(at) == (high, low) else -1

    def _digest_of(self, row: int) -> tuple[int, int]:
        entry = self.rows[row]
        return int(entry["high"]), int(entry["low"])

    def read(self, row: int | np.integer) -> bytes:
        """Returns the picture file of a row.

        Raises:
          DataError: the shard is missing or damaged, or holds another picture there.
        """
        entry = self.rows[row]
        shard, record = int(entry["shard"]), int(entry["record"])
        place = f"{self.folder / self.shards[shard]}{RECORDS}, record {record}"
        try:
            content = self._reader(shard).read([record])[0]
        except Exception as error:  # whatever the library raises on a damaged file
            raise DataError(f"{place}: cannot be read: {error}") from error
        if zlib.crc32(content) != entry["crc32"]:
            raise DataError(f"{place}: is damaged (its checksum differs from the index)")
        return content

    def _reader(self, shard: int) -> ArrayRecordReader:
        with self._opening:
            if shard in self._readers:
                self._readers.move_to_end(shard)
                return self._readers[shard]
            reader = open_shard(self.folder, self.shards[shard])
            self._readers[shard] = reader
            if len(self._readers) > _OPEN_SHARDS:
                self._readers.popitem(last=False)
            return reader


def open_shard(folder: pathlib.Path, name: str) -> ArrayRecordReader:
    """Returns a reader of the pictures of a shard; the library raises what it likes on a damaged file."""
    return ArrayRecordReader(str(folder / name) + RECORDS, _READ, file_reader_buffer_size=_READ_BUFFER_BYTES)


@functools.lru_cache(maxsize=8)
def open_store(folder: str) -> Store:
    """Returns the store of a folder, one for all that read it in this process; see `Store`."""
    return Store(folder)


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class PackedImage:
    """A picture in a store: small, and at home in any process."""

    folder: str
    row: int
    key: str

    def read(self) -> bytes:
        """Returns the picture file."""
        return open_store(self.folder).read(self.row)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the upright picture, from the index."""
        entry = open_store(self.folder).rows[self.row]
        return int(entry["width"]), int(entry["height"])

    def __str__(self) -> str:
        return f"{self.key} (in the image store {self.folder})"


def shard_names(folder: pathlib.Path) -> list[str]:
    """Returns the names of the finished shards; a shard is finished when it has its lines."""
    ends = f"[0-9][0-9][0-9]-[0-9][0-9][0-9][0-9][0-9][0-9]{LINES}"
    return sorted(path.name.removesuffix(LINES) for path in folder.glob(ends))


@functools.lru_cache(maxsize=64)
def _table_digest(path: str, inode: int, changed_ns: int) -> str:
    """Returns the sha256 of the rows of a table, computed again only where the file is another one."""
    del inode, changed_ns
    return hashlib.sha256(np.load(path, mmap_mode="r", allow_pickle=False).view(np.uint8)).hexdigest()


def _index(folder: pathlib.Path) -> dict:
    try:
        index = json.loads((folder / INDEX).read_text())
        shards, made_by = index["shards"], index["format"]
        kinds = {"rows": str, "sha256": str, "pictures": int, "bytes": int, "shards": list}
        if wrong := [name for name, kind in kinds.items() if type(index[name]) is not kind]:
            raise ValueError(f"{', '.join(wrong)} of a wrong type")
        if not all(isinstance(name, str) for name in shards):
            raise ValueError("shards are names")
    except FileNotFoundError:
        what = "is not finished: run the command that writes it again" if (folder / SETTINGS).exists() else "is none"
        raise DataError(f"image store {folder}: {what} (no {INDEX})") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{folder / INDEX}: is damaged: {error!r}; run the command that writes the store again: it makes the index "
            "anew"
        ) from error
    if made_by != FORMAT:
        raise DataError(f"{folder / INDEX}: format {made_by}, this version reads {FORMAT}")
    if shards != (there := shard_names(folder)):
        names = ", ".join(sorted(set(shards) ^ set(there))[:5])
        raise DataError(
            f"image store {folder}: its index is not of the shards that are there ({names}): a shard was removed, or "
            "the program that writes the store was killed; run its command again"
        )
    return index
