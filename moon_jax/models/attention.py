"""Attention within segments, with the implementation named by the config and never chosen silently."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

MASKED = -1e30  # finite: a fully masked row (padding) gives a harmless mean, where -inf gives NaN in the gradient


def attention(
    q: Float[Array, "b s k g h"],
    k: Float[Array, "b s k h"],
    v: Float[Array, "b s k h"],
    segment_ids: Int[Array, "b s"],
    *,
    causal: bool,
    impl: str,
) -> Float[Array, "b s k g h"]:
    """Returns softmax(q k / sqrt(h)) v, each token attending within its own segment.

    Args:
        q: queries, g of them for each of the k kv heads.
        k: keys.
        v: values.
        segment_ids: 0 = padding, which nothing attends to and whose own output means nothing.
        causal: whether a token sees only itself and what is before it.
        impl: a key of `IMPLEMENTATIONS`.

    Raises:
        ValueError: no such implementation.
    """
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"config.model.attention_impl {impl!r} does not exist; there are {sorted(IMPLEMENTATIONS)}")
    return IMPLEMENTATIONS[impl](q, k, v, segment_ids, causal)


def _xla(q, k, v, segment_ids, causal):
    scores = jnp.einsum("bskgh,btkh->bkgst", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    mask = (segment_ids[:, :, None] == segment_ids[:, None, :]) & (segment_ids > 0)[:, None, :]
    if causal:
        mask &= jnp.tri(q.shape[1], dtype=bool)
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, MASKED), axis=-1).astype(v.dtype)
    return jnp.einsum("bkgst,btkh->bskgh", weights, v)


IMPLEMENTATIONS = {"xla": _xla}
