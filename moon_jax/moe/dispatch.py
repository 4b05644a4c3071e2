"""How tokens get to their experts: one call, one table of strategies, one check before anything is compiled.

A new strategy is a function under `@strategy(...)` (moe/strategy.py) in a file that is imported; those of the project
are in moe/gathering.py and moe/sending.py. docs/moe.md compares them.
"""

from collections.abc import Mapping

from jaxtyping import Array, Float, Int

from moon_jax.config import ConfigError, MoEConfig
from moon_jax.moe import gathering, sending  # noqa: F401 (they fill the table)
from moon_jax.moe.strategy import STRATEGIES, Experts, Strategy, expert_axes, strategy

__all__ = ["STRATEGIES", "Experts", "Strategy", "check_strategy", "dispatch", "expert_axes", "strategy"]

_PLATFORM = {"cuda": "gpu", "rocm": "gpu"}


def dispatch(
    tokens: Float[Array, "t d"],
    ids: Int[Array, "t routes"],
    weights: Float[Array, "t routes"],
    experts: Experts,
    config: MoEConfig,
) -> tuple[Float[Array, "t d"], Int[Array, ""]]:
    """Returns (weighted sum over the routes of each token, routes that this shard saw dropped).

    The sum is float32 and still partial over `tensor`. The drops of all batch shards add up to those of the batch.

    Args:
        tokens: of this batch shard, in the compute dtype, varying over `tensor` (`enter_tensor`).
        ids: the experts that each token visits, all different; the number of experts means "nothing".
        weights: of the routes, float32; 0 where nothing is visited.
        experts: the local shards of the weights, as stored.
        config: its `strategy` names the way.
    """
    return STRATEGIES[config.strategy].run(tokens, ids, weights, experts, config)


def check_strategy(config: MoEConfig, mesh_shape: Mapping[str, int], platform: str | None = None) -> None:
    """Checks that the strategy of the config can run on this mesh and platform, before anything is compiled.

    Args:
        config: `experts` = 0 needs no dispatch.
        mesh_shape: sizes of the axes by name (`mesh.shape`).
        platform: "cpu", "gpu" (or "cuda", "rocm") or "tpu"; None = not known yet.

    Raises:
        ConfigError: names the setting and what can be chosen instead.
    """
    if not config.experts:
        return
    row = STRATEGIES.get(config.strategy)
    if row is None:
        raise ConfigError(f"config.moe.strategy is {config.strategy!r}; it must be one of {', '.join(STRATEGIES)}")
    platform = _PLATFORM.get(platform, platform)
    fits = lambda s: platform is None or platform in s.platforms  # noqa: E731
    able = [s for s in STRATEGIES.values() if config.placement in s.placements and fits(s)]
    instead = f"these can: {', '.join(s.name for s in able)}"
    if config.placement not in row.placements:
        raise ConfigError(
            f"config.moe.strategy = {row.name!r} cannot work with config.moe.placement = {config.placement!r} (it can "
            f"with {', '.join(row.placements)}); {instead}"
        )
    if not fits(row):
        raise ConfigError(
            f"config.moe.strategy = {row.name!r} does not compile for {platform} (it does for "
            f"{', '.join(row.platforms)}); {instead}"
        )
    limits = [name for name in ("capacity_factor", "guided_capacity") if getattr(config, name)]
    if row.capacity == "none" and limits:
        limited = [s.name for s in able if s.capacity != "none"]
        named = " and ".join(f"config.moe.{name} = {getattr(config, name):g}" for name in limits)
        raise ConfigError(
            f"config.moe.strategy = {row.name!r} drops nothing, so that {named} would have no effect: set it to 0, or "
            f"use a strategy that has places: {', '.join(limited)}"
        )
    shards = mesh_shape["expert"]
    if config.placement == "spread" and config.experts % shards:
        raise ConfigError(
            f"config.moe.experts = {config.experts} does not divide by config.mesh.expert = {shards}; choose another "
            "mesh, or config.moe.placement = 'split', which shards the experts' hidden width instead"
        )
