"""One configuration on one target: everything that is known before it runs, as plain data for JSON and for reading."""

import dataclasses
import math
from collections import defaultdict
from importlib import metadata
from typing import Any

import jax

from moon_jax.config import Config, ConfigError, MeshConfig
from moon_jax.models.attention import check_attention
from moon_jax.moe.dispatch import check_strategy
from moon_jax.parallel.mesh import abstract_mesh, batch_shards
from moon_jax.planning.batch import batch_unit, planned_shape
from moon_jax.planning.chips import GIB, Target
from moon_jax.planning.compiling import Compiled, compile_step, compile_without_code
from moon_jax.planning.cost import ATTAINABLE, Cost, cost_of
from moon_jax.planning.largest import largest_by_line, state_bytes
from moon_jax.planning.network import Links
from moon_jax.planning.targets import mesh_on
from moon_jax.training.state import Trainer


def check(config: Config, target: Target, mesh: jax.sharding.Mesh) -> Trainer:
    """Returns the trainer of a configuration that can be compiled for a target.

    Raises:
        ConfigError: mesh, model, batch, attention, dispatch or target do not fit; names the setting.
    """
    if config.loss.kind != "contrastive":
        raise ConfigError(f"config.loss.kind = {config.loss.kind!r}: only the contrastive step can be planned")
    check_attention(config.model, target.chip.platform)
    check_strategy(config.moe, mesh.shape, target.chip.platform)
    return Trainer(config, mesh)


def analyse(config: Config, target: Target, code: bool = True) -> dict[str, Any]:
    """Compiles the train step for the target and returns the report as nested dicts of plain values.

    Args:
        config: all settings; its mesh must multiply to the chips of the target.
        target: chips and topology.
        code: down to machine code; without, a TPU takes seconds for minutes, and its kernels are not checked.

    Raises:
        ConfigError: they do not fit together.
    """
    mesh = mesh_on(target, config.mesh)
    trainer = check(config, target, mesh)
    links = Links(target, mesh)
    cost = cost_of(config, trainer, links)
    if code or target.chip.platform != "tpu":
        compiled = compile_step(trainer, target.chip.memory)
    else:
        compiled = compile_without_code(config, target)
    report = outline(config, target, trainer, cost)
    report["memory"] |= {
        name: getattr(compiled, name) for name in ("arguments", "temporaries", "outputs", "code", "peak", "fits")
    } | {"capacity": round(compiled.capacity), "largest": list(compiled.largest)}
    report["compile_seconds"] = round(compiled.seconds, 1)
    report["warnings"] = list(compiled.warnings)
    if compiled.collectives:
        report["collectives"] = _collectives(compiled, links)
        report["seconds"] = _seconds(cost, report["collectives"])
        report |= _rates(config, target, cost, report["seconds"])
    state = state_bytes(trainer)
    report["largest_batch_estimate"] = largest_by_line(
        report["triplets_per_shard"], compiled.peak, state, compiled.capacity
    )
    if not compiled.fits:
        report["advice"] = advice(config, target, cost)
    return report


def outline(config: Config, target: Target, trainer: Trainer, cost: Cost) -> dict[str, Any]:
    """Returns the part of the report that needs no compiler; times and memory are those of the cost model."""
    shape, mesh = planned_shape(config, trainer.mesh), trainer.mesh
    names = {"jax": "jax", "flax": "flax", "libtpu": "libtpu", "jax-cuda12-pjrt": "jax-cuda12-pjrt"}
    versions = {n: metadata.version(p) for n, p in names.items() if _installed(p)}
    seconds = {
        "arithmetic": cost.arithmetic_seconds, "network": cost.network_seconds, "predicted": cost.step_seconds,
    }  # fmt: skip
    return {
        "name": config.name,
        "target": target.name,
        "chips": target.count,
        "mesh": dict(mesh.shape),
        "settings": {
            "strategy": config.moe.strategy, "placement": config.moe.placement, "remat": config.model.remat,
            "attention_impl": config.model.attention_impl, "capacity_factor": config.moe.capacity_factor,
            "guided_capacity": config.moe.guided_capacity, "max_pixels": config.data.max_pixels,
            "dtype": config.model.dtype,
        },
        "triplets": config.train.batch_size,
        "triplets_per_shard": config.train.batch_size // batch_shards(mesh),
        "batch_shape": dataclasses.asdict(shape),
        "parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(trainer.shapes)),
        "replicated": trainer.replicated,
        "memory": {"estimate": cost.memory | {"sum": cost.peak_memory}, "capacity": round(target.chip.memory)},
        "flops": {
            "executed": sum(part.total for part in cost.flops.values()),
            "model": cost.model_flops,
            "parts": {name: dataclasses.asdict(part) for name, part in cost.flops.items()},
        },
        "seconds": seconds,
        **_rates(config, target, cost, seconds),
        "versions": versions,
    }  # fmt: skip


