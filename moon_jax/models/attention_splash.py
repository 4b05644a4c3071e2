"""Splash attention: the Pallas kernel for TPU, whose memory grows with the length of a row and not with its square."""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    BlockSizes,
    CausalMask,
    FullMask,
    MultiHeadMask,
    SegmentIds,
    make_splash_mha,
)
from jaxtyping import Array, Float, Int

from moon_jax.models.attention_kernel import pad_tokens, round_up, without_vma

BLOCKS = (512, 256, 128)  # tokens; large blocks keep the matrix unit busy, 128 is the least that the kernel takes
WASTE = 1.125  # a larger block may make a row at most this much longer


def splash(
    q: Float[Array, "b s k g h"],
    k: Float[Array, "b s k h"],
    v: Float[Array, "b s k h"],
    segment_ids: Int[Array, "b s"],
    causal: bool,
    *,
    interpret: bool = False,
) -> Float[Array, "b s k g h"]:
    """Returns what `attention` returns; padding attends to padding.

    Args:
        q: queries.
        k: keys.
        v: values.
        segment_ids: 0 = padding.
        causal: whether a token sees only itself and what is before it; blocks above the diagonal are not computed.
        interpret: run the kernel as plain XLA operations, on any platform: for tests.
    """
    length = q.shape[1]
    block = block_of(length)
    arrays = pad_tokens(q, k, v, segment_ids, round_up(length, block))
    return without_vma(lambda *arrays: _splash(*arrays, causal, block, interpret))(*arrays)[:, :length]


def block_of(length: int) -> int:
    """Returns the largest block that does not make a row of this length too much longer."""
    return next((block for block in BLOCKS if round_up(length, block) <= WASTE * length), BLOCKS[-1])


def _splash(q, k, v, segment_ids, causal, block, interpret):
    b, s, kv, g, h = q.shape
    mask = (CausalMask if causal else FullMask)((s, s))
    kernel = make_splash_mha(
        MultiHeadMask([mask] * (kv * g)),
        block_sizes=BlockSizes(
            block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block, block_q_dq=block, block_kv_dq=block
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    q = (q.astype(jnp.float32) * h**-0.5).astype(q.dtype).reshape(b, s, kv * g, h)  # the kernel does not scale
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    y = jax.vmap(lambda q, k, v, ids: kernel(q, k, v, SegmentIds(ids, ids)))(q, k, v, segment_ids)
    return jnp.swapaxes(y, 1, 2).reshape(b, s, kv, g, h)
