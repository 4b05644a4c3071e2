"""The blocks of Qwen2.5-VL's and Qwen2-VL's vision towers: the same attention, other norms and MLPs."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from moon_jax.config import VisionConfig
from moon_jax.models.attention import attention
from moon_jax.models.layers import layer_norm, normal, ones, rms_norm, zeros
from moon_jax.models.rope import rotate
from moon_jax.parallel.collectives import enter_tensor, leave_tensor

EPS = 1e-6  # hard-coded in transformers for all vision norms of both; not the text model's rms_norm_eps


class VisionAttention(nnx.Module):
    """What both blocks begin with: fused queries, keys and values with biases, 2-D rotary angles, output projection."""

    def _attention(self, config: VisionConfig, rngs: nnx.Rngs) -> None:
        """Makes the parameters; part of the constructors below."""
        d, h, hd = config.hidden_size, config.num_heads, config.head_dim
        self.qkv = normal(rngs, (d, 3, h, hd), ("vision_embed", "qkv", "heads", "head_dim"), d)
        self.qkv_bias = zeros((3, h, hd), ("qkv", "heads", "head_dim"))
        self.proj = normal(rngs, (h, hd, d), ("heads", "head_dim", "vision_embed"), d * branches(config))
        self.proj_bias = zeros((d,), ("norm",))

    def attend(
        self,
        h: Float[Array, "i p d"],
        full: Bool[Array, ""] | None,
        angles: Float[Array, "i p half"],
        pictures: Int[Array, "i p"],
        windows: Int[Array, "i p"],
        chunk: int,
        impl: str,
    ) -> Float[Array, "i p d"]:
        """Returns what attention adds to the residual stream.

        Args:
            h: normed residual stream, patches in window order.
            full: whether this block attends within whole pictures; None = every block does.
            angles: rotary angles.
            pictures: picture number within the slot, 0 = padding.
            windows: window number within the slot plus one, 0 = padding; no window crosses a chunk.
            chunk: patches of a full window.
            impl: attention implementation of the blocks that attend within whole pictures.
        """
        patches = h.shape[1]
        h = enter_tensor(h, self.qkv[...])
        qkv = jnp.einsum("ipd,dqhx->qiphx", h, self.qkv[...]) + self.qkv_bias[...][:, None, None]
        q, k = rotate(qkv[0], angles, jnp.float32), rotate(qkv[1], angles, jnp.float32)

        def among(q, k, v, segments, length, impl):
            parts = [t.reshape(-1, length, *t.shape[2:]) for t in (q, k, v)]
            y = attention(parts[0][:, :, :, None], *parts[1:], segments.reshape(-1, length), causal=False, impl=impl)
            return y.reshape(q.shape)

        def in_pictures(q, k, v):
            return among(q, k, v, pictures, patches, impl)

        def in_windows(q, k, v):
            return among(q, k, v, windows, chunk, "xla")  # windows are small: dense is linear in memory

        y = in_pictures(q, k, qkv[2]) if full is None else lax.cond(full, in_pictures, in_windows, q, k, qkv[2])
        return leave_tensor(jnp.einsum("iphx,hxd->ipd", y, self.proj[...])) + self.proj_bias[...]


def branches(config: VisionConfig) -> int:
    """Returns how many branches add to the residual stream: what each adds starts smaller the more there are."""
    return 2 * config.depth


class Qwen25Block(VisionAttention):
    """x += attention(rms_norm x); x += swiglu(rms_norm x); with biases; attention within windows or whole pictures."""

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        d, f = config.hidden_size, config.intermediate_size
        self.norm1, self.norm2 = ones(d), ones(d)
        self._attention(config, rngs)
        self.gate = normal(rngs, (d, f), ("vision_embed", "ffn"), d)
        self.gate_bias = zeros((f,), ("ffn",))
        self.up = normal(rngs, (d, f), ("vision_embed", "ffn"), d)
        self.up_bias = zeros((f,), ("ffn",))
        self.down = normal(rngs, (f, d), ("ffn", "vision_embed"), f * branches(config))
        self.down_bias = zeros((d,), ("norm",))

    def __call__(self, x: Float[Array, "i p d"], *where) -> Float[Array, "i p d"]:
        """Returns the residual stream after the block; `where` as `attend` takes it."""
        x = x + self.attend(rms_norm(x, self.norm1[...], EPS), *where)
        h = enter_tensor(rms_norm(x, self.norm2[...], EPS), self.gate[...])
        h = jax.nn.silu(h @ self.gate[...] + self.gate_bias[...]) * (h @ self.up[...] + self.up_bias[...])
        return x + leave_tensor(h @ self.down[...]) + self.down_bias[...]


class Qwen2Block(VisionAttention):
    """x += attention(layer_norm x); x += mlp(layer_norm x); the MLP is two layers with the quick GELU between them."""

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        d, f = config.hidden_size, config.intermediate_size
        self.norm1, self.norm2 = ones(d), ones(d)
        self.norm1_bias, self.norm2_bias = zeros((d,), ("norm",)), zeros((d,), ("norm",))
        self._attention(config, rngs)
        self.up = normal(rngs, (d, f), ("vision_embed", "ffn"), d)
        self.up_bias = zeros((f,), ("ffn",))
        self.down = normal(rngs, (f, d), ("ffn", "vision_embed"), f * branches(config))
        self.down_bias = zeros((d,), ("norm",))

    def __call__(self, x: Float[Array, "i p d"], *where) -> Float[Array, "i p d"]:
        """Returns the residual stream after the block; `where` as `attend` takes it."""
        x = x + self.attend(layer_norm(x, self.norm1[...], self.norm1_bias[...], EPS), *where)
        h = enter_tensor(layer_norm(x, self.norm2[...], self.norm2_bias[...], EPS), self.up[...])
        h = h @ self.up[...] + self.up_bias[...]
        h = h * jax.nn.sigmoid(1.702 * h)  # "quick_gelu" of transformers
        return x + leave_tensor(h @ self.down[...]) + self.down_bias[...]


BLOCKS = {"qwen2_5_vl": Qwen25Block, "qwen2_vl": Qwen2Block}