def _installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _collectives(compiled: Compiled, links: Links) -> list[dict[str, Any]]:
    """Returns the collectives of a step added up by kind, mesh axes, type and whether other work may run meanwhile."""
    rows: dict[tuple, dict[str, Any]] = defaultdict(lambda: {"count": 0, "bytes": 0, "wire_bytes": 0, "seconds": 0.0})
    for c in compiled.collectives:
        row = rows[c.kind, c.axes, c.dtype, c.overlaps]
        row["count"] += c.count
        row["bytes"] += c.bytes * c.count
        row["wire_bytes"] += c.wire_bytes
        row["seconds"] += c.wire_bytes / links.bandwidth(c.kind, c.axes)
    named = [
        {"kind": kind, "axes": list(axes or ()), "dtype": dtype, "overlaps": overlaps, **row}
        for (kind, axes, dtype, overlaps), row in rows.items()
    ]
    return sorted(named, key=lambda row: -row["seconds"])


def _seconds(cost: Cost, collectives: list[dict[str, Any]]) -> dict[str, float]:
    waiting = sum(row["seconds"] for row in collectives if not row["overlaps"])
    hidden = sum(row["seconds"] for row in collectives if row["overlaps"])
    working = cost.arithmetic_seconds / ATTAINABLE
    return {
        "arithmetic": cost.arithmetic_seconds,
        "network": waiting + hidden,
        "network_model": cost.network_seconds,
        "predicted": waiting + max(working, hidden),
    }


def _rates(config: Config, target: Target, cost: Cost, seconds: dict[str, float]) -> dict[str, float]:
    ideal = cost.model_flops / target.chip.peak(config.model.dtype)
    return {
        "mfu_bound": ideal / max(seconds["arithmetic"], seconds["network"]),
        "mfu_predicted": ideal / seconds["predicted"],
        "triplets_per_second": config.train.batch_size / seconds["predicted"],
    }


def advice(config: Config, target: Target, cost: Cost) -> list[str]:
    """Returns changes that would lower the memory, each with what the cost model thinks that it saves."""
    model, train = config.model, config.train
    sizes = dict(abstract_mesh(config.mesh, target.count).shape)
    changes: dict[str, Config] = {}
    if model.remat != "full":
        changes["--config.model.remat=full"] = dataclasses.replace(
            config, model=dataclasses.replace(model, remat="full")
        )
    if model.attention_impl == "xla":
        impl = {"tpu": "splash", "gpu": "triton"}[target.chip.platform]
        changes[f"--config.model.attention_impl={impl}"] = dataclasses.replace(
            config, model=dataclasses.replace(model, attention_impl=impl)
        )
    shards = target.count // sizes["tensor"]
    step = shards * batch_unit(config, shards)
    fewer = train.batch_size // step // 2 * step
    if fewer:
        changes[f"--config.train.batch_size={fewer}"] = dataclasses.replace(
            config, train=dataclasses.replace(train, batch_size=fewer)
        )
    for lower, higher in (("data", "fsdp"), ("expert", "fsdp"), ("fsdp", "tensor")):
        if sizes[lower] % 2 == 0:
            dealt = sizes | {lower: sizes[lower] // 2, higher: sizes[higher] * 2}
            flags = " ".join(f"--config.mesh.{axis}={dealt[axis]}" for axis in (lower, higher))
            changes[flags] = dataclasses.replace(config, mesh=MeshConfig(**dealt))
    lines = []
    for flags, changed in changes.items():
        try:
            there = mesh_on(target, changed.mesh)
            changed_cost = cost_of(changed, check(changed, target, there), Links(target, there))
        except ValueError:  # the change does not fit the model or the batch
            continue
        saved = cost.peak_memory - changed_cost.peak_memory
        if saved > 0.01 * cost.peak_memory:
            lines.append((saved, f"{flags} (saves about {saved / GIB:.1f} GiB)"))
    return [line for _, line in sorted(lines, reverse=True)]
