"""How much attention every token gets from the embedding of its document, without a whole attention matrix in memory.

The embedding is the mean of the last hidden states of the document's n tokens (`moon.mean_pool`), so all n of them are
its queries. With A = softmax(q k / sqrt(h)) of one layer and head, the attention of the embedding to token j is

    a_j = (1 / n) sum_i A_ij,    and the a_j of a document add up to 1.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from moon_jax.models.attention import MASKED, attention
from moon_jax.models.moon import Moon
from moon_jax.parallel.collectives import leave_tensor

METHODS = ("attention", "rollout")
BLOCK_SCORES = 1 << 24  # attention scores in memory at a time: 64 MiB


def attention_maps(model: Moon, batch: Mapping[str, Array], method: str) -> Float[Array, "l r k g s"]:
    """Returns the attention of each token's document to the token; zero on padding.

    "attention" has every layer, and every query head in the groups of the kv heads; "rollout" has one map of the whole
    stack, [1, R, 1, 1, S].

    Args:
        model: with local shards of the parameters.
        batch: one shard of a packed batch (the fields of data/packing.py without their shard axis).
        method: one of `METHODS`.
    """
    text, segment_ids = model.text, batch["segment_ids"]
    causal, impl = text.config.attention == "causal", text.config.attention_impl
    queries = pooled_queries(segment_ids, batch["document_of_segment"].shape[1])

    def attend(_, q, k, v):
        kept = received(q, k, segment_ids, queries, causal) if method == "attention" else (q, k)
        return attention(q, k, v, segment_ids, causal=causal, impl=impl), kept

    x = text.look_up(batch["tokens"], model.visual(batch), batch["image_slots"])
    _, (_, kept) = text.run_layers(x, batch["positions"], batch["roles"], attend, remat="none")
    if method == "attention":
        return kept
    return rollout(*kept, segment_ids, queries, causal, text.config.text.num_attention_heads)[None, :, None, None]


def pooled_queries(segment_ids: Int[Array, "r s"], segments: int) -> Float[Array, "r s"]:
    """Returns the share of each token in the mean of its document: 1 / n, zero on padding.

    Args:
        segment_ids: 0 = padding.
        segments: more than the largest of them.
    """
    tokens = jax.nn.one_hot(segment_ids, segments, dtype=jnp.float32).sum(1)
    return jnp.where(segment_ids > 0, 1 / jnp.take_along_axis(tokens, segment_ids, axis=1), 0.0)


def received(
    q: Float[Array, "r s k g h"],
    k: Float[Array, "r s k h"],
    segment_ids: Int[Array, "r s"],
    queries: Float[Array, "r s"],
    causal: bool,
) -> Float[Array, "r k g s"]:
    """Returns sum_i queries_i A_ij in float32 for every head, A as in `models/attention.py`; blocks of i in turn.

    Args:
        q: queries, g of them for each of the k kv heads.
        k: keys.
        segment_ids: 0 = padding.
        queries: weight of each query, 0 on padding.
        causal: whether a token sees only itself and what is before it.
    """
    rows, length, kv, group, width = q.shape
    block = min(length, max(1, BLOCK_SCORES // (rows * kv * group * length)))
    blocks = -(-length // block)

    def blocked(x: Array) -> Array:
        x = jnp.pad(x, [(0, 0), (0, blocks * block - length), *[(0, 0)] * (x.ndim - 2)])
        return jnp.moveaxis(x.reshape(rows, blocks, block, *x.shape[2:]), 1, 0)

    def add(total, scanned):
        number, q, ids, weights = scanned
        scores = jnp.einsum("rskgh,rtkh->rkgst", q, k, preferred_element_type=jnp.float32) * width**-0.5
        mask = ids[:, :, None] == segment_ids[:, None, :]
        if causal:
            mask &= (number * block + jnp.arange(block))[:, None] >= jnp.arange(length)
        attended = jax.nn.softmax(jnp.where(mask[:, None, None], scores, MASKED), axis=-1)
        return total + (weights[:, None, None, :, None] * attended).sum(-2), None

    start = jnp.zeros_like(q, shape=(rows, kv, group, length), dtype=jnp.float32)
    return lax.scan(add, start, (jnp.arange(blocks), blocked(q), blocked(segment_ids), blocked(queries)))[0]


def rollout(
    q: Float[Array, "l r s k g h"],
    k: Float[Array, "l r s k h"],
    segment_ids: Int[Array, "r s"],
    queries: Float[Array, "r s"],
    causal: bool,
    heads: int,
) -> Float[Array, "r s"]:
    """Returns queries * (I + A_L) / 2 * ... * (I + A_1) / 2, with A_l the mean of layer l over its heads.

    Attention rollout (Abnar and Zuidema 2020, section 3): half of what a layer hands on is its residual stream. A row
    vector goes down through the layers, so that no product of matrices is made.

    Args:
        q: queries of all layers.
        k: keys of all layers.
        segment_ids: 0 = padding.
        queries: weight of each query of the last layer, 0 on padding.
        causal: whether a token sees only itself and what is before it.
        heads: of a layer, over all shards of `tensor`.
    """

    def down(weights, layer):
        mean = leave_tensor(received(*layer, segment_ids, weights, causal).sum((1, 2))) / heads
        return (weights + mean) / 2, None

    return lax.scan(down, queries, (q, k), reverse=True)[0]
