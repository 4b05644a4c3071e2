"""Strategies in which every expert shard sees all tokens of its group, or every token's shard sees all experts.

The expert group of a batch shard is the shards along `expert` that share its place on the other axes.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from moon_jax.config import MoEConfig
from moon_jax.moe.grouped import capacities, first_local, local_ids, places_of, ragged_sum, slot_sum
from moon_jax.moe.strategy import Experts, kept, strategy

BOTH = ("spread", "split")


def _everywhere(experts: Experts, config: MoEConfig, dtype: jnp.dtype) -> Experts:
    """Returns all experts, whole but for `tensor`, on every shard."""
    gate, up, down = experts.gathered(dtype, config)
    wide, narrow = (0, 0) if config.placement == "spread" else (2, 1)
    gather = lambda w, axis: lax.all_gather(w, "expert", axis=axis, tiled=True)  # noqa: E731
    return Experts(gather(gate, wide), gather(up, wide), gather(down, narrow))


@strategy(capacity="none", placements=BOTH)
def dense(
    tokens: Float[Array, "t d"],
    ids: Int[Array, "t routes"],
    weights: Float[Array, "t routes"],
    experts: Experts,
    config: MoEConfig,
) -> tuple[Float[Array, "t d"], Int[Array, ""]]:
    """The oracle: every expert's weights come to every shard, every expert sees every token, nothing is dropped."""

    def add_expert(total, expert):
        number, gate, up, down = expert
        share = jnp.where(ids == number, weights, 0.0).sum(axis=1)
        y = (jax.nn.silu(tokens @ gate) * (tokens @ up)) @ down
        return total + share[:, None] * y.astype(jnp.float32), None

    zero = jnp.zeros_like(tokens, jnp.float32)
    whole = _everywhere(experts, config, tokens.dtype)
    out, _ = lax.scan(add_expert, zero, (jnp.arange(config.experts), *whole))
    return out, jnp.int32(0)


@strategy(capacity="none", placements=BOTH)
def replicated(
    tokens: Float[Array, "t d"],
    ids: Int[Array, "t routes"],
    weights: Float[Array, "t routes"],
    experts: Experts,
    config: MoEConfig,
) -> tuple[Float[Array, "t d"], Int[Array, ""]]:
    """Tokens stay: every expert's weights come to every shard, which sorts its own routes; nothing is dropped."""
    return ragged_sum(tokens, ids, weights, _everywhere(experts, config, tokens.dtype))


def _gathered_sum(form, tokens, ids, weights, experts, config):
    """Gathers the group's tokens, sums by `form` over the local experts, adds up and scatters over `expert`."""
    local = experts.gathered(tokens.dtype, config)
    with jax.named_scope("dispatch"):
        x, ids, weights = (kept(lax.all_gather(t, "expert", tiled=True)) for t in (tokens, ids, weights))
    n = local.gate.shape[0]
    first = first_local(n, config)
    capacity = capacities(x.shape[0], config)
    limits = jnp.asarray(capacity)[first + jnp.arange(n)]
    out, dropped = form(x, local_ids(ids, first, n), weights, local, places_of(capacity, n), limits)
    if config.placement == "split":  # every shard of the group holds a slice of every expert, and counts the same
        dropped = jnp.where(lax.axis_index("expert") == 0, dropped, 0)
    with jax.named_scope("dispatch"):
        # in the compute dtype, as every sum over `tensor`: half of the bytes, also of the gradient that comes back,
        # which has no more bits than that. A token has at most top_k + 1 shards to add up, unless they are slices.
        out = lax.psum_scatter(out.astype(tokens.dtype), "expert", scatter_dimension=0, tiled=True)
    return out.astype(jnp.float32), dropped


@strategy(capacity="group", placements=BOTH)
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
    return _gathered_sum(slot_sum, tokens, ids, weights, experts, config)


@strategy(capacity="group", placements=BOTH)
def all_gather(
    tokens: Float[Array, "t d"],
    ids: Int[Array, "t routes"],
    weights: Float[Array, "t routes"],
    experts: Experts,
    config: MoEConfig,
) -> tuple[Float[Array, "t d"], Int[Array, ""]]:
    """As `slots`, but the routes of the local experts are sorted and multiplied by `ragged_dot`."""
    return _gathered_sum(ragged_sum, tokens, ids, weights, experts, config)
