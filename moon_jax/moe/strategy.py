"""What a dispatch strategy is: one signature, what it can do, and the table that it enters by its decorator.

A strategy runs inside the shard_map, on the tokens of one batch shard, with the expert weights as they are stored.
It returns the weighted sum over the routes of each token in float32, still partial over `tensor`, and the number of
routes that found no place, counted so that the sum over all batch shards is the number of the whole batch.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from moon_jax.config import MoEConfig
from moon_jax.parallel.collectives import gather_weight

Axes = tuple[str, str, str]  # logical axes of one weight, see parallel/mesh.py

_AXES: dict[str, tuple[Axes, Axes]] = {  # placement -> (of gate and up, of down)
    "spread": (("experts", "embed", "ffn"), ("experts", "ffn", "embed")),
    "split": (("split_experts", "embed", "split_ffn"), ("split_experts", "split_ffn", "embed")),
}


def expert_axes(config: MoEConfig) -> tuple[Axes, Axes, Axes]:
    """Returns the logical axes of the weights (gate, up, down) under the config's placement.

    "spread": whole experts, N / expert axis on each shard. "split": every shard of `expert` holds a slice of the hidden
    width of every expert.
    """
    wide, narrow = _AXES[config.placement]
    return wide, wide, narrow


class Experts(NamedTuple):
    """The local shards of the expert weights as they are stored.

    "spread": n = N / expert axis, d / fsdp, f / tensor. "split": n = N, d / fsdp, f / (expert * tensor).
    """

    gate: Float[Array, "n d f"]
    up: Float[Array, "n d f"]
    down: Float[Array, "n f d"]

    def gathered(self, dtype: DTypeLike, config: MoEConfig) -> "Experts":
        """Returns this expert shard's weights with the fsdp axis gathered."""
        return Experts(*(gather_weight(w, a, dtype) for w, a in zip(self, expert_axes(config), strict=True)))


def kept(x: Array) -> Array:
    """Returns x, marked to be kept for the backward pass under remat "layer": what dispatch brought over the mesh.

    So is the router's choice (routing.py): what was brought must meet the same tokens again. Where nothing crosses,
    nothing is kept.
    """
    return checkpoint_name(x, "dispatched") if lax.axis_size("expert") > 1 else x


Run = Callable[
    [Float[Array, "t d"], Int[Array, "t routes"], Float[Array, "t routes"], Experts, MoEConfig],
    tuple[Float[Array, "t d"], Int[Array, ""]],
]


@dataclasses.dataclass(frozen=True)
class Strategy:
    """One row of the table: a function and what it can do."""

    name: str
    run: Run
    capacity: str  # who competes for an expert's places: "none" (dropless), "group" (expert group), "shard" (one shard)
    placements: tuple[str, ...]
    platforms: tuple[str, ...]  # where it compiles, of "cpu", "gpu", "tpu"


STRATEGIES: dict[str, Strategy] = {}


def strategy(
    *,
    capacity: str,
    placements: tuple[str, ...] = ("spread",),
    platforms: tuple[str, ...] = ("cpu", "gpu", "tpu"),
) -> Callable[[Run], Run]:
    """Enters the decorated function into STRATEGIES under its own name.

    Args:
        capacity: "none": it never drops a route, whatever the config says; "group": an expert keeps the first routes in
            token order among the tokens of its expert group (the batch shards along `expert`); "shard": the first
            ones of every batch shard.
        placements: those of `MoEConfig.placement` that it can work with.
        platforms: where it compiles.

    Raises:
        ValueError: the name is taken, or `capacity` is none of the three words.
    """

    def enter(run: Run) -> Run:
        name = run.__name__
        if name in STRATEGIES:
            raise ValueError(f"there is a dispatch strategy {name!r} already")
        if capacity not in ("none", "group", "shard"):
            raise ValueError(f"strategy {name!r}: capacity is {capacity!r}; it must be 'none', 'group' or 'shard'")
        STRATEGIES[name] = Strategy(name, run, capacity, placements, platforms)
        return run

    return enter
