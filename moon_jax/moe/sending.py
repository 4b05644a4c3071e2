"""Strategies that send a token to the shards that own its experts, and weighted sums back; placement "spread" only."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from moon_jax.config import MoEConfig
from moon_jax.moe.grouped import (
    batched_ffn,
    blocks_of,
    capacities,
    group_routes,
    local_ids,
    places_of,
    ragged_sum,
)  # fmt: skip
from moon_jax.moe.strategy import Experts, kept, strategy


def _swap(x: Array) -> Array:
    """Returns [source, ...] of what every shard of the group sent here, from [destination, ...]."""
    return lax.all_to_all(x, "expert", split_axis=0, concat_axis=0, tiled=True)


def _bring(*arrays: Array) -> tuple[Array, ...]:
    """Returns the arrays swapped on their way to the experts: what remat "layer" keeps."""
    with jax.named_scope("dispatch"):
        return tuple(kept(_swap(x)) for x in arrays)


@strategy(capacity="shard")
def all_to_all(
    tokens: Float[Array, "t d"],
    ids: Int[Array, "t routes"],
    weights: Float[Array, "t routes"],
    experts: Experts,
    config: MoEConfig,
) -> tuple[Float[Array, "t d"], Int[Array, ""]]:
    """Every batch shard has fixed places for every expert; what does not fit is dropped by the sender.

    Fill [destination, its experts' places, d]; all_to_all; batched products; weight; all_to_all back; add up.
    Without any capacity (both 0, so in every evaluation) it is `all_to_all_dropless`, which sends fewer rows than a
    place for every pair of token and expert.
    """
    if not config.capacity_factor and not config.guided_capacity:
        return all_to_all_dropless(tokens, ids, weights, experts, config)
    local = experts.gathered(tokens.dtype, config)
    n, (t, routes), shards = local.gate.shape[0], ids.shape, lax.axis_size("expert")
    capacity = capacities(t, config)
    order, sizes, starts = group_routes(ids, config.experts)
    taken = jnp.minimum(sizes, capacity)
    places = places_of(capacity, n)
    # the places of one destination: local number of the expert that each belongs to, and its number with that expert
    owner = np.repeat(np.arange(n), places)
    rank = np.concatenate([np.arange(count) for count in places])
    expert = np.arange(shards)[:, None] * n + owner
    filled = rank < taken[expert]
    route = order[jnp.minimum(starts[expert] + rank, t * routes - 1)]
    token = route // routes
    x, w = _bring(jnp.where(filled[..., None], tokens[token], 0), jnp.where(filled, weights.reshape(-1)[route], 0.0))
    parts, end = [], 0
    for block in blocks_of(places):
        begin, end = end, end + block.count * block.places
        rows = x[:, begin:end].reshape(shards, block.count, block.places, -1)
        parts.append(batched_ffn(rows, block.of(local)).reshape(shards, end - begin, -1))
    y = (jnp.concatenate(parts, axis=1).astype(jnp.float32) * w[..., None]).astype(tokens.dtype)
    with jax.named_scope("dispatch"):
        y = _swap(y)
    out = jnp.zeros(tokens.shape, jnp.float32).at[token].add(y.astype(jnp.float32))
    return out, (sizes - taken).sum()


def _routes_by_owner(ids, weights, n):
    """Returns (ids counted from each owner's first expert, weights) [shards, t, routes], 0 and n where not its own."""
    first = jnp.arange(lax.axis_size("expert")) * n
    theirs = local_ids(ids, first[:, None, None], n)
    return theirs, jnp.where(theirs < n, weights, 0.0)


@strategy(capacity="none")
def all_to_all_dropless(
    tokens: Float[Array, "t d"],
    ids: Int[Array, "t routes"],
    weights: Float[Array, "t routes"],
    experts: Experts,
    config: MoEConfig,
) -> tuple[Float[Array, "t d"], Int[Array, ""]]:
    """A token crosses once to every shard that owns one of its experts, and one sum comes back; nothing is dropped.

    All tokens of a shard may choose one owner, and shapes are static: there is a row for every pair of token and
    owner, zero where the token does not go there. So it brings as many bytes as `all_gather`, and takes back sums in
    the compute dtype.
    """
    local = experts.gathered(tokens.dtype, config)
    n = local.gate.shape[0]
    theirs, share = _routes_by_owner(ids, weights, n)
    goes = (theirs < n).any(axis=2)
    x, mine, w = _bring(jnp.where(goes[..., None], tokens, 0), theirs, share)
    merge = lambda a: a.reshape(-1, a.shape[2])  # noqa: E731
    y, dropped = ragged_sum(merge(x), merge(mine), merge(w), local)
    with jax.named_scope("dispatch"):
        y = _swap(y.astype(tokens.dtype).reshape(x.shape))
    return y.astype(jnp.float32).sum(axis=0), dropped


@strategy(capacity="none", platforms=("gpu", "tpu"))
def ragged_all_to_all(
    tokens: Float[Array, "t d"],
    ids: Int[Array, "t routes"],
    weights: Float[Array, "t routes"],
    experts: Experts,
    config: MoEConfig,
) -> tuple[Float[Array, "t d"], Int[Array, ""]]:
    """As `all_to_all_dropless`, but only the rows that really go to a shard cross the mesh.

    The tokens for each owner lie one after the other; those of source s arrive in rows s * t and on. The buffer has
    room for the worst case; what moves does not.
    """
    local = experts.gathered(tokens.dtype, config)
    n, (t, routes), shards = local.gate.shape[0], ids.shape, lax.axis_size("expert")
    theirs, share = _routes_by_owner(ids, weights, n)
    goes = (theirs < n).any(axis=2)
    first = jnp.argsort(~goes, axis=1, stable=True)  # [owner, t]: those that go there, then the others
    pick = lambda a: jnp.take_along_axis(a, first[..., None], axis=1)  # noqa: E731
    counts = goes.sum(axis=1)
    starts = jnp.cumsum(counts) - counts
    sent = t * min(routes, shards)  # a token goes to no more owners than it has routes
    source = jnp.argsort(~goes.reshape(-1), stable=True)[:sent] % t
    mine, w, arriving, origin = _bring(pick(theirs), pick(share), counts, starts)
    ragged = functools.partial(lax.ragged_all_to_all, axis_name="expert")
    landing = jnp.full(shards, lax.axis_index("expert") * t)
    with jax.named_scope("dispatch"):
        room = jnp.zeros_like(tokens, shape=(shards * t, tokens.shape[1]))
        x = kept(ragged(tokens[source], room, starts, counts, landing, arriving))
    y, dropped = ragged_sum(x, mine.reshape(-1, routes), w.reshape(-1, routes), local)
    with jax.named_scope("dispatch"):
        room = jnp.zeros_like(tokens, shape=(sent, tokens.shape[1]))
        y = ragged(y.astype(tokens.dtype), room, jnp.arange(shards) * t, arriving, origin, counts)
    return jnp.zeros(tokens.shape, jnp.float32).at[source].add(y.astype(jnp.float32)), dropped
