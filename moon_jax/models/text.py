"""The Qwen2.5 language model up to its last hidden states; every FFN is plain or the guided MoE."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from moon_jax.config import ModelConfig, MoEConfig, TextConfig
from moon_jax.models.attention import attention
from moon_jax.models.layers import normal, ones, rms_norm, scan_layers, stack, zeros
from moon_jax.models.rope import rotate, text_angles
from moon_jax.moe.layer import GuidedMoE
from moon_jax.parallel.collectives import enter_tensor, gather_param, leave_tensor


class FFN(nnx.Module):
    """The dense SwiGLU of Qwen2.5, without biases."""

    def __init__(self, config: TextConfig, rngs: nnx.Rngs):
        d, f = config.hidden_size, config.intermediate_size
        self.gate = normal(rngs, (d, f), ("embed", "ffn"), d)
        self.up = normal(rngs, (d, f), ("embed", "ffn"), d)
        self.down = normal(rngs, (f, d), ("ffn", "embed"), f * 2 * config.num_hidden_layers)

    def __call__(self, x: Float[Array, "r s d"]) -> Float[Array, "r s d"]:
        """Returns down(silu(gate x) * up x)."""
        h = enter_tensor(x)
        return leave_tensor((jax.nn.silu(h @ self.gate[...]) * (h @ self.up[...])) @ self.down[...])


class TextLayer(nnx.Module):
    """x += attention(norm1 x); x += ffn(norm2 x); grouped-query attention with biases on q, k, v only."""

    def __init__(self, config: TextConfig, moe: MoEConfig, rngs: nnx.Rngs):
        d, k, hd = config.hidden_size, config.num_key_value_heads, config.head_dim
        g = config.num_attention_heads // k
        branches = 2 * config.num_hidden_layers  # what is added to the residual stream starts smaller
        self.norm1, self.norm2 = ones(d), ones(d)
        self.q = normal(rngs, (d, k, g, hd), ("embed", "kv", "group", "head_dim"), d)
        self.q_bias = zeros((k, g, hd), ("kv", "group", "head_dim"))
        self.k = normal(rngs, (d, k, hd), ("embed", "kv", "head_dim"), d)
        self.k_bias = zeros((k, hd), ("kv", "head_dim"))
        self.v = normal(rngs, (d, k, hd), ("embed", "kv", "head_dim"), d)
        self.v_bias = zeros((k, hd), ("kv", "head_dim"))
        self.o = normal(rngs, (k, g, hd, d), ("kv", "group", "head_dim", "embed"), k * g * hd * branches)
        if moe.experts:
            self.moe = GuidedMoE(config.hidden_size, config.intermediate_size, branches, moe, rngs)
        else:
            self.ffn = FFN(config, rngs)

    def __call__(
        self,
        x: Float[Array, "r s d"],
        angles: Float[Array, "r s half"],
        segment_ids: Int[Array, "r s"],
        roles: Int[Array, "r s"],
        config: ModelConfig,
    ) -> tuple[Float[Array, "r s d"], Any]:
        """Returns the residual stream after the layer and the router's statistics (None for a dense FFN)."""
        eps = config.text.rms_norm_eps
        h = enter_tensor(rms_norm(x, self.norm1[...], eps))
        q = rotate_heads(jnp.einsum("rsd,dkgh->rskgh", h, self.q[...]) + self.q_bias[...], angles)
        k = rotate(jnp.einsum("rsd,dkh->rskh", h, self.k[...]) + self.k_bias[...], angles, x.dtype)
        v = jnp.einsum("rsd,dkh->rskh", h, self.v[...]) + self.v_bias[...]
        y = attention(q, k, v, segment_ids, causal=config.attention == "causal", impl=config.attention_impl)
        x = x + leave_tensor(jnp.einsum("rskgh,kghd->rsd", y, self.o[...]))
        h = rms_norm(x, self.norm2[...], eps)
        if hasattr(self, "moe"):
            y, stats = self.moe(h, roles)
            return x + y, stats
        return x + self.ffn(h), None


def rotate_heads(q: Float[Array, "r s k g h"], angles: Float[Array, "r s half"]) -> Float[Array, "r s k g h"]:
    """Returns the grouped queries rotated in their own dtype."""
    return rotate(q.reshape(*q.shape[:2], -1, q.shape[-1]), angles, q.dtype).reshape(q.shape)


class TextModel(nnx.Module):
    """Token embedding with visual tokens put in their places, layers, final norm."""

    def __init__(self, config: ModelConfig, moe: MoEConfig, rngs: nnx.Rngs):
        text = config.text
        self.embed = normal(rngs, (text.vocab_size, text.hidden_size), ("vocab", "embed"), text.hidden_size)
        self.layers = stack(functools.partial(TextLayer, text, moe), text.num_hidden_layers, rngs)
        self.norm = ones(text.hidden_size)
        self.config = config

    def __call__(
        self,
        tokens: Int[Array, "r s"],
        visual: Float[Array, "v d"],
        image_slots: Int[Array, "r s"],
        segment_ids: Int[Array, "r s"],
        positions: Int[Array, "3 r s"],
        roles: Int[Array, "r s"],
    ) -> tuple[Float[Array, "r s d"], Any]:
        """Returns the last hidden states (after the final norm) and the router statistics stacked over layers.

        Args:
            tokens: token ids; those at visual places are not looked at.
            visual: visual tokens of this shard.
            image_slots: which visual token stands here, -1 = none.
            segment_ids: number of the document in its row, 0 = padding.
            positions: M-RoPE positions (time, height, width).
            roles: `Role` of each token.
        """
        config = self.config
        dtype = jnp.dtype(config.dtype)
        x = gather_param(self.embed, dtype)[tokens]
        x = jnp.where((image_slots >= 0)[..., None], visual[jnp.maximum(image_slots, 0)], x)
        angles = text_angles(positions, config.text)

        def layer(layer, x, _):
            return layer(x, angles, segment_ids, roles, config)

        x, stats = scan_layers(self.layers, layer, x, None, dtype=dtype, remat=config.remat)
        return rms_norm(x, gather_param(self.norm, dtype), config.text.rms_norm_eps), stats
