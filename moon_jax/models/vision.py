"""The vision tower of Qwen2.5-VL and Qwen2-VL: patches in window order -> visual tokens as wide as the text model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from moon_jax.config import ModelConfig, VisionConfig
from moon_jax.models.layers import gathered, layer_norm, normal, ones, rms_norm, scan_layers, stack, zeros
from moon_jax.models.rope import vision_angles
from moon_jax.models.vision_blocks import BLOCKS, EPS
from moon_jax.parallel.collectives import enter_tensor, gather_param, leave_tensor


class Merger(nnx.Module):
    """Folds merge_unit neighbouring patches into one visual token: norm, Linear, exact GELU, Linear.

    The norm is an RMSNorm, that of Qwen2-VL a LayerNorm.
    """

    def __init__(self, config: VisionConfig, out: int, rngs: nnx.Rngs):
        d, wide = config.hidden_size, config.hidden_size * config.merge_unit
        self.norm = ones(d)
        if config.kind == "qwen2_vl":
            self.norm_bias = zeros((d,), ("norm",))
        self.fc1 = normal(rngs, (wide, wide), ("merge", "ffn"), wide)
        self.fc1_bias = zeros((wide,), ("ffn",))
        self.fc2 = normal(rngs, (wide, out), ("ffn", "embed"), wide)
        self.fc2_bias = zeros((out,), ("norm",))

    def __call__(self, x: Float[Array, "i p d"]) -> Float[Array, "tokens out"]:
        """Returns the visual tokens of all slots in the order of the patches."""
        if hasattr(self, "norm_bias"):
            x = layer_norm(x, self.norm[...], self.norm_bias[...], EPS)
        else:
            x = rms_norm(x, self.norm[...], EPS)
        h = enter_tensor(x.reshape(-1, self.fc1.shape[0]), self.fc1[...])
        h = jax.nn.gelu(h @ self.fc1[...] + self.fc1_bias[...], approximate=False)
        return leave_tensor(h @ self.fc2[...]) + self.fc2_bias[...]


class VisionTower(nnx.Module):
    """Patch embedding, blocks, merger. Runs on an all-padding buffer too, with exactly zero gradients."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        vision = config.vision
        self.patch_embed = normal(
            rngs,
            (vision.temporal_patch_size, vision.patch_dim, vision.hidden_size),
            ("frames", "patch", "vision_embed"),
            vision.temporal_patch_size * vision.patch_dim,
        )
        self.blocks = stack(functools.partial(BLOCKS[vision.kind], vision), vision.depth, rngs)
        self.merger = Merger(vision, config.text.hidden_size, rngs)
        self.config = config

    def __call__(
        self,
        patches: Float[Array, "i p patch_dim"],
        pictures: Int[Array, "i p"],
        windows: Int[Array, "i p"],
        positions: Int[Array, "i p 2"],
    ) -> Float[Array, "tokens d"]:
        """Returns visual tokens [I * P / merge_unit, D] in window order.

        Args:
            patches: one frame of each patch; a still picture repeats it, so the kernel's frames are added up instead.
            pictures: number of the picture within its slot, 0 = padding.
            windows: number of the attention window within the slot.
            positions: row and column of each patch in its picture.
        """
        config, vision = self.config, self.config.vision
        dtype = jnp.dtype(config.dtype)
        kernel = gather_param(self.patch_embed, jnp.float32).sum(axis=0).astype(dtype)
        x = patches.astype(dtype) @ kernel
        windows = jnp.where(pictures > 0, windows + 1, 0)
        angles = vision_angles(positions, vision.head_dim)
        full = None
        if vision.kind == "qwen2_5_vl":
            full = jnp.asarray(np.isin(np.arange(vision.depth), vision.full_blocks))

        def block(block, x, full):
            return block(x, full, angles, pictures, windows, vision.window_patches, config.attention_impl), None

        x, _ = scan_layers(self.blocks, block, x, full, dtype=dtype, remat=config.remat)
        return gathered(self.merger, dtype)(x)
