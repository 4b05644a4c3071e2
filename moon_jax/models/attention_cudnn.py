"""Flash attention of cuDNN for NVIDIA GPUs, with the segments as a mask."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from moon_jax.config import ConfigError
from moon_jax.models.attention_kernel import pad_tokens, round_up, without_vma

BLOCK = 64  # tokens


def cudnn(
    q: Float[Array, "b s k g h"],
    k: Float[Array, "b s k h"],
    v: Float[Array, "b s k h"],
    segment_ids: Int[Array, "b s"],
    causal: bool,
    *,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "b s k g h"]:
    """Returns what `attention` returns; padding attends to padding.

    The mask is one matrix [s, s] for all heads of a row, in the dtype of the queries, and has a gradient as large that
    nobody reads: memory grows with the square of a row's length, but not with the number of heads.

    Args:
        q: queries, bfloat16 or float16.
        k: keys.
        v: values.
        segment_ids: 0 = padding.
        causal: whether a token sees only itself and what is before it. It is part of the mask: cuDNN does not promise
            its own causal mask together with a given one.
        implementation: "xla" computes the same without cuDNN, for tests.

    Raises:
        ConfigError: the machine that compiles has no cuDNN.
    """
    length = q.shape[1]
    arrays = pad_tokens(q, k, v, segment_ids, round_up(length, BLOCK))
    return without_vma(lambda *arrays: _cudnn(*arrays, causal, implementation))(*arrays)[:, :length]


def _cudnn(q, k, v, segment_ids, causal, implementation):
    b, s, kv, g, h = q.shape
    mask = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
    if causal:
        mask &= jnp.tri(s, dtype=bool)
    try:
        y = jax.nn.dot_product_attention(q.reshape(b, s, kv * g, h), k, v, mask=mask, implementation=implementation)
    except RuntimeError as error:
        raise ConfigError(
            f"config.model.attention_impl = 'cudnn' is compiled with the help of cuDNN itself ({error}): 'triton' can "
            "be compiled on a machine without it"
        ) from error
    return y.reshape(b, s, kv, g, h)
