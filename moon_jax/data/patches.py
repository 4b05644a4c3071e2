"""RGB pictures in, patches as the vision tower reads them out."""

import dataclasses

import numpy as np
from jaxtyping import Float32, Float64, UInt8
from PIL import Image

from moon_jax.config import DataConfig, Role, VisionConfig
from moon_jax.data.grids import picture_grid, tile_grid, tile_limits

BLOCK_LINES = 4  # lines of merge blocks that are turned into patches at a time

# Statistics of the channels: CLIP's, as all processors of Qwen2-VL and Qwen2.5-VL have them; ImageNet's for InternVL.
_CLIP = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
_IMAGENET = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture as the vision tower reads it."""

    patches: Float32[np.ndarray, "n patch_dim"]  # (channels, patch, patch) each, block-major (positions.block_major)
    grid: tuple[int, int]  # patches (high, wide)
    role: Role  # IMAGE, or CORE for the crop of the product


def patchify(
    image: Image.Image, vision: VisionConfig, min_pixels: int, max_pixels: int, role: Role = Role.IMAGE
) -> Picture:
    """Returns the patches of an RGB picture, equal to those of transformers' image processors to 1e-6.

    InternVL cuts a picture into square tiles, which lie one below the other here (`picture_grid`). One frame only:
    transformers repeats a still picture `temporal_patch_size` times; the model adds its kernel's frames up instead.
    Bytes are put into order before they become floats, four times as large, and a few lines of blocks at a time, so
    that they stay in the cache and little new memory is touched (`benchmarks/images.py`).

    Raises:
      ValueError: the longer side is more than 200 times the shorter one.
    """
    p, m = vision.patch_size, vision.spatial_merge_size
    gh, gw = picture_grid(image.height, image.width, vision, min_pixels, max_pixels)
    if vision.kind == "internvl":
        pixels = _tiles(image, vision.intern.image_size, *tile_limits(min_pixels, max_pixels, vision.intern.image_size))
    else:
        pixels = np.asarray(_resized(image, gw * p, gh * p))
    lines = pixels.reshape(gh // m, m, p, gw // m, m, 3 * p).view(f"V{3 * p}")[..., 0]  # one item each
    lines = lines.transpose(0, 3, 1, 4, 2)
    mean, std = statistics(vision.kind)
    scale, shift = (np.repeat(x, p * p).astype(np.float32) for x in (1 / (255 * std), -mean / std))
    patches = np.empty((gh // m, gw * m, 3 * p * p), np.float32)
    for top in range(0, gh // m, BLOCK_LINES):
        part = patches[top : top + BLOCK_LINES]
        pixels = lines[top : top + BLOCK_LINES].copy().view(np.uint8).reshape(*part.shape[:2], p * p, 3)
        part[...] = pixels.swapaxes(2, 3).reshape(part.shape)
        part *= scale
        part += shift
    return Picture(patches.reshape(gh * gw, 3 * p * p), (gh, gw), role)


def statistics(kind: str) -> tuple[Float64[np.ndarray, "3"], Float64[np.ndarray, "3"]]:
    """Returns the mean and the deviation of the channels, of 0..1, for a kind of vision tower."""
    return _IMAGENET if kind == "internvl" else _CLIP


def _resized(image: Image.Image, width: int, height: int) -> Image.Image:
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BICUBIC)


def _tiles(image: Image.Image, tile: int, fewest: int, most: int) -> UInt8[np.ndarray, "h w 3"]:
    """Returns the tiles of a picture one below the other, row by row, then the whole of it if there are several."""
    rows, columns = tile_grid(image.height, image.width, tile, fewest, most)
    cut = np.asarray(_resized(image, columns * tile, rows * tile)).reshape(rows, tile, columns, tile, 3)
    tiles = cut.transpose(0, 2, 1, 3, 4).reshape(-1, tile, 3)
    if rows * columns == 1:
        return tiles
    return np.concatenate([tiles, np.asarray(_resized(image, tile, tile))])


def blank(data: DataConfig, vision: VisionConfig) -> Picture:
    """Returns the smallest white picture: what stands for a document of which nothing else is left."""
    side = vision.patch_size * vision.spatial_merge_size
    return patchify(Image.new("RGB", (side, side), (255, 255, 255)), vision, data.min_pixels, data.max_pixels)
