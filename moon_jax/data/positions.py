"""Where tokens and patches are: rotary positions of text and pictures, and the order of attention windows.

Everything here depends on sizes only, so it is computed on the host, once per document or cached per grid. Rules of
Qwen2.5-VL (transformers `get_rope_index`, `rot_pos_emb`, `get_window_index`); a grid is (rows, columns) in patches.
"""

import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int32

from moon_jax.config import VisionConfig


def mrope_positions(
    is_image: Bool[np.ndarray, "n"], grids: Sequence[tuple[int, int]], merge: int
) -> Int32[np.ndarray, "3 n"]:
    """Returns the (t, h, w) rotary positions of one document's tokens, starting at 0.

    A text token advances all three by 1. The visual tokens of a picture have t = cur, h = cur + row, w = cur + column
    on the merged grid; the token after them continues at cur + max(rows, columns).

    Args:
      is_image: true on visual tokens.
      grids: of the pictures in the order of their runs, in patches.
      merge: side of the square of patches that becomes one visual token.

    Raises:
      ValueError: if the runs of visual tokens do not have the lengths that the grids give.
    """
    index = np.flatnonzero(is_image)
    merged = [(h // merge, w // merge) for h, w in grids]
    if len(index) != sum(h * w for h, w in merged):
        raise ValueError(f"{len(index)} visual tokens do not match the grids {list(grids)} at merge {merge}")
    advance = np.where(is_image, 0, 1).astype(np.int32)
    offset = np.zeros((3, len(is_image)), np.int32)
    done = 0
    for h, w in merged:
        run = index[done : done + h * w]
        done += h * w
        if run[-1] - run[0] != h * w - 1:
            raise ValueError(f"the {h * w} visual tokens of a picture are torn apart at token {run[0]}")
        offset[1, run] = np.repeat(np.arange(h, dtype=np.int32), w)
        offset[2, run] = np.tile(np.arange(w, dtype=np.int32), h)
        advance[run[-1]] = max(h, w)
    return (np.cumsum(advance) - advance).astype(np.int32) + offset


def token_positions(
    is_image: Bool[np.ndarray, "n"], grids: Sequence[tuple[int, int]], vision: VisionConfig
) -> Int32[np.ndarray, "3 n"]:
    """Returns the (t, h, w) rotary positions of one document's tokens: `mrope_positions`, or InternVL's plain places.

    Args:
      is_image: true on visual tokens.
      grids: of the pictures in the order of their runs, in patches.
      vision: sizes of patches.

    Raises:
      ValueError: if the runs of visual tokens do not have the lengths that the grids give.
    """
    positions = mrope_positions(is_image, grids, vision.spatial_merge_size)
    if vision.kind == "internvl":
        return np.broadcast_to(np.arange(len(is_image), dtype=np.int32), positions.shape)
    return positions


@functools.lru_cache(maxsize=4096)
def patch_positions(grid: tuple[int, int], merge: int) -> Int32[np.ndarray, "n 2"]:
    """Returns the (row, column) of every patch in block-major order: (rows/m, columns/m, m, m), as patches are stored.

    The array is cached: read-only.
    """
    rows, columns = np.indices(grid, dtype=np.int32)
    out = np.stack([block_major(rows, merge), block_major(columns, merge)], axis=-1)
    out.setflags(write=False)
    return out


def block_major(values: Int32[np.ndarray, "h w"], merge: int) -> Int32[np.ndarray, "n"]:
    """Returns a raster grid's values block by block: the merge x merge patches of a visual token are neighbours."""
    h, w = values.shape
    return values.reshape(h // merge, merge, w // merge, merge).transpose(0, 2, 1, 3).reshape(-1)


@functools.lru_cache(maxsize=4096)
def window_order(
    grid: tuple[int, int], vision: VisionConfig
) -> tuple[Int32[np.ndarray, "units"], Int32[np.ndarray, "units"]]:
    """Returns the merge units of a picture in window order, and the number of the window of each, in that order.

    Windows are `vision.window` units wide and high, taken row by row, ragged at the right and bottom edges; the units
    inside a window are taken row by row too (transformers `get_window_index`). The arrays are cached: read-only.
    """
    h, w = grid[0] // vision.spatial_merge_size, grid[1] // vision.spatial_merge_size
    rows, columns = np.indices((h, w), dtype=np.int32)
    across = -(-w // vision.window)
    windows = (rows // vision.window * across + columns // vision.window).reshape(-1)
    order = np.argsort(windows, kind="stable").astype(np.int32)
    numbers = windows[order]
    order.setflags(write=False)
    numbers.setflags(write=False)
    return order, numbers
