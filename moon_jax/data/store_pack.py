"""Packing the pictures of a data set into an image store, shard by shard, in several processes."""

import collections
import concurrent.futures
import dataclasses
import itertools
import multiprocessing
import os
import pathlib
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from tqdm import tqdm

from moon_jax.data.picture_files import ImageError
from moon_jax.data.records import DataError, ImageSource
from moon_jax.data.store import digests
from moon_jax.data.store_encode import StoreSettings, encode
from moon_jax.data.store_writer import SHARD_PICTURES, Journal, Part, Shard, absent, known, next_number, seal, writing

NAMED_EXAMPLES = 10
Chunk = Sequence[tuple[str, ImageSource]]
Skipped = list[tuple[str, str]]  # (key, why)


@dataclasses.dataclass(frozen=True)
class Packed:
    """What a run of `pack` has done; the counts are of the part."""

    stored: int
    there_before: int
    skipped: int
    index: Mapping  # of the whole store


def pack(
    pictures: Mapping[str, ImageSource],
    folder: pathlib.Path,
    settings: StoreSettings,
    *,
    part: Part,
    workers: int = 0,
    on_error: str = "raise",
    max_skipped_share: float = 0.01,
    shard_pictures: int = SHARD_PICTURES,
) -> Packed:
    """Stores the pictures that are not in the store yet, and writes its index.

    Killed at any time, it goes on from its last whole shard when it is called again. Pictures that were skipped are
    tried again then.

    Args:
      pictures: by key.
      folder: of the store; made if it is not there.
      settings: what pictures are stored as.
      part: the share of the keys that is this machine's.
      workers: processes; 0 = none beside this one.
      on_error: "raise" | "skip": what a picture that cannot be read does.
      max_skipped_share: of the part's pictures; more than it stops the run.
      shard_pictures: pictures of a shard.

    Raises:
      DataError: a picture cannot be read, or too many; another writer; other settings.
    """
    with writing(folder, settings, part):
        keys = sorted(pictures)
        hashed = digests(keys)
        mine = part.holds(hashed)
        todo = mine & absent(hashed, known(folder))
        queue = [keys[i] for i in np.flatnonzero(todo)]
        chunks = [queue[i : i + shard_pictures] for i in range(0, len(queue), shard_pictures)]
        first, counts = next_number(folder, part), collections.Counter(there_before=int((mine & ~todo).sum()))
        journal, examples = Journal(folder / f"skipped-{part.number:03d}.jsonl", []), []
        jobs = [
            (folder, f"{part.number:03d}-{first + i:06d}", [(key, pictures[key]) for key in chunk], settings, on_error)
            for i, chunk in enumerate(chunks)
        ]
        with tqdm(total=int(mine.sum()), initial=counts["there_before"], unit="picture", desc="packing") as bar:
            for stored, skipped in _run(jobs, workers):
                counts.update(stored=stored, skipped=len(skipped))
                for key, why in skipped:
                    journal.add(key, why)
                examples += [why for _, why in skipped][: NAMED_EXAMPLES - len(examples)]
                bar.update(stored + len(skipped))
                bar.set_postfix(skipped=counts["skipped"], refresh=False)
                if counts["skipped"] > max_skipped_share * mine.sum():
                    raise DataError(
                        f"{counts['skipped']} of {int(mine.sum())} pictures cannot be used, a larger share than "
                        f"--max_skipped_share = {max_skipped_share:g}; the first:\n  " + "\n  ".join(examples)
                    )
        journal.close()
        return Packed(counts["stored"], counts["there_before"], counts["skipped"], seal(folder))


def _run(jobs: Sequence[tuple], workers: int) -> Iterator[tuple[int, Skipped]]:
    """Yields the results of the shards as they are done; an error ends the others before they begin."""
    if workers == 0:
        for job in jobs:
            yield _pack_shard(*job)
        return
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(workers, context, initializer=_begin_worker, initargs=(os.getpid(),))
    try:
        waiting = iter(jobs)
        running = {pool.submit(_pack_shard, *job) for job in itertools.islice(waiting, 2 * workers)}
        while running:
            done, running = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in done:
                yield future.result()
                running |= {pool.submit(_pack_shard, *job) for job in itertools.islice(waiting, 1)}
    except concurrent.futures.process.BrokenProcessPool as error:
        raise DataError(
            "a worker process died (out of memory?); the same command goes on from the last shard"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_worker(parent: int) -> None:
    """Leaves Ctrl-C to the main process, and ends when that has been killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _pack_shard(
    folder: pathlib.Path, name: str, chunk: Chunk, settings: StoreSettings, on_error: str
) -> tuple[int, Skipped]:
    """Writes one shard; returns how many pictures it has, and what was skipped."""
    shard, skipped = Shard(folder, name), []
    try:
        for key, source in chunk:
            try:
                picture = encode(source, settings)
            except (ImageError, OSError, ValueError) as error:
                if on_error == "raise":
                    raise DataError(f"picture {key}: {error} (--on_error=skip leaves it out)") from error
                skipped.append((key, str(error)))
            else:
                shard.add(key, picture)
        shard.finish()
    except BaseException:
        shard.discard()
        raise
    return len(chunk) - len(skipped), skipped
