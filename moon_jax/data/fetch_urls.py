"""The URLs in a JSON Lines file: counted and told apart in one pass, then read again in their order."""

import collections
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt64
from tqdm import tqdm

from moon_jax.data import policy
from moon_jax.data.records import DataError
from moon_jax.data.sources import lines
from moon_jax.data.store import digests

_BATCH = 100_000


class UrlFile:
    """The URLs under some keys of the records of a file; a key may hold one or a list.

    "query.image" is the key "image" of the object (or of each object of the list) under "query".
    """

    KEYS = (  # of our own layout (sources/jsonl.py), and of MBE
        "query.image", "positive.images", "positive.image", "negative.images", "negative.image", "images", "image",
        "doc_image",
    )  # fmt: skip

    def __init__(self, path: pathlib.Path, keys: Sequence[str]):
        self.path, self.keys = path, tuple(keys)
        self.counts: collections.Counter[str] = collections.Counter()

    def scan(self) -> UInt64[np.ndarray, "n 2"]:
        """Returns the digests of all mentions of a URL in order, 16 bytes each, and fills `counts`.

        Raises:
          DataError: no such file, or no record has one of the keys; the message lists the keys that are there.
        """
        self.counts.clear()
        there: set[str] = set()
        parts, batch = [np.empty((0, 2), np.uint64)], []
        with tqdm(desc=f"reading {self.path.name}", unit="record", mininterval=1) as bar:
            for record in self._records(self.counts):
                bar.update()
                if len(there) < 1000:
                    there.update(_names(record))
                batch += self._urls(record, self.counts)
                if len(batch) >= _BATCH:
                    parts.append(digests(batch))
                    batch = []
        parts.append(digests(batch))
        found = np.concatenate(parts)
        if not len(found):
            raise DataError(
                f"{self.path}: no record has a URL under --keys={','.join(self.keys)} "
                f"({self.counts['records']} records, {self.counts['bad_records']} of them broken); they have the keys "
                f"{', '.join(map(repr, sorted(there)[:50])) or 'none'}"
            )
        return found

    def urls(self, wanted: Bool[np.ndarray, " n"]) -> Iterator[str]:
        """Yields the URLs of the mentions that are wanted."""
        mentions = (url for record in self._records(None) for url in self._urls(record, None))
        for mention, url in enumerate(mentions):
            if mention >= len(wanted):
                return  # the file has grown since it was scanned
            if wanted[mention]:
                yield url

    def _records(self, counts: collections.Counter[str] | None) -> Iterator[dict[str, Any]]:
        try:
            with self.path.open("rb") as file:
                for line in file:
                    if not line.strip():
                        continue
                    try:
                        record = lines.parse_line(line)
                    except lines.RecordError:
                        record = None
                    if counts is not None:
                        counts["records" if record is not None else "bad_records"] += 1
                    if record is not None:
                        yield record
        except (FileNotFoundError, IsADirectoryError) as error:
            raise DataError(f"--input: there is no file {self.path}") from error

    def _urls(self, record: dict[str, Any], counts: collections.Counter[str] | None) -> list[str]:
        given = [value for key in self.keys for value in _under(record, key) if value not in ("", None)]
        urls = [policy.well_formed(v).strip() for v in given if isinstance(v, str)]
        urls = [url for url in urls if "://" in url]
        if counts is not None:
            counts["not_urls"] += len(given) - len(urls)
        return urls


def _under(record: dict[str, Any], key: str) -> Iterator[Any]:
    """Yields what a record has under a key, the key as it stands or as a way through objects and lists of them."""
    if key in record:
        yield from lines.several(record[key])
        return
    name, dot, rest = key.partition(".")
    for inner in lines.several(record.get(name)) if dot else ():
        if isinstance(inner, dict):
            yield from _under(inner, rest)


def _names(record: dict[str, Any]) -> Iterator[str]:
    """Yields the keys of a record as --keys takes them, one level deep."""
    for key, value in record.items():
        inner = [name for one in lines.several(value) if isinstance(one, dict) for name in one]
        yield from (f"{key}.{name}" for name in inner) if inner else (str(key),)


def first_mentions(found: UInt64[np.ndarray, "n 2"]) -> Bool[np.ndarray, " n"]:
    """Returns which mentions are the first of their URL."""
    _, first = np.unique(found, axis=0, return_index=True)
    out = np.zeros(len(found), bool)
    out[first] = True
    return out
