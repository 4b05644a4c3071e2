"""The Qwen2.5-VL vision tower: patches in window order -> visual tokens as wide as the language model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int

from moon_jax.config import ModelConfig, VisionConfig
from moon_jax.models.attention import attention
from moon_jax.models.layers import gathered, normal, ones, rms_norm, scan_layers, stack, zeros
from moon_jax.models.rope import rotate, vision_angles
from moon_jax.parallel.collectives import enter_tensor, gather_param, leave_tensor

EPS = 1e-6  # hard-coded in transformers for all three kinds of vision norm; not the text model's rms_norm_eps


class VisionBlock(nnx.Module):
    """x += attention(norm1 x); x += swiglu(norm2 x); with biases, attention within windows or whole pictures."""

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        d, f, h, hd = config.hidden_size, config.intermediate_size, config.num_heads, config.head_dim
        branches = 2 * config.depth  # what is added to the residual stream starts smaller the more there is of it
        self.norm1, self.norm2 = ones(d), ones(d)
        self.qkv = normal(rngs, (d, 3, h, hd), ("vision_embed", "qkv", "heads", "head_dim"), d)
        self.qkv_bias = zeros((3, h, hd), ("qkv", "heads", "head_dim"))
        self.proj = normal(rngs, (h, hd, d), ("heads", "head_dim", "vision_embed"), d * branches)
        self.proj_bias = zeros((d,), ("norm",))
        self.gate = normal(rngs, (d, f), ("vision_embed", "ffn"), d)
        self.gate_bias = zeros((f,), ("ffn",))
        self.up = normal(rngs, (d, f), ("vision_embed", "ffn"), d)
        self.up_bias = zeros((f,), ("ffn",))
        self.down = normal(rngs, (f, d), ("ffn", "vision_embed"), f * branches)
        self.down_bias = zeros((d,), ("norm",))

    def __call__(
        self,
        x: Float[Array, "i p d"],
        full: Array,
        angles: Float[Array, "i p half"],
        pictures: Int[Array, "i p"],
        windows: Int[Array, "i p"],
        chunk: int,
        impl: str,
    ) -> Float[Array, "i p d"]:
        """Returns the residual stream after the block.

        Args:
            x: residual stream, patches in window order.
            full: scalar bool; whether this block attends within whole pictures.
            angles: rotary angles.
            pictures: picture number within the slot, 0 = padding.
            windows: window number within the slot plus one, 0 = padding; no window crosses a chunk.
            chunk: patches of a full window.
            impl: attention implementation of the blocks that attend within whole pictures.
        """
        patches = x.shape[1]
        h = enter_tensor(rms_norm(x, self.norm1[...], EPS), self.qkv[...])
        qkv = jnp.einsum("ipd,dqhx->qiphx", h, self.qkv[...]) + self.qkv_bias[...][:, None, None]
        q, k = rotate(qkv[0], angles, jnp.float32), rotate(qkv[1], angles, jnp.float32)

        def attend(q, k, v, segments, length, impl):
            parts = [t.reshape(-1, length, *t.shape[2:]) for t in (q, k, v)]
            y = attention(parts[0][:, :, :, None], *parts[1:], segments.reshape(-1, length), causal=False, impl=impl)
            return y.reshape(q.shape)

        y = lax.cond(
            full,
            lambda q, k, v: attend(q, k, v, pictures, patches, impl),
            lambda q, k, v: attend(q, k, v, windows, chunk, "xla"),  # windows are small: dense is linear in memory
            q,
            k,
            qkv[2],
        )
        x = x + leave_tensor(jnp.einsum("iphx,hxd->ipd", y, self.proj[...])) + self.proj_bias[...]
        h = enter_tensor(rms_norm(x, self.norm2[...], EPS), self.gate[...])
        h = jax.nn.silu(h @ self.gate[...] + self.gate_bias[...]) * (h @ self.up[...] + self.up_bias[...])
        return x + leave_tensor(h @ self.down[...]) + self.down_bias[...]


class Merger(nnx.Module):
    """Folds merge_unit neighbouring patches into one visual token: norm, Linear, exact GELU, Linear."""

    def __init__(self, config: VisionConfig, out: int, rngs: nnx.Rngs):
        d, wide = config.hidden_size, config.hidden_size * config.merge_unit
        self.norm = ones(d)
        self.fc1 = normal(rngs, (wide, wide), ("merge", "ffn"), wide)
        self.fc1_bias = zeros((wide,), ("ffn",))
        self.fc2 = normal(rngs, (wide, out), ("ffn", "embed"), wide)
        self.fc2_bias = zeros((out,), ("norm",))

    def __call__(self, x: Float[Array, "i p d"]) -> Float[Array, "tokens out"]:
        """Returns the visual tokens of all slots in the order of the patches."""
        wide = self.fc1.shape[0]
        h = enter_tensor(rms_norm(x, self.norm[...], EPS).reshape(-1, wide), self.fc1[...])
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
        self.blocks = stack(functools.partial(VisionBlock, vision), vision.depth, rngs)
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
        full = np.isin(np.arange(vision.depth), vision.fullatt_block_indexes)

        def block(block, x, full):
            return block(x, full, angles, pictures, windows, vision.window_patches, config.attention_impl), None

        x, _ = scan_layers(self.blocks, block, x, jnp.asarray(full), dtype=dtype, remat=config.remat)
        return gathered(self.merger, dtype)(x)
