"""Exact nearest neighbours: blockwise matmul and top-k, never the full score matrix.

The gallery is cut into blocks of rows, and every device has a run of neighbouring blocks. One program scores a group of
queries against one block on each device, a second one chooses the best among a few blocks and what was held before; the
lists of the devices are merged at the end. The shapes of the first depend on the number of queries and rows and on
`block`, not on the devices, and what follows the matmul only chooses: so the result has the same bits on any number of
devices of a kind.
"""

import functools
import math
import os
import queue
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Float32, Int32

_AXIS = "gallery"
_QUERIES_UNIT = 4
_GALLERY_UNIT = 64  # no part of a matmul kernel's tile is left over, where sums have another order: equal rows tie
_PASS_GROUPS = 32  # groups of queries that stay on the devices while the gallery goes by
_MOST_THREADS = 8  # enough that choices wait for no thread, and each holds the scores of its turn
_CHOICE_BLOCKS = 8  # blocks scored before the best are chosen: a choice sorts what it holds, however little is new


def top_k(
    queries: Float[np.ndarray, "q d"],
    gallery: Float[np.ndarray, "n width"],  # width = d is checked below, in words
    k: int,
    block: tuple[int, int] = (512, 3584),
    devices: Sequence[jax.Device] | None = None,
) -> tuple[Float32[np.ndarray, "q k"], Int32[np.ndarray, "q k"]]:
    """Returns the k highest dot products of every query with the gallery and their gallery indices, best first.

    Equal scores rank by gallery index, so of equal rows the first comes first. Products are computed in float32 at the
    highest precision. The gallery may be a memory-mapped file: it is read block by block, and kept on accelerators
    where it is needed more than once and they have the room; in the host's memory no second copy is made. Beside the
    gallery, up to 32 groups of queries with their best k and up to 16 blocks are held, and the scores of a group
    against 8 blocks, for each of at most 8 threads.

    Args:
        queries: one row per query.
        gallery: one row per candidate.
        k: how many to return, at most the size of the gallery.
        block: queries and gallery rows scored at once. More queries make a faster matmul; by default the scores, and
            XLA's copy of a gallery block on a CPU, are below 32 MiB, beyond which glibc maps fresh pages every time.
        devices: over which the gallery is spread, by default those of this process. With devices of several processes
            each of them calls this with the same arguments, reads its own part and gets the whole result.

    Raises:
        ValueError: k does not fit the gallery, the widths differ, or an embedding or a product is not finite.
    """
    _check(queries, gallery, k, block)
    scores, indices = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int32)
    if not len(queries):
        return scores, indices
    query_rows = _block_rows(len(queries), block[0], _QUERIES_UNIT)
    gallery_rows = _block_rows(len(gallery), block[1], _GALLERY_UNIT)
    shards = _Shards(gallery, gallery_rows, list(jax.local_devices() if devices is None else devices))
    starts = range(0, len(queries), query_rows)
    with ThreadPoolExecutor(shards.threads) as pool:
        for first in range(0, len(starts), _PASS_GROUPS):
            here = starts[first : first + _PASS_GROUPS]
            last_pass = here[-1] == starts[-1]
            groups = [shards.everywhere(_rows(queries, start, query_rows)) for start in here]
            for start, best in zip(here, _search(groups, shards, k, last_pass, pool.submit), strict=True):
                at = slice(start, start + query_rows)
                scores[at], indices[at] = (np.asarray(x)[: len(scores[at])] for x in best)
    if not np.isfinite(scores).all():
        row = np.flatnonzero(~np.isfinite(scores).all(axis=1))[0]
        raise ValueError(f"products of query embedding {row} overflow float32: embeddings should be unit vectors")
    return scores, indices


class _Best(NamedTuple):
    """What each device found so far among its rows, for a group of queries."""

    scores: Float32[Array, "devices b k"]  # best first
    indices: Int32[Array, "devices b k"]  # lowest first among equal scores
    unsound: Bool[Array, " devices"]  # whether a product was not finite


