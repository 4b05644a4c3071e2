"""RGB pictures in, patches as Qwen2.5-VL reads them out."""

import dataclasses

import numpy as np
from jaxtyping import Float32
from PIL import Image

from moon_jax.config import DataConfig, Role, VisionConfig
from moon_jax.data.grids import smart_resize

BLOCK_LINES = 4  # lines of merge blocks that are turned into patches at a time

# CLIP's statistics of the channels, as all Qwen2.5-VL processors have them.
MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])
SCALE, SHIFT = (1 / (255 * STD)).astype(np.float32), (-MEAN / STD).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture as the vision tower reads it."""

    patches: Float32[np.ndarray, "n patch_dim"]  # (channels, patch, patch) each, block-major (positions.block_major)
    grid: tuple[int, int]  # patches (high, wide)
    role: Role  # IMAGE, or CORE for the crop of the product


def patchify(
    image: Image.Image, vision: VisionConfig, min_pixels: int, max_pixels: int, role: Role = Role.IMAGE
) -> Picture:
    """Returns the patches of an RGB picture, equal to those of transformers' Qwen2VLImageProcessor to 1e-6.

    One frame only: transformers repeats a still picture `temporal_patch_size` times; the model adds its kernel's frames
    up instead. Bytes are put into order before they become floats, four times as large, and a few lines of blocks at a
    time, so that they stay in the cache and little new memory is touched (`benchmarks/images.py`).

    Raises:
      ValueError: the longer side is more than 200 times the shorter one.
    """
    p, m = vision.patch_size, vision.spatial_merge_size
    height, width = smart_resize(image.height, image.width, p * m, min_pixels, max_pixels)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    gh, gw = height // p, width // p
    lines = np.asarray(image).reshape(gh // m, m, p, gw // m, m, 3 * p).view(f"V{3 * p}")[..., 0]  # one item each
    lines = lines.transpose(0, 3, 1, 4, 2)
    scale, shift = np.repeat(SCALE, p * p), np.repeat(SHIFT, p * p)
    patches = np.empty((gh // m, gw * m, 3 * p * p), np.float32)
    for top in range(0, gh // m, BLOCK_LINES):
        part = patches[top : top + BLOCK_LINES]
        pixels = lines[top : top + BLOCK_LINES].copy().view(np.uint8).reshape(*part.shape[:2], p * p, 3)
        part[...] = pixels.swapaxes(2, 3).reshape(part.shape)
        part *= scale
        part += shift
    return Picture(patches.reshape(gh * gw, 3 * p * p), (gh, gw), role)


def blank(data: DataConfig, vision: VisionConfig) -> Picture:
    """Returns the smallest white picture: what stands for a document of which nothing else is left."""
    side = vision.patch_size * vision.spatial_merge_size
    return patchify(Image.new("RGB", (side, side), (255, 255, 255)), vision, data.min_pixels, data.max_pixels)
