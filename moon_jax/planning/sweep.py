"""Which mesh and dispatch strategy suit a number of chips: all of them ranked by the cost model."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from moon_jax.config import Config, ConfigError, MeshConfig
from moon_jax.moe.dispatch import STRATEGIES, check_strategy
from moon_jax.planning.analysis import check
from moon_jax.planning.batch import planned_shape
from moon_jax.planning.chips import GIB, Target
from moon_jax.planning.cost import Cost, cost_of
from moon_jax.planning.network import Links
from moon_jax.planning.targets import mesh_on
from moon_jax.training.plan import device_bytes
from moon_jax.training.state import Trainer

PLACEMENTS = ("spread", "split")


class Candidate(NamedTuple):
    """One way to run."""

    config: Config
    cost: Cost
    fits: bool  # by the cost model
    replicated: tuple[str, ...]


def rank(
    config: Config, target: Target, progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[list[Candidate], dict[str, str]]:
    """Returns (ways to run, those that fit first and the fastest of them first; {way: why it cannot work}).

    The global batch stays as the config has it. Every mesh that multiplies to the chips is tried with every strategy
    and placement that compiles for them.

    Args:
        config: all settings but the mesh, `moe.strategy` and `moe.placement`.
        target: chips and topology.
        progress: called with (ways looked at, all ways).
    """
    ways = list(_ways(config, target.count))
    found, refused, trainers = [], {}, {}
    for number, changed in enumerate(ways):
        progress(number, len(ways))
        key = changed.mesh, changed.moe.placement
        try:
            if key not in trainers:
                mesh = mesh_on(target, changed.mesh)
                trainers = {key: (check(changed, target, mesh), Links(target, mesh))}
            trainer, links = trainers[key]
            check_strategy(changed.moe, trainer.mesh.shape, target.chip.platform)
            _check_state(trainer, target)
        except ConfigError as error:
            refused[name(changed)] = str(error)
            continue
        cost = cost_of(changed, trainer, links)
        fits = cost.peak_memory <= target.chip.memory
        found.append(Candidate(changed, cost, fits, tuple(trainer.replicated)))
    progress(len(ways), len(ways))
    return sorted(found, key=lambda c: (not c.fits, c.cost.step_seconds)), refused


def _check_state(trainer: Trainer, target: Target) -> None:
    needed = sum(device_bytes(trainer, planned_shape(trainer.config, trainer.mesh)).values())
    if needed > target.chip.memory:
        raise ConfigError(f"state and gradients alone take {needed / GIB:.1f} of {target.chip.memory / GIB:.1f} GiB")


def _ways(config: Config, chips: int) -> Iterator[Config]:
    divisors = [n for n in range(1, chips + 1) if chips % n == 0]
    for data, fsdp, expert in itertools.product(divisors, repeat=3):
        rest, left = divmod(chips, data * fsdp * expert)
        if left or not rest:
            continue
        mesh = MeshConfig(data, fsdp, expert, rest)
        if not config.moe.experts:
            if expert == 1:
                yield dataclasses.replace(config, mesh=mesh)
            continue
        for placement in PLACEMENTS:
            for strategy in (s for s in STRATEGIES.values() if placement in s.placements):
                moe = dataclasses.replace(config.moe, strategy=strategy.name, placement=placement)
                if strategy.capacity == "none":  # it drops nothing, and refuses to be asked to
                    moe = dataclasses.replace(moe, capacity_factor=0.0, guided_capacity=0.0)
                yield dataclasses.replace(config, mesh=mesh, moe=moe)


def name(config: Config) -> str:
    """Returns the flags that make a candidate out of the config."""
    mesh = " ".join(f"--config.mesh.{axis}={size}" for axis, size in dataclasses.asdict(config.mesh).items())
    if not config.moe.experts:
        return mesh
    moe = {"strategy": config.moe.strategy, "placement": config.moe.placement}
    if STRATEGIES[config.moe.strategy].capacity == "none":
        moe |= {"capacity_factor": 0.0, "guided_capacity": 0.0}
    return " ".join([mesh, *(f"--config.moe.{key}={value}" for key, value in moe.items())])


def row(candidate: Candidate) -> dict[str, Any]:
    """Returns what the ranking shows of a candidate, as plain values."""
    config, cost = candidate.config, candidate.cost
    return {
        "flags": name(config),
        "mesh": dataclasses.asdict(config.mesh),
        "strategy": config.moe.strategy,
        "placement": config.moe.placement,
        "fits": candidate.fits,
        "memory": cost.peak_memory,
        "arithmetic_seconds": cost.arithmetic_seconds,
        "network_seconds": cost.network_seconds,
        "step_seconds": cost.step_seconds,
        "triplets_per_second": config.train.batch_size / cost.step_seconds,
        "replicated": list(candidate.replicated),
    }
