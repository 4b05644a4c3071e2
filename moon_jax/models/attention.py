"""Attention within segments, with the implementation named by the config and never chosen silently; and on a cache."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

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


class Keys(NamedTuple):
    """Keys and values that are there already."""

    k: Float[Array, "b t k h"]
    v: Float[Array, "b t k h"]
    seen: Bool[Array, "b t"]  # false: not one of the row's tokens


def cached_attention(q: Float[Array, "b s k g h"], parts: Sequence[Keys]) -> Float[Array, "b s k g h"]:
    """Returns softmax(q k / sqrt(h)) v over the keys of all parts together: decoding.

    The parts are not put side by side in memory, so that the large one (the prompt) is only read.

    Args:
        q: queries of the new tokens, g of them for each of the k kv heads; each sees every key that is `seen`.
        parts: keys and values, the queries' own among them; each row has at least one that is seen.
    """

    def scores(part: Keys) -> Array:
        product = jnp.einsum("bskgh,btkh->bkgst", q, part.k, preferred_element_type=jnp.float32)
        return jnp.where(part.seen[:, None, None, None], product * q.shape[-1] ** -0.5, MASKED)

    ends = np.cumsum([part.k.shape[1] for part in parts])[:-1]
    weights = jax.nn.softmax(jnp.concatenate([scores(part) for part in parts], axis=-1), axis=-1).astype(q.dtype)
    found = [
        jnp.einsum("bkgst,btkh->bskgh", weight, part.v, preferred_element_type=jnp.float32)
        for weight, part in zip(jnp.split(weights, ends, axis=-1), parts, strict=True)
    ]
    return sum(found).astype(q.dtype)
