"""InternVL's vision tower: InternViT on square tiles with a class token each, pixel shuffle, projector."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int

from moon_jax.config import ModelConfig, VisionConfig
from moon_jax.models.attention import attention
from moon_jax.models.layers import gathered, layer_norm, normal, ones, rms_norm, scan_layers, stack, zeros
from moon_jax.models.vision_blocks import branches
from moon_jax.parallel.collectives import enter_tensor, gather_param, leave_tensor

QK_EPS = 1e-6  # both hard-coded in transformers, whatever layer_norm_eps says
PROJECTOR_EPS = 1e-5


class InternBlock(nnx.Module):
    """x += scale1 * attention(norm1 x); x += scale2 * mlp(norm2 x); the MLP is two layers with the exact GELU.

    The norms are LayerNorms or RMSNorms; queries and keys may have an RMSNorm over all heads together.
    """

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        d, f, h, hd = config.hidden_size, config.intermediate_size, config.num_heads, config.head_dim
        self.norm1, self.norm2 = ones(d), ones(d)
        if config.intern.norm_type == "layer_norm":
            self.norm1_bias, self.norm2_bias = zeros((d,), ("norm",)), zeros((d,), ("norm",))
        for name in "qkv":
            setattr(self, name, normal(rngs, (d, h, hd), ("vision_embed", "heads", "head_dim"), d))
            if config.intern.attention_bias:
                setattr(self, f"{name}_bias", zeros((h, hd), ("heads", "head_dim")))
        if config.intern.use_qk_norm:
            self.q_norm = nnx.Param(jnp.ones((h, hd)), axes=("heads", "head_dim"))
            self.k_norm = nnx.Param(jnp.ones((h, hd)), axes=("heads", "head_dim"))
        self.proj = normal(rngs, (h, hd, d), ("heads", "head_dim", "vision_embed"), d * branches(config))
        self.proj_bias = zeros((d,), ("norm",))
        self.up = normal(rngs, (d, f), ("vision_embed", "ffn"), d)
        self.up_bias = zeros((f,), ("ffn",))
        self.down = normal(rngs, (f, d), ("ffn", "vision_embed"), f * branches(config))
        self.down_bias = zeros((d,), ("norm",))
        self.layer_scale1, self.layer_scale2 = ones(d), ones(d)

    def __call__(
        self, x: Float[Array, "t p d"], pictures: Int[Array, "t p"], eps: float, impl: str
    ) -> Float[Array, "t p d"]:
        """Returns the residual stream after the block.

        Args:
            x: residual stream, a tile a row, its class token first.
            pictures: 0 = padding; the patches of a tile, and its class token, have the same number.
            eps: of the two norms.
            impl: attention implementation.
        """
        h = enter_tensor(self._norm("norm1", x, eps), self.q[...])
        q, k, v = (self._heads(name, h) for name in "qkv")
        if hasattr(self, "q_norm"):
            q, k = _norm_heads(q, self.q_norm[...]), _norm_heads(k, self.k_norm[...])
        y = attention(q[:, :, :, None], k, v, pictures, causal=False, impl=impl)[:, :, :, 0]
        y = leave_tensor(jnp.einsum("tphx,hxd->tpd", y, self.proj[...])) + self.proj_bias[...]
        x = x + self.layer_scale1[...] * y
        h = enter_tensor(self._norm("norm2", x, eps), self.up[...])
        h = jax.nn.gelu(h @ self.up[...] + self.up_bias[...], approximate=False)
        return x + self.layer_scale2[...] * (leave_tensor(h @ self.down[...]) + self.down_bias[...])

    def _norm(self, name: str, x: Float[Array, "t p d"], eps: float) -> Float[Array, "t p d"]:
        weight, bias = getattr(self, name)[...], getattr(self, f"{name}_bias", None)
        return rms_norm(x, weight, eps) if bias is None else layer_norm(x, weight, bias[...], eps)

    def _heads(self, name: str, h: Float[Array, "t p d"]) -> Float[Array, "t p h x"]:
        y, bias = jnp.einsum("tpd,dhx->tphx", h, getattr(self, name)[...]), getattr(self, f"{name}_bias", None)
        return y if bias is None else y + bias[...]


def _norm_heads(x: Float[Array, "t p h x"], weight: Float[Array, "h x"]) -> Float[Array, "t p h x"]:
    """Returns x / rms(x) over all heads, those of the other shards of `tensor` too, times the weight."""
    x32 = x.astype(jnp.float32)
    count = jnp.full_like(x32, x.shape[-1] * x.shape[-2], shape=())
    square, count = (enter_tensor(leave_tensor(s), x) for s in ((x32 * x32).sum((-2, -1), keepdims=True), count))
    return (x32 * lax.rsqrt(square / count + QK_EPS)).astype(x.dtype) * weight.astype(x.dtype)


class Projector(nnx.Module):
    """Folds merge_unit neighbouring patches (pixel shuffle): LayerNorm, Linear, exact GELU, Linear."""

    def __init__(self, config: VisionConfig, out: int, rngs: nnx.Rngs):
        wide = config.hidden_size * config.merge_unit
        self.norm, self.norm_bias = ones(wide), zeros((wide,), ("norm",))
        self.fc1 = normal(rngs, (wide, out), ("merge", "ffn"), wide)
        self.fc1_bias = zeros((out,), ("ffn",))
        self.fc2 = normal(rngs, (out, out), ("ffn", "embed"), out)
        self.fc2_bias = zeros((out,), ("norm",))

    def __call__(self, x: Float[Array, "t p d"]) -> Float[Array, "tokens out"]:
        """Returns the visual tokens of all tiles in the order of the patches."""
        x = layer_norm(x.reshape(-1, self.fc1.shape[0]), self.norm[...], self.norm_bias[...], PROJECTOR_EPS)
        h = enter_tensor(x, self.fc1[...])
        h = jax.nn.gelu(h @ self.fc1[...] + self.fc1_bias[...], approximate=False)
        return leave_tensor(h @ self.fc2[...]) + self.fc2_bias[...]


class InternTower(nnx.Module):
    """Patch embedding, class token and learned positions of every tile, blocks, projector.

    A tile fills one chunk of a slot, so that no position depends on the picture that it is cut from.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        vision = config.vision
        d, patches = vision.hidden_size, vision.window_patches
        self.patch_embed = normal(rngs, (1, vision.patch_dim, d), ("frames", "patch", "vision_embed"), vision.patch_dim)
        self.patch_bias = zeros((d,), ("norm",))
        self.class_token = zeros((d,), ("norm",))
        self.position_table = normal(rngs, (patches + 1, d), ("positions", "vision_embed"), d)
        self.blocks = stack(functools.partial(InternBlock, vision), vision.depth, rngs)
        self.merger = Projector(vision, config.text.hidden_size, rngs)
        self.config = config

    def __call__(
        self,
        patches: Float[Array, "i p patch_dim"],
        pictures: Int[Array, "i p"],
        windows: Int[Array, "i p"],
        positions: Int[Array, "i p 2"],
    ) -> Float[Array, "tokens d"]:
        """Returns visual tokens [I * P / merge_unit, D] in the order of the patches.

        Args:
            patches: of whole tiles, the patches of a visual token side by side.
            pictures: number of the picture within its slot, 0 = padding.
            windows: not needed: tiles are chunks of the slot.
            positions: not needed: every tile has the same.
        """
        config, vision = self.config, self.config.vision
        dtype, chunk = jnp.dtype(config.dtype), vision.window_patches
        kernel, table = gather_param(self.patch_embed, dtype)[0], gather_param(self.position_table, dtype)
        x = patches.astype(dtype).reshape(-1, chunk, vision.patch_dim) @ kernel + gather_param(self.patch_bias, dtype)
        x = x + table[1:][_block_major(vision)]
        first = jnp.broadcast_to(gather_param(self.class_token, dtype) + table[0], (len(x), 1, x.shape[-1]))
        x = jnp.concatenate([first, x], axis=1)
        ids = pictures.reshape(-1, chunk)
        ids = jnp.concatenate([ids[:, :1], ids], axis=1)

        def block(block, x, _):
            return block(x, ids, vision.intern.layer_norm_eps, config.attention_impl), None

        x, _ = scan_layers(self.blocks, block, x, None, dtype=dtype, remat=config.remat)
        return gathered(self.merger, dtype)(x[:, 1:])


def _block_major(vision: VisionConfig) -> Int[np.ndarray, " p"]:
    """Returns the raster number of each patch of a tile in the order in which slots hold them."""
    side, m = vision.window, vision.spatial_merge_size
    numbers = np.arange((side * m) ** 2).reshape(side, m, side, m)
    return numbers.transpose(0, 2, 1, 3).reshape(-1)
