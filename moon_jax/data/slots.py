"""How the attention windows of pictures are laid out in slots: every window inside one chunk, small pictures together.

A slot is a row of patches in which a full-attention block attends within each picture; it consists of chunks of one
full window (`vision.window_patches`), within which a windowed block attends. A ragged window does not fill its chunk,
so several share one. Sizes below are in merge units: the patches of one visual token.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from moon_jax.config import DataConfig, VisionConfig
from moon_jax.data.grids import picture_bounds
from moon_jax.data.positions import window_order


@dataclasses.dataclass(frozen=True)
class Layout:
    """The windows of one grid, gathered into groups that each fit into a chunk."""

    units: Int32[np.ndarray, "n"]  # raster numbers of the merge units in stored order, group after group
    windows: Int32[np.ndarray, "n"]  # the number of the window of each
    groups: tuple[int, ...]  # units of each group, at most a chunk's


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a picture lies: its slot, and the place in it of each unit of its layout."""

    slot: int
    units: Int32[np.ndarray, "n"]


@functools.lru_cache(maxsize=4096)
def layout(grid: tuple[int, int], vision: VisionConfig) -> Layout:
    """Returns the groups of windows of a grid in patches: by falling size, each window in the first group with room.

    The arrays are cached: read-only.
    """
    capacity = vision.window**2
    order, numbers = window_order(grid, vision)
    starts = np.flatnonzero(np.diff(numbers, prepend=-1))
    sizes = np.diff(starts, append=len(numbers))
    groups: list[list[int]] = []
    room: list[int] = []
    for window in np.argsort(-sizes, kind="stable"):
        size = int(sizes[window])
        # A full window always opens a group of its own, so that only the few ragged ones are searched for room.
        group = next((i for i, free in enumerate(room) if free >= size), None) if size < capacity else None
        if group is None:
            groups.append([])
            room.append(capacity)
            group = len(groups) - 1
        groups[group].append(window)
        room[group] -= size
    stored = np.concatenate([np.arange(starts[w], starts[w] + sizes[w]) for group in groups for w in group])
    units, windows = order[stored], numbers[stored]
    units.setflags(write=False)
    windows.setflags(write=False)
    return Layout(units, windows, tuple(capacity - free for free in room))


@functools.lru_cache(maxsize=64)
def max_picture_chunks(data: DataConfig, vision: VisionConfig) -> int:
    """Returns the most chunks that any possible picture of a run takes.

    Of the grids with the same short side, `longest_sides` gives the longest. One more column of windows never takes
    fewer chunks, so that of each remainder modulo the window only the longest grid is laid out (a grid and its
    transpose have the same windows).
    """
    merge, most = vision.spatial_merge_size, 1
    for short, longest in enumerate(picture_bounds(data, vision), start=1):
        for long in range(max(short, longest - vision.window + 1), longest + 1):
            most = max(most, len(layout((short * merge, long * merge), vision).groups))
    return most


def place(grids: Sequence[tuple[int, int]], slot_chunks: int, vision: VisionConfig) -> list[Place]:
    """Returns the places of pictures, each in the first slot with room; as many slots are opened as it takes.

    A picture of at most `slot_chunks` groups fits into an empty slot, so n pictures never need more than n slots.

    Raises:
      ValueError: a picture needs more than `slot_chunks` chunks.
    """
    capacity = vision.window**2
    slots: list[np.ndarray] = []  # free units of each chunk
    places = []
    for grid in grids:
        plan = layout(grid, vision)
        if len(plan.groups) > slot_chunks:
            raise ValueError(f"a picture of {grid[0]}x{grid[1]} patches needs {len(plan.groups)} chunks of a slot")
        for number, free in enumerate(slots):  # noqa: B007
            if free.sum() >= len(plan.units) and (chunks := _fit(plan.groups, free)) is not None:
                break
        else:
            number, free = len(slots), np.full(slot_chunks, capacity, np.int32)
            slots.append(free)
            chunks = _fit(plan.groups, free)
        assert chunks is not None
        units = []
        for chunk, size in zip(chunks, plan.groups, strict=True):
            start = chunk * capacity + capacity - free[chunk]
            units.append(np.arange(start, start + size, dtype=np.int32))
            free[chunk] -= size
        places.append(Place(number, np.concatenate(units)))
    return places


def _fit(groups: Sequence[int], free: Int32[np.ndarray, "chunks"]) -> list[int] | None:
    """Returns the first chunk with room for each group, or None where one finds none."""
    free = free.copy()
    chunks = []
    for size in groups:
        fits = free >= size
        chunk = int(fits.argmax())
        if not fits[chunk]:
            return None
        free[chunk] -= size
        chunks.append(chunk)
    return chunks
