"""How tokens get to their experts: one function per strategy, one signature, one table.

A strategy runs inside the shard_map, on the tokens of one batch shard, with experts sharded over `expert`, their
first width over `fsdp` and their hidden width over `tensor`. It returns the weighted sum over the routes of each
token, still partial over `tensor`, and the number of routes it dropped among those this shard's experts received.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from moon_jax.config import MoEConfig
from moon_jax.moe.routing import CATEGORY_EXPERT, attribute_expert
from moon_jax.parallel.collectives import gather_weight


class Experts(NamedTuple):
    """The local shards of the expert weights as they are stored: n = N / expert axis, d / fsdp, f / tensor."""

    gate: Float[Array, "n d f"]
    up: Float[Array, "n d f"]
    down: Float[Array, "n f d"]

    def gathered(self, dtype: DTypeLike) -> "Experts":
        """Returns this expert shard's weights with the fsdp axis gathered."""
        wide, narrow = ("experts", "embed", "ffn"), ("experts", "ffn", "embed")
        axes = Experts(wide, wide, narrow)
        return Experts(*(gather_weight(w, a, dtype) for w, a in zip(self, axes, strict=True)))


Strategy = Callable[
    [Float[Array, "t d"], Int[Array, "t routes"], Float[Array, "t routes"], Experts, MoEConfig],
    tuple[Float[Array, "t d"], Int[Array, ""]],
]


def dense(
    tokens: Float[Array, "t d"],
    ids: Int[Array, "t routes"],
    weights: Float[Array, "t routes"],
    experts: Experts,
    config: MoEConfig,
) -> tuple[Float[Array, "t d"], Int[Array, ""]]:
    """The oracle: every expert's weights come to every shard, every expert sees every token, nothing is dropped."""
    whole = Experts(*(lax.all_gather(w, "expert", tiled=True) for w in experts.gathered(tokens.dtype)))

    def add_expert(total, expert):
        number, gate, up, down = expert
        share = jnp.where(ids == number, weights, 0.0).sum(axis=1)
        y = (jax.nn.silu(tokens @ gate) * (tokens @ up)) @ down
        return total + share[:, None] * y.astype(jnp.float32), None

    zero = jnp.zeros_like(tokens, jnp.float32)
    out, _ = lax.scan(add_expert, zero, (jnp.arange(config.experts), *whole))
    return out, jnp.int32(0)


def slots(
    tokens: Float[Array, "t d"],
    ids: Int[Array, "t routes"],
    weights: Float[Array, "t routes"],
    experts: Experts,
    config: MoEConfig,
) -> tuple[Float[Array, "t d"], Int[Array, ""]]:
    """Tokens of the expert group are gathered, each local expert takes its own into fixed places, sums are scattered.

    all_gather over `expert`; gather into [n, places, d]; one batched product; add back; reduce-scatter over `expert`.
    Where more tokens come than there are places, the later ones are dropped for this expert (their other routes stay).
    """
    x, ids, weights = (lax.all_gather(t, "expert", tiled=True) for t in (tokens, ids, weights))
    local = experts.gathered(tokens.dtype)
    n, routes, total = local.gate.shape[0], ids.shape[1], x.shape[0]
    first = lax.axis_index("expert") * n
    mine = ids.reshape(-1) - first
    mine = jnp.where((mine >= 0) & (mine < n), mine, n)
    order = jnp.argsort(mine, stable=True)
    sizes = jnp.bincount(mine, length=n + 1)[:n]
    starts = jnp.cumsum(sizes) - sizes
    capacity = _capacity(total, config)
    kept = jnp.minimum(sizes, jnp.asarray(capacity)[first + jnp.arange(n)])
    # local number i is another expert on every shard of `expert`: the program has places for the largest of them
    most = capacity.reshape(-1, n).max(axis=0)

    out = jnp.zeros(x.shape, jnp.float32)
    for places in np.unique(most):
        members = np.flatnonzero(most == places)
        at = starts[members, None] + jnp.arange(places)
        filled = jnp.arange(places) < kept[members, None]
        route = order[jnp.minimum(at, total * routes - 1)]
        token = route // routes
        taken = jnp.where(filled[..., None], x[token], 0)
        gate, up, down = (w[members] for w in local)
        einsum = functools.partial(jnp.einsum, "ncd,ndf->ncf")
        y = einsum(jax.nn.silu(einsum(taken, gate)) * einsum(taken, up), down).astype(jnp.float32)
        y = y * jnp.where(filled, weights.reshape(-1)[route], 0.0)[..., None]
        out = out.at[token.reshape(-1)].add(y.reshape(-1, x.shape[1]))
    return lax.psum_scatter(out, "expert", scatter_dimension=0, tiled=True), (sizes - kept).sum()


def _capacity(total: int, config: MoEConfig) -> np.ndarray:
    """Returns how many of the `total` tokens of an expert group each expert takes, int [experts]; 0 set = all."""
    general = math.ceil(config.capacity_factor * total * config.top_k / (config.experts - 2)) or total
    capacity = np.full(config.experts, min(general, total))
    capacity[[CATEGORY_EXPERT, attribute_expert(config.experts)]] = min(
        math.ceil(config.guided_capacity * total) or total, total
    )
    return capacity


STRATEGIES: dict[str, Strategy] = {"dense": dense, "slots": slots}


def dispatch(
    tokens: Float[Array, "t d"],
    ids: Int[Array, "t routes"],
    weights: Float[Array, "t routes"],
    experts: Experts,
    config: MoEConfig,
) -> tuple[Float[Array, "t d"], Int[Array, ""]]:
    """Returns what the strategy named by the config gives: (weighted sum over routes, dropped routes)."""
    return STRATEGIES[config.strategy](tokens, ids, weights, experts, config)
