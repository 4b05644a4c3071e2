"""Writing a folder of safetensors in pieces: no tensor is ever in memory as a whole unless the caller holds it."""

import bisect
import concurrent.futures
import contextlib
import hashlib
import json
import math
import os
import pathlib
import shutil
import threading
from collections.abc import Mapping

import numpy as np
from jaxtyping import Shaped

from moon_jax.data.whole_file import sync
from moon_jax.weights.source import WeightsError
from moon_jax.weights.tensors import DTYPES, INDEX, SINGLE

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_HASH_BYTES = 4 << 20  # read back and hashed at a time
_FLUSH_BYTES = 256 << 20  # written between two requests to the kernel to get on with it

Pieces = Mapping[str, tuple[tuple[int, ...], np.dtype]]


class TensorWriter(contextlib.AbstractContextManager):
    """Writes model.safetensors, or shards with their index, from pieces that come in any order; a context manager.

    The sha256 of every file is made and the disk is kept busy beside the writing. The header of a file comes last, so
    that a file that is not complete cannot be opened. Leaving the block without an exception demands that everything
    was written; then all of it is on the disk (fsync). Leaving it with one removes the files.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        tensors: Pieces,
        max_shard_bytes: int = 2 << 30,
        metadata: Mapping[str, str] | None = None,
    ):
        """Plans the shards and makes their files.

        Args:
            folder: exists, and holds none of the files.
            tensors: (shape, dtype) by name, float32, bfloat16 or float16; shards are filled in this order.
            max_shard_bytes: of the tensors of a file; a larger tensor has a file of its own.
            metadata: strings for every header, e.g. {"format": "pt"}.

        Raises:
            WeightsError: the disk has not enough room, or another dtype.
            FileExistsError: a file is there already.
        """
        self._folder, self._tensors = pathlib.Path(folder), dict(tensors)
        if wrong := [f"{n} {d}" for n, (_, d) in tensors.items() if np.dtype(d) not in _NAMES]:
            raise WeightsError(f"cannot be stored, only float32, bfloat16 and float16 can: {', '.join(wrong)}")
        plan = _plan(self._tensors, max_shard_bytes)
        needed, free = sum(map(_nbytes, self._tensors.values())), shutil.disk_usage(folder).free
        if needed > free:
            raise WeightsError(f"{folder}: {needed / 1e9:.2f} GB are to be written, {free / 1e9:.2f} GB are free")
        self._shards: list[_Shard] = []
        self._digests: dict[str, str] | None = None
        self._of: dict[str, _Shard] = {}
        self._lock, self._unflushed, self._flush = threading.Lock(), 0, None
        self._hasher = concurrent.futures.ThreadPoolExecutor(1, "sha256")
        self._flusher = concurrent.futures.ThreadPoolExecutor(1, "fsync")
        try:
            for i, names in enumerate(plan):
                file = SINGLE if len(plan) == 1 else f"model-{i + 1:05d}-of-{len(plan):05d}.safetensors"
                self._shards.append(_Shard(self._folder / file, {n: self._tensors[n] for n in names}, metadata))
                self._of |= dict.fromkeys(names, self._shards[-1])
        except BaseException:
            self._close(remove=True)
            raise

    def write(self, name: str, index: int | tuple[int, ...], array: Shaped[np.ndarray, "..."]) -> None:
        """Writes a piece of a tensor; safe from several threads.

        Args:
            name: of the tensor.
            index: an int i: `array` holds the rows i, i + 1, ... of the first axis. A tuple of ints: `array` is what
                lies at that place of the leading axes; () = the whole tensor.
            array: of the tensor's dtype.

        Raises:
            ValueError: it does not fit there, or something was written there before.
        """
        shape, dtype = self._tensors[name]
        if isinstance(index, int):
            place, rows = (index,), len(array) if array.ndim else 0
            fits = bool(shape) and array.shape == (rows, *shape[1:]) and 0 <= index <= shape[0] - rows
        else:
            place = index
            fits = array.shape == shape[len(index) :] and all(0 <= i < n for i, n in zip(index, shape, strict=False))
        if not fits or array.dtype != dtype or len(place) > len(shape):
            raise ValueError(
                f"{array.dtype} {list(array.shape)} at {index} is no piece of {name}, {np.dtype(dtype)} {list(shape)}"
            )
        start = sum(i * math.prod(shape[axis + 1 :]) for axis, i in enumerate(place)) * array.dtype.itemsize
        shard = self._of[name]
        shard.write(name, start, array)
        with self._lock:
            reached = shard.claim(name, start, array.nbytes)
            self._unflushed += array.nbytes
            if reached - shard.asked >= _HASH_BYTES or reached == shard.size:
                shard.asked = reached
                self._submit(shard, self._hasher, shard.hash_to, reached)
            if reached == shard.size:
                self._submit(shard, self._flusher, shard.finish)
            elif self._unflushed >= _FLUSH_BYTES and (self._flush is None or self._flush.done()):
                self._unflushed, self._flush = 0, self._submit(shard, self._flusher, os.fdatasync, shard.fd)

    def digests(self) -> dict[str, str]:
        """Returns {file name: sha256 as hex} of every file, after the block."""
        if self._digests is None:
            raise ValueError("digests are known when the block is left")
        return self._digests

    def __exit__(self, kind, *exception) -> None:
        done = False
        try:
            if kind is None:
                self._finish()
                done = True
        finally:
            self._close(remove=not done)

    def _submit(self, shard: "_Shard", pool: concurrent.futures.Executor, work, *args) -> concurrent.futures.Future:
        shard.jobs = [job for job in shard.jobs if not job.done() or job.exception()]
        shard.jobs.append(pool.submit(work, *args))
        return shard.jobs[-1]

    def _finish(self) -> None:
        if missing := [name for shard in self._shards for name in shard.incomplete()]:
            raise WeightsError(f"{self._folder}: not completely written: {', '.join(missing)}")
        for shard in self._shards:
            if not shard.jobs:  # nothing but empty tensors
                self._submit(shard, self._hasher, shard.hash_to, shard.size)
                self._submit(shard, self._flusher, shard.finish)
            for job in shard.jobs:
                job.result()
        digests = {shard.path.name: shard.sha.hexdigest() for shard in self._shards}
        if len(self._shards) > 1:
            text = json.dumps(self._index(), indent=2).encode()
            with open(self._folder / INDEX, "xb") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            digests[INDEX] = hashlib.sha256(text).hexdigest()
        sync(self._folder)
        self._digests = digests

    def _index(self) -> dict:
        total = sum(map(_nbytes, self._tensors.values()))
        count = sum(math.prod(shape) for shape, _ in self._tensors.values())
        weight_map = {name: self._of[name].path.name for name in sorted(self._tensors)}
        return {"metadata": {"total_parameters": count, "total_size": total}, "weight_map": weight_map}

    def _close(self, remove: bool) -> None:
        for pool in (self._hasher, self._flusher):
            pool.shutdown(cancel_futures=True)
        for shard in self._shards:
            os.close(shard.fd)
            if remove:
                shard.path.unlink(missing_ok=True)
        self._shards = []


class _Shard:
    """A file that is being written, and how far it is complete."""

    def __init__(self, path: pathlib.Path, tensors: Pieces, metadata: Mapping[str, str] | None):
        header, position = {"__metadata__": dict(metadata)} if metadata else {}, 0
        self._starts: dict[str, int] = {}
        # wide types first, so that all tensors are aligned, as the library does it
        for name in sorted(tensors, key=lambda name: -np.dtype(tensors[name][1]).itemsize):
            (shape, dtype), size = tensors[name], _nbytes(tensors[name])
            header[name] = {
                "dtype": _NAMES[np.dtype(dtype)], "shape": list(shape), "data_offsets": [position, position + size],
            }  # fmt: skip
            self._starts[name] = position
            position += size
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        self._header = len(text).to_bytes(8, "little") + text
        self._ends = {name: start + _nbytes(tensors[name]) for name, start in self._starts.items()}
        self.path, self.size = path, len(self._header) + position
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        os.truncate(self.fd, self.size)
        self.sha, self._hashed = hashlib.sha256(self._header), len(self._header)
        self.asked = self._hashed  # up to where the hash is ordered
        self.jobs: list[concurrent.futures.Future] = []
        self._spans = [(0, 0)]  # what is written of the data: sorted, apart from each other

    def incomplete(self) -> list[str]:
        """Returns the names of tensors that were not completely written."""
        return [n for n in self._starts if not any(a <= self._starts[n] and self._ends[n] <= b for a, b in self._spans)]

    def write(self, name: str, offset: int, array: np.ndarray) -> None:
        """Writes at an offset of a tensor, in bytes."""
        view, done = memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8)), 0
        start = len(self._header) + self._starts[name] + offset
        while done < len(view):
            done += os.pwrite(self.fd, view[done : done + (1 << 30)], start + done)

    def claim(self, name: str, offset: int, size: int) -> int:
        """Notes that these bytes of a tensor are written; returns up to where the file is without gaps."""
        start = self._starts[name] + offset
        if size:
            at = bisect.bisect_right(self._spans, (start, math.inf))
            last, following = self._spans[at - 1], self._spans[at : at + 1] or [(math.inf, math.inf)]
            if last[1] > start or following[0][0] < start + size:
                raise ValueError(f"a part of {name} is written twice")
            joins_last, joins_next = last[1] == start, following[0][0] == start + size
            span = (last[0] if joins_last else start, following[0][1] if joins_next else start + size)
            self._spans[at - joins_last : at + joins_next] = [span]
        return len(self._header) + self._spans[0][1]

    def hash_to(self, target: int) -> None:
        """Hashes what is written, up to there; read back, because the pieces are gone by now."""
        buffer = memoryview(bytearray(_HASH_BYTES))
        while self._hashed < target:
            count = os.preadv(self.fd, [buffer[: target - self._hashed]], self._hashed)
            self.sha.update(buffer[:count])
            self._hashed += count

    def finish(self) -> None:
        """Writes the header, and waits until the file is on the disk."""
        os.pwrite(self.fd, self._header, 0)
        os.fsync(self.fd)


def _plan(tensors: Pieces, limit: int) -> list[list[str]]:
    """Returns the names of each file's tensors."""
    plan: list[list[str]] = [[]]
    room = limit
    for name, tensor in tensors.items():
        if plan[-1] and _nbytes(tensor) > room:
            plan.append([])
            room = limit
        plan[-1].append(name)
        room -= _nbytes(tensor)
    return plan


def _nbytes(tensor: tuple[tuple[int, ...], np.dtype]) -> int:
    shape, dtype = tensor
    return math.prod(shape) * np.dtype(dtype).itemsize