class _Scored(NamedTuple):
    """Scores that wait for the next choice; one such is used again and again, as fresh memory would cost more."""

    scores: Float32[Array, "devices b k+rows*blocks"]  # the first k are for what is held
    unsound: Bool[Array, " devices"]


class _Shards:
    """The gallery over a mesh of devices: step by step one block of every device's run of blocks."""

    def __init__(self, gallery: Float[np.ndarray, "n d"], rows: int, devices: list[jax.Device]):
        blocks, alone = -(-len(gallery) // rows), len({device.process_index for device in devices}) == 1
        if alone:
            devices = devices[:blocks]  # others would have nothing but padding
        # Accelerators work on while the host waits; several processes have to start their programs in the same order.
        self.threads = min(os.cpu_count() or 1, _MOST_THREADS) if alone and devices[0].platform == "cpu" else 1
        self.mesh = Mesh(np.array(devices), _AXIS, axis_types=(AxisType.Auto,))
        self.gallery, self.rows, self.steps = gallery, rows, -(-blocks // len(devices))
        self._kept: dict[int, jax.Array] = {}

    def block(self, step: int, last_pass: bool) -> Float32[Array, "devices rows d"]:
        """Returns the step's block of every device, and keeps it for later passes where that is wise."""
        if step in self._kept:
            return self._kept[step]

        def read(index: tuple[slice, ...]) -> Float32[np.ndarray, "1 rows d"]:
            device = index[0].start or 0
            return _rows(self.gallery, (device * self.steps + step) * self.rows, self.rows)[None]

        shape = (self.mesh.size, self.rows, self.gallery.shape[1])
        block = jax.make_array_from_callback(shape, NamedSharding(self.mesh, P(_AXIS)), read)
        if not last_pass and (self._kept or _has_room(self.mesh, self.steps * math.prod(shape[1:]) * 4)):
            self._kept[step] = block
        return block

    def everywhere(self, rows: Float32[np.ndarray, "b d"]) -> Float32[Array, "b d"]:
        """Returns the rows on every device."""
        return jax.make_array_from_callback(rows.shape, NamedSharding(self.mesh, P()), lambda index: rows[index])

    def nothing(self, b: int, k: int) -> _Best:
        """Returns the state before the first step: places that lose against every real row. As k <= n, all are taken.

        Their index is past the gallery.
        """
        size = np.int32(len(self.gallery))
        return _Best(self._filled(np.float32(-np.inf), b, k), self._filled(size, b, k), self._filled(np.False_))

    def unscored(self, b: int, k: int) -> _Scored:
        """Returns room for the scores of the blocks of a choice."""
        scores = self._filled(np.float32(0), b, k + self.rows * min(self.steps, _CHOICE_BLOCKS))
        return _Scored(scores, self._filled(np.False_))

    def _filled(self, value: Any, *shape: int) -> jax.Array:
        with jax.set_mesh(self.mesh):  # made on the devices: what is numpy's is copied when it is donated
            return jnp.full((self.mesh.size, *shape), value, device=NamedSharding(self.mesh, P(_AXIS)))


def _search(
    groups: Sequence[Float32[Array, "b d"]], shards: _Shards, k: int, last_pass: bool, submit: Callable[..., Any]
) -> list[tuple[Float32[Array, "b k"], Int32[Array, "b k"]]]:
    """Returns scores and indices of every group after one pass over the gallery.

    Turns are taken in threads of their own: a CPU chooses the best on one core while others multiply for another group
    or the next turn. No group waits for the others, as long as the blocks of two turns are enough for all of them.

    Raises:
        ValueError: an embedding of the gallery or a product with it is not finite.
    """
    score, choose, merge = _programs(shards.mesh)
    free: queue.SimpleQueue[_Scored] = queue.SimpleQueue()
    for _ in range(min(shards.threads, 2 * len(groups))):  # as many as turns that are taken at once
        free.put(shards.unscored(len(groups[0]), k))

    def turn(
        before: Future[_Best], queries: Float32[Array, "b d"], blocks: list[Float32[Array, "devices rows d"]], at: int
    ) -> _Best:
        run, size = np.int32(shards.steps * shards.rows), np.int32(len(shards.gallery))
        scored = free.get()
        try:
            with jax.set_mesh(shards.mesh):  # a thread has its own; and not the one that the caller may have set
                for place, block in enumerate(blocks):
                    start = np.int32((at + place) * shards.rows)
                    scored = score(scored, queries, block, np.int32(k + place * shards.rows), start, run, size)
                best = before.result()  # it has come to a thread earlier; what is scored above does not wait for it
                best, scored = choose(best, scored, np.int32(at * shards.rows), run, k + len(blocks) * shards.rows)
                return jax.block_until_ready(best)
        finally:
            free.put(scored)

    before: list[Future[_Best]] = []
    best = [submit(shards.nothing, len(queries), k) for queries in groups]
    for at in range(0, shards.steps, _CHOICE_BLOCKS):
        wait(before)
        steps = range(at, min(at + _CHOICE_BLOCKS, shards.steps))
        blocks = [shards.block(step, last_pass) for step in steps]  # while they work on those before
        before, best = best, [submit(turn, *pair, blocks, at) for pair in zip(best, groups, strict=True)]
    best = [one.result() for one in best]
    with jax.set_mesh(shards.mesh):
        merged = [merge(one) for one in best]
    if any(bool(unsound) for _, _, unsound in merged):
        _check_finite("gallery", shards.gallery, shards.rows)
        raise ValueError("products with the gallery overflow float32: embeddings should be unit vectors")
    return [(scores, indices) for scores, indices, _ in merged]


@functools.lru_cache(maxsize=8)
def _programs(mesh: Mesh) -> tuple[Callable[..., _Scored], Callable[..., tuple[_Best, _Scored]], Callable[..., Any]]:
    """Returns what scores a block and what chooses on every device, and what merges their lists at the end."""
    here, everywhere = P(_AXIS), P()
    in_specs = (here, everywhere, here, everywhere, everywhere, everywhere, everywhere)
    score = jax.jit(jax.shard_map(_score, mesh=mesh, in_specs=in_specs, out_specs=here), donate_argnums=0)

    def choose(best: _Best, scored: _Scored, start: Array, run: Array, width: int) -> tuple[_Best, _Scored]:
        local, in_specs = functools.partial(_choose, width=width), (here, here, everywhere, everywhere)
        return jax.shard_map(local, mesh=mesh, in_specs=in_specs, out_specs=here)(best, scored, start, run)

    chosen = jax.jit(choose, donate_argnums=(0, 1), static_argnums=4)
    return score, chosen, jax.jit(_merge, out_shardings=NamedSharding(mesh, P()))


def _score(
    scored: _Scored,
    queries: Float32[Array, "b d"],
    block: Float32[Array, "1 rows d"],
    place: Int32[Array, ""],
    start: Int32[Array, ""],
    run: Int32[Array, ""],
    size: Int32[Array, ""],
) -> _Scored:
    """Returns the scores with those of one device's block written from column `place` on.

    Args:
        scored: of the device.
        queries: the group.
        block: the device's block.
        place: where its scores go.
        start: of the block in the device's run of rows.
        run: rows of a device.
        size: of the gallery; rows past it are padding.
    """
    scores = jnp.einsum(
        "bd,cd->bc", queries, block[0], precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32
    )
    real = jax.lax.axis_index(_AXIS) * run + start + jnp.arange(block.shape[1], dtype=jnp.int32) < size
    # A row with NaN or infinity makes its product with any query so: one query tells.
    unsound = jnp.any(real & ~jnp.isfinite(scores[0]))
    scores = jnp.where(scores == 0, 0.0, scores)  # -0.0 would rank below 0.0
    scores = jnp.where(real, scores, -jnp.inf)
    whole = jax.lax.dynamic_update_slice(scored.scores, scores[None], (0, 0, place))
    return _Scored(whole, scored.unsound | unsound)


def _choose(
    best: _Best, scored: _Scored, start: Int32[Array, ""], run: Int32[Array, ""], width: int
) -> tuple[_Best, _Scored]:
    """Returns the best of one device after some more blocks, and the room for the next ones.

    Args:
        best: of the blocks before, whose gallery indices are lower.
        scored: scores of the blocks after the k first columns.
        start: of the first block in the device's run of rows.
        run: rows of a device.
        width: columns that count; what lies past them is of another choice.
    """
    held, first = best.scores.shape[2], jax.lax.axis_index(_AXIS) * run + start
    whole = jax.lax.dynamic_update_slice(scored.scores, best.scores, (0, 0, 0))
    # top_k puts the lower position first among equals, which is the lower index: what is held lies before the blocks.
    scores, at = jax.lax.top_k(whole[0, :, :width], held)
    old = jnp.take_along_axis(best.indices[0], jnp.minimum(at, held - 1), axis=1)
    indices = jnp.where(at < held, old, first + at - held)
    return _Best(scores[None], indices[None], best.unsound | scored.unsound), _Scored(whole, scored.unsound)


def _merge(best: _Best) -> tuple[Float32[Array, "b k"], Int32[Array, "b k"], Bool[Array, ""]]:
    """Returns the best of all devices, and whether a product was not finite; devices are in the order of their rows."""
    devices, b, k = best.scores.shape
    scores, indices = (jnp.swapaxes(x, 0, 1).reshape(b, devices * k) for x in best[:2])
    scores, at = jax.lax.top_k(scores, k)
    return scores, jnp.take_along_axis(indices, at, axis=1), jnp.any(best.unsound)


def _has_room(mesh: Mesh, needed: int) -> bool:
    """Returns whether accelerators have the room to keep so many bytes each and as much again for the work.

    A CPU has not: its memory is the one that the gallery lies in.
    """
    stats = [device.memory_stats() for device in mesh.devices.flat if device.process_index == jax.process_index()]
    return all(s and 2 * needed < s["bytes_limit"] - s["bytes_in_use"] for s in stats)


def _check(queries: np.ndarray, gallery: np.ndarray, k: int, block: tuple[int, int]) -> None:
    if queries.ndim != 2 or gallery.ndim != 2:
        raise ValueError(f"queries and gallery are [rows, width]; their shapes are {queries.shape} and {gallery.shape}")
    if queries.shape[1] != gallery.shape[1]:
        raise ValueError(f"queries have {queries.shape[1]} dimensions, the gallery has {gallery.shape[1]}")
    if not 1 <= k <= len(gallery):
        raise ValueError(f"k is {k}; it must lie in 1..{len(gallery)}, the size of the gallery")
    if min(block) < 1:
        raise ValueError(f"block must hold at least one row of each, got {block}")
    _check_finite("query", queries, block[1])


def _check_finite(name: str, rows: Float[np.ndarray, "n d"], at_once: int) -> None:
    """Complains of rows with NaN or infinity, in float32; no array of the size of all rows is made."""
    bad = np.zeros(len(rows), bool)
    for start in range(0, len(rows), at_once):
        part = rows[start : start + at_once]
        bad[start : start + at_once] = ~np.isfinite(_rows(part, 0, len(part))).all(axis=1)
    if bad.any():
        raise ValueError(f"{bad.sum()} {name} embeddings are not finite, the first is row {bad.argmax()}")


def _rows(rows: Float[np.ndarray, "n d"], start: int, size: int) -> Float32[np.ndarray, "size d"]:
    """Returns rows start..start+size in float32, without a copy if they are; zero rows fill what lies past the end."""
    part = rows[start : start + size]
    with np.errstate(over="ignore"):  # float64 that does not fit becomes infinite, which is found
        if len(part) == size:
            return np.ascontiguousarray(part, np.float32)
        block = np.zeros((size, rows.shape[1]), np.float32)
        block[: len(part)] = part
    return block


def _block_rows(n: int, most: int, unit: int) -> int:
    """Returns how many of n rows a block has: even shares, rounded up for few distinct shapes, so few compilations."""
    share = -(-n // -(-n // most))
    return min(most, -(-share // unit) * unit)
