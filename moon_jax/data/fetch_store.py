"""Fetching many pictures into an image store."""

import asyncio
import collections
import concurrent.futures
import dataclasses
import itertools
import pathlib
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

from moon_jax.data.fetch import Fetcher, FetchError, Limits
from moon_jax.data.fetch_urls import UrlFile, first_mentions
from moon_jax.data.records import DataError
from moon_jax.data.store import digests
from moon_jax.data.store_encode import Encoded, StoreSettings, encode
from moon_jax.data.store_writer import SHARD_PICTURES, Journal, Part, Shard, absent, known, next_number, seal, writing

WAITING = 16  # URLs that are under way or wait for their host's turn, for each connection
GIVE_UP = 1000  # pictures in a row that fail for reasons that may pass: the network is down


@dataclasses.dataclass(frozen=True)
class Plan:
    """Where pictures come from and go to."""

    input: UrlFile
    folder: pathlib.Path
    settings: StoreSettings
    limits: Limits
    part: Part
    threads: int = 2  # that decode
    shard_pictures: int = SHARD_PICTURES
    give_up: int = GIVE_UP


@dataclasses.dataclass
class Fetched:
    """What a run has done."""

    there_before: int = 0
    dead_before: int = 0
    stored: int = 0
    stopped: bool = False
    failed: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    about: dict[str, int] = dataclasses.field(default_factory=dict)  # requests, retries, redirects, bytes
    index: dict[str, Any] = dataclasses.field(default_factory=dict)  # of the whole store


async def fetch_all(plan: Plan, stop: asyncio.Event) -> Fetched:
    """Fetches the pictures that are not in the store, and writes its index; returns what was done.

    What cannot be had is counted by kind and listed in failed-HOST.jsonl: dead links ("again": false) are not asked for
    by a later run, the others are. When `stop` is set, no further URLs are begun, and what is under way is finished.
    A killed run loses the pictures of the shard that was being written.

    Raises:
      DataError: no URLs; another writer or other settings; or `give_up` pictures in a row failed for passing reasons.
    """
    folder, part = plan.folder, plan.part
    found = plan.input.scan()
    with writing(folder, plan.settings, part):
        path = folder / f"failed-{part.number:03d}.jsonl"
        dead = [line for line in Journal.read(path) if line.get("again") is False and isinstance(line.get("key"), str)]
        mine = first_mentions(found) & part.holds(found)
        new = mine & absent(found, known(folder))
        todo = new & absent(found, digests([line["key"] for line in dead]))
        done = Fetched(int((mine & ~new).sum()), int((new & ~todo).sum()))
        shards = _Shards(plan)
        with tqdm(total=int(mine.sum()), initial=int((mine & ~todo).sum()), unit="picture", desc="fetching") as bar:
            run = _Run(plan, done, shards, Journal(path, dead), bar)
            try:
                await run.all(plan.input.urls(todo), stop)
            finally:
                run.journal.close()
                shards.finish()
        done.index = await asyncio.to_thread(seal, folder)  # it may wait for another part
    return done


class _Shards:
    """The shard that is open, and the next ones."""

    def __init__(self, plan: Plan):
        self._plan, self._number = plan, next_number(plan.folder, plan.part)
        self._shard: Shard | None = None

    def add(self, key: str, picture: Encoded) -> None:
        if self._shard is None:
            self._shard = Shard(self._plan.folder, f"{self._plan.part.number:03d}-{self._number:06d}")
            self._number += 1
        self._shard.add(key, picture)
        if len(self._shard) >= self._plan.shard_pictures:
            self.finish()

    def finish(self) -> None:
        if self._shard is not None:
            shard, self._shard = self._shard, None
            shard.finish()


class _Run:
    """The tasks of one run, one for each picture that is under way."""

    def __init__(self, plan: Plan, done: Fetched, shards: _Shards, journal: Journal, bar: tqdm):
        self._plan, self._done, self._shards, self.journal, self._bar = plan, done, shards, journal, bar
        self._failed_in_a_row = 0
        self._running: set[asyncio.Task] = set()
        self._error: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    async def all(self, urls: Iterator[str], stop: asyncio.Event) -> None:
        """Ends when all URLs are done, or, after `stop`, the requests that are under way."""
        with concurrent.futures.ThreadPoolExecutor(self._plan.threads) as self._threads:
            async with Fetcher(self._plan.limits) as self._fetcher:
                feeding, stopping = asyncio.create_task(self._feed(urls)), asyncio.create_task(stop.wait())
                try:
                    await asyncio.wait({feeding, stopping, self._error}, return_when=asyncio.FIRST_COMPLETED)
                    self._done.stopped = not feeding.done() and stop.is_set()
                    if feeding.done():
                        feeding.result()
                    feeding.cancel()
                    while self._running and not self._error.done():
                        if stop.is_set():  # those that wait for their turn would take long
                            waiting = self._running - self._fetcher.asking
                            self._done.stopped |= bool(waiting)
                            for task in waiting:
                                task.cancel()
                        await asyncio.wait(self._running, timeout=0.2)
                finally:
                    ending = {feeding, stopping, *self._running}
                    for task in ending:
                        task.cancel()
                    await asyncio.gather(*ending, return_exceptions=True)
                    self._done.about = dict(self._fetcher.counts)
        if self._error.done():
            raise self._error.result()

    async def _feed(self, urls: Iterator[str]) -> None:
        """Keeps so many URLs under way that a slow host does not hold up the others."""
        room = asyncio.Semaphore(WAITING * self._plan.limits.connections)

        def end(task: asyncio.Task) -> None:
            self._running.discard(task)
            room.release()
            if not task.cancelled() and task.exception() is not None and not self._error.done():
                self._error.set_result(task.exception())

        while batch := await asyncio.to_thread(lambda: list(itertools.islice(urls, 256))):
            for url in batch:
                await room.acquire()
                task = asyncio.create_task(self._one(url))
                self._running.add(task)
                task.add_done_callback(end)

    async def _one(self, url: str) -> None:
        try:
            picture = await self._fetcher.fetch(url, self._encode)
        except FetchError as error:
            self.journal.add(url, str(error), kind=error.kind, again=error.again)
            self._done.failed[error.kind] += 1
            self._failed_in_a_row = self._failed_in_a_row + 1 if error.again else 0
            if self._failed_in_a_row >= self._plan.give_up:
                raise DataError(
                    f"the last {self._failed_in_a_row} pictures all failed, is the network there? The last: {url}: "
                    f"{error}. The same command goes on from here"
                ) from error
        else:
            self._shards.add(url, picture)
            self._done.stored += 1
            self._failed_in_a_row = 0
        self._bar.set_postfix(failed=self._done.failed.total(), refresh=False)
        self._bar.update()

    async def _encode(self, content: bytes) -> Encoded:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, encode, content, self._plan.settings)
