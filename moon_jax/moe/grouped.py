"""What the strategies share: which routes are whose, how many find a place, and the experts' products on them.

Two forms of the same sum over routes: `slot_sum` gives every expert fixed places and runs one batched product;
`ragged_sum` sorts the routes by expert and runs `ragged_dot`, whose groups have the sizes that the data gives.
Both weight an expert's output where it is computed, so that the way back to the tokens is linear and its backward pass
needs nothing that was not there already.
"""

import functools
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from moon_jax.config import MoEConfig
from moon_jax.moe.routing import CATEGORY_EXPERT, attribute_expert
from moon_jax.moe.strategy import Experts


def capacities(total: int, config: MoEConfig) -> np.ndarray:
    """Returns how many routes of `total` competing tokens each expert takes, int [experts]; a setting of 0 = all."""
    general = math.ceil(config.capacity_factor * total * config.top_k / (config.experts - 2)) or total
    capacity = np.full(config.experts, min(general, total))
    capacity[[CATEGORY_EXPERT, attribute_expert(config.experts)]] = min(
        math.ceil(config.guided_capacity * total) or total, total
    )
    return capacity


def places_of(capacity: np.ndarray, n: int) -> np.ndarray:
    """Returns the places that the program has for each local expert, int [n].

    Local number i is another expert on every shard of `expert`, and they all run one program: the largest counts.
    """
    return capacity.reshape(-1, n).max(axis=0)


def first_local(n: int, config: MoEConfig) -> Int[Array, ""] | int:
    """Returns the number of this shard's first expert, of which it has n."""
    return lax.axis_index("expert") * n if config.placement == "spread" else 0


def local_ids(ids: Int[Array, "..."], first: Int[Array, "..."] | int, n: int) -> Int[Array, "..."]:
    """Returns the ids counted from the expert `first`, with n for those of none of the n experts there."""
    mine = ids - first
    return jnp.where((mine >= 0) & (mine < n), mine, n)


class Groups(NamedTuple):
    """Routes sorted by expert; within an expert in token order. What goes nowhere comes last."""

    order: Int[Array, " routes"]  # route numbers: token * routes of a token + which
    sizes: Int[Array, " n"]
    starts: Int[Array, " n"]


def group_routes(mine: Int[Array, "t routes"], n: int) -> Groups:
    """Returns the routes of each of n experts; the id n is none of them."""
    flat = mine.reshape(-1)
    sizes = jnp.bincount(flat, length=n + 1)[:n]
    return Groups(jnp.argsort(flat, stable=True), sizes, jnp.cumsum(sizes) - sizes)


class Block(NamedTuple):
    """Consecutive local experts with the same number of places: one batched product."""

    experts: slice
    count: int
    places: int

    def of(self, weights: Experts) -> Experts:
        """Returns the weights of these experts."""
        return Experts(*(w[self.experts] for w in weights))


def blocks_of(places: np.ndarray) -> list[Block]:
    """Returns the runs of experts that have the same number of places, int [n], in their order."""
    bounds = [0, *(np.flatnonzero(np.diff(places)) + 1).tolist(), len(places)]
    return [Block(slice(a, b), b - a, int(places[a])) for a, b in itertools.pairwise(bounds)]


def batched_ffn(x: Float[Array, "*b n c d"], experts: Experts) -> Float[Array, "*b n c d"]:
    """Returns every expert's gated FFN on its own places."""
    einsum = functools.partial(jnp.einsum, "...ncd,ndf->...ncf")
    return einsum(jax.nn.silu(einsum(x, experts.gate)) * einsum(x, experts.up), experts.down)


def slot_sum(
    x: Float[Array, "t d"],
    mine: Int[Array, "t routes"],
    weights: Float[Array, "t routes"],
    experts: Experts,
    places: np.ndarray,
    limits: Int[Array, " n"],
) -> tuple[Float[Array, "t d"], Int[Array, ""]]:
    """Returns (weighted sum over each token's routes in float32, dropped routes), by places and batched products.

    Args:
        x: tokens.
        mine: local number of the expert of each route; n = none here.
        weights: of the routes.
        experts: the n local experts, whole.
        places: static places of each, int [n].
        limits: how many of them are used, <= places.
    """
    routes, routes_total = mine.shape[1], mine.size
    order, sizes, starts = group_routes(mine, len(places))
    kept = jnp.minimum(sizes, limits)
    out = jnp.zeros(x.shape, jnp.float32)
    for block in blocks_of(places):
        at = starts[block.experts, None] + jnp.arange(block.places)
        filled = jnp.arange(block.places) < kept[block.experts, None]
        route = order[jnp.minimum(at, routes_total - 1)]
        token = route // routes
        taken = jnp.where(filled[..., None], x[token], 0)
        y = batched_ffn(taken, block.of(experts)).astype(jnp.float32)
        y = y * jnp.where(filled, weights.reshape(-1)[route], 0.0)[..., None]
        out = out.at[token.reshape(-1)].add(y.reshape(-1, x.shape[1]))
    return out, (sizes - kept).sum()


def ragged_ffn(
    x: Float[Array, "m d"], experts: Experts, sizes: Int[Array, " n"], real: Bool[Array, " m"]
) -> Float[Array, "m d"]:
    """Returns the gated FFN of rows that are sorted by expert.

    What `ragged_dot` and its gradients write into rows past the last group is undefined. So every product's input and
    output is zero there by `where`, whose gradient is zero too; the kernels need not compute those rows.
    """
    zero = lambda rows: jnp.where(real[:, None], rows, 0)  # noqa: E731
    product = lambda rows, weight: zero(lax.ragged_dot(rows, weight, sizes))  # noqa: E731
    x = zero(x)
    return product(zero(jax.nn.silu(product(x, experts.gate)) * product(x, experts.up)), experts.down)


def ragged_sum(
    x: Float[Array, "t d"],
    mine: Int[Array, "t routes"],
    weights: Float[Array, "t routes"],
    experts: Experts,
    places: np.ndarray | None = None,
    limits: Int[Array, " n"] | None = None,
) -> tuple[Float[Array, "t d"], Int[Array, ""]]:
    """Returns (weighted sum over each token's routes in float32, dropped routes), by sorting and ragged products.

    Args: as of `slot_sum`; without places and limits nothing is dropped.
    """
    (t, routes), n = mine.shape, experts.gate.shape[0]
    order, sizes, starts = group_routes(mine, n)
    kept = sizes if limits is None else jnp.minimum(sizes, limits)
    rows = t * min(routes, n)  # a token's routes go to different experts
    rows = rows if places is None else min(rows, int(places.sum()))
    ends = jnp.cumsum(kept)
    row = jnp.arange(rows)
    expert = jnp.minimum(jnp.searchsorted(ends, row, side="right"), n - 1)
    real = row < ends[-1]
    route = order[jnp.where(real, starts[expert] + row - (ends - kept)[expert], 0)]
    token = route // routes
    y = ragged_ffn(x[token], experts, kept, real).astype(jnp.float32)
    y = y * jnp.where(real, weights.reshape(-1)[route], 0.0)[:, None]
    return jnp.zeros(x.shape, jnp.float32).at[token].add(y), (sizes - kept).sum()
