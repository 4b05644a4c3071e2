"""The Qwen2.5 language model up to its last hidden states; every FFN is plain or the guided MoE."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from moon_jax.config import ModelConfig, MoEConfig, TextConfig
from moon_jax.models.attention import attention
from moon_jax.models.head import look_up
from moon_jax.models.layers import normal, ones, rms_norm, scan_layers, stack, zeros
from moon_jax.models.rope import rotate, text_angles
from moon_jax.moe.layer import GuidedMoE
from moon_jax.moe.routing import noise_keys
from moon_jax.parallel.collectives import enter_tensor, gather_param, leave_tensor, over_tensor

Attend = Callable[[Array, Array, Array], tuple[Array, Any]]
"""(q [r s k g h], k [r s k h], v [r s k h]) -> what the queries find [r s k g h], and what to keep of the layer."""


class FFN(nnx.Module):
    """The dense SwiGLU of Qwen2.5, without biases."""

    def __init__(self, config: TextConfig, rngs: nnx.Rngs):
        d, f = config.hidden_size, config.intermediate_size
        self.gate = normal(rngs, (d, f), ("embed", "ffn"), d)
        self.up = normal(rngs, (d, f), ("embed", "ffn"), d)
        self.down = normal(rngs, (f, d), ("ffn", "embed"), f * 2 * config.num_hidden_layers)

    def __call__(self, x: Float[Array, "r s d"]) -> Float[Array, "r s d"]:
        """Returns down(silu(gate x) * up x)."""
        h = enter_tensor(x, self.gate[...])
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
        roles: Int[Array, "r s"],
        attend: Attend,
        eps: float,
        noise_key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "r s d"], tuple[Any, Any]]:
        """Returns the residual stream after the layer, and (router statistics or None, what `attend` kept).

        Args:
            x: residual stream.
            angles: rotary angles of the tokens.
            roles: `Role` of each token.
            attend: which keys the queries see: their own document's, or those of a cache too.
            eps: of the norms.
            noise_key: see `GuidedMoE`.
        """
        h = rms_norm(x, self.norm1[...], eps)
        split = enter_tensor(h, self.q[...])
        q = rotate_heads(jnp.einsum("rsd,dkgh->rskgh", split, self.q[...]) + self.q_bias[...], angles)
        h = split if over_tensor(self.k[...]) else h  # where kv heads do not divide, every shard has all of them
        k = rotate(jnp.einsum("rsd,dkh->rskh", h, self.k[...]) + self.k_bias[...], angles, x.dtype)
        v = jnp.einsum("rsd,dkh->rskh", h, self.v[...]) + self.v_bias[...]
        y, kept = attend(q, enter_tensor(k, q), enter_tensor(v, q))
        x = x + leave_tensor(jnp.einsum("rskgh,kghd->rsd", y, self.o[...]))
        h = rms_norm(x, self.norm2[...], eps)
        if hasattr(self, "moe"):
            y, stats = self.moe(h, roles, noise_key)
            return x + y, (stats, kept)
        return x + self.ffn(h), (None, kept)


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
        noise_key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "r s d"], Any]:
        """Returns the last hidden states (after the final norm) and the router statistics stacked over layers.

        Args:
            tokens: token ids; those at visual places are not looked at.
            visual: visual tokens of this shard.
            image_slots: which visual token stands here, -1 = none.
            segment_ids: number of the document in its row, 0 = padding.
            positions: M-RoPE positions (time, height, width).
            roles: `Role` of each token.
            noise_key: of the router noise of this step; None = no noise.
        """
        config = self.config

        def attend(_, q, k, v):
            causal = config.attention == "causal"
            return attention(q, k, v, segment_ids, causal=causal, impl=config.attention_impl), None

        x = self.look_up(tokens, visual, image_slots)
        x, (stats, _) = self.run_layers(x, positions, roles, attend, remat=config.remat, noise_key=noise_key)
        return x, stats

    def look_up(
        self, tokens: Int[Array, "r s"], visual: Float[Array, "v d"], image_slots: Int[Array, "r s"]
    ) -> Float[Array, "r s d"]:
        """Returns what enters the first layer: the embeddings of the tokens, and visual tokens in their places."""
        x = look_up(tokens, gather_param(self.embed, jnp.dtype(self.config.dtype)))
        return jnp.where((image_slots >= 0)[..., None], visual[jnp.maximum(image_slots, 0)], x)

    def run_layers(
        self,
        x: Float[Array, "r s d"],
        positions: Int[Array, "3 r s"],
        roles: Int[Array, "r s"],
        attend: Callable[[Any, Array, Array, Array], tuple[Array, Any]],
        per_layer: Any = None,
        *,
        remat: str,
        noise_key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "r s d"], tuple[Any, Any]]:
        """Returns the last hidden states, and (router statistics, what was kept), both stacked over layers.

        Args:
            x: what enters the first layer.
            positions: M-RoPE positions.
            roles: `Role` of each token.
            attend: `Attend` with the layer's entry of `per_layer` before the queries.
            per_layer: tree of arrays with a leading layer axis, or None.
            remat: what is computed again in the backward pass (`ModelConfig.remat`).
            noise_key: of the router noise of this step; None = no noise.
        """
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        angles, eps = text_angles(positions, config.text), config.text.rms_norm_eps

        keys = None if noise_key is None else noise_keys(noise_key, config.text.num_hidden_layers)

        def apply(layer, x, scanned):
            extra, key = scanned
            return layer(x, angles, roles, functools.partial(attend, extra), eps, key)

        x, out = scan_layers(self.layers, apply, x, (per_layer, keys), dtype=dtype, remat=remat)
        return rms_norm(x, gather_param(self.norm, dtype), eps), out
