"""Rotary position embedding: 2-D for patches, M-RoPE (time, height, width) for the language model."""

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from moon_jax.config import TextConfig


def vision_angles(positions: Int[Array, "i p 2"], head_dim: int) -> Float[Array, "i p half"]:
    """Returns the angles of each patch: [h * f, w * f], head_dim / 2 of them, float32 (Qwen2.5-VL vision rule).

    Args:
        positions: row and column of each patch in its picture.
        head_dim: width of a vision head; f has head_dim / 4 frequencies 10000^(-2 i / (head_dim / 2)).
    """
    half = head_dim // 2
    frequencies = 1.0 / 10000.0 ** (np.arange(0, half, 2, dtype=np.float32) / half)
    angles = positions.astype(jnp.float32)[..., None] * frequencies
    return angles.reshape(*positions.shape[:-1], half)


def text_angles(positions: Int[Array, "3 r s"], config: TextConfig) -> Float[Array, "r s half"]:
    """Returns the M-RoPE angles: contiguous chunks of the head_dim / 2 frequencies, chunk i turned by position row i.

    The chunks have the sizes of `mrope_section` (time, height, width); not the interleaved form of Qwen3-VL.
    """
    half = config.head_dim // 2
    frequencies = 1.0 / config.rope_theta ** (np.arange(0, half, dtype=np.float32) / half)
    row = np.repeat(np.arange(3), config.mrope_section)
    return jnp.moveaxis(positions.astype(jnp.float32)[row], 0, -1) * frequencies


def rotate(
    x: Float[Array, "*b s h d"], angles: Float[Array, "*b s half"], dtype: DTypeLike
) -> Float[Array, "*b s h d"]:
    """Returns x with its halves turned: (a cos - b sin, b cos + a sin).

    Args:
        x: queries or keys.
        angles: one per pair, the same for every head.
        dtype: type in which cos and sin are multiplied: the activations' for text, float32 for vision (HF's rule).
    """
    cos, sin = jnp.cos(angles).astype(dtype)[..., None, :], jnp.sin(angles).astype(dtype)[..., None, :]
    a, b = jnp.split(x.astype(dtype), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
