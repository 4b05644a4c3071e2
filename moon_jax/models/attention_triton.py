"""Flash attention for GPU: jax's Pallas kernel in Triton; memory grows with the length of a row, not its square."""

import jax.numpy as jnp
from jax.experimental.pallas.ops.gpu.attention import mha
from jaxtyping import Array, Float, Int

from moon_jax.models.attention_kernel import pad_tokens, round_up, without_vma

BLOCK = 128  # tokens


def triton(
    q: Float[Array, "b s k g h"],
    k: Float[Array, "b s k h"],
    v: Float[Array, "b s k h"],
    segment_ids: Int[Array, "b s"],
    causal: bool,
    *,
    interpret: bool = False,
) -> Float[Array, "b s k g h"]:
    """Returns what `attention` returns; padding attends to padding.

    The kernel knows no groups: keys and values are repeated for every query head, which makes them as large as the
    queries.

    Args:
        q: queries.
        k: keys.
        v: values.
        segment_ids: 0 = padding.
        causal: whether a token sees only itself and what is before it; blocks above the diagonal are not computed.
        interpret: run the kernel as plain XLA operations, on any platform: for tests.
    """
    length = q.shape[1]
    arrays = pad_tokens(q, k, v, segment_ids, round_up(length, BLOCK))
    return without_vma(lambda *arrays: _triton(*arrays, causal, interpret))(*arrays)[:, :length]


def _triton(q, k, v, segment_ids, causal, interpret):
    b, s, kv, g, h = q.shape
    k, v = jnp.repeat(k, g, axis=2), jnp.repeat(v, g, axis=2)
    y = mha(q.reshape(b, s, kv * g, h), k, v, segment_ids, sm_scale=h**-0.5, causal=causal, interpret=interpret)
    return y.reshape(b, s, kv, g, h)
