"""The device mesh, and the ONE table that says how every parameter and batch lies on it.

Axes: `data` = replicas, `fsdp` = batch and weights, `expert` = batch and experts, `tensor` = heads and ffn.
Every parameter names its own logical axes where it is made; `PARTITION` maps them to mesh axes, and every
PartitionSpec of the project is derived from it: change the table, change the sharding.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from moon_jax.config import ConfigError, MeshConfig

AXES = ("data", "fsdp", "expert", "tensor")
BATCH_AXES = ("data", "fsdp", "expert")
BATCH_SPEC = P(BATCH_AXES)

PARTITION: dict[str, str | None] = {
    "vocab": None,
    "embed": "fsdp",  # the width of the language model
    "vision_embed": "fsdp",  # the width of the vision tower
    "merge": "fsdp",  # the merger's input: merge_unit * vision width
    "kv": "tensor",  # kv heads, each with its group of query heads
    "group": None,
    "heads": "tensor",  # vision heads
    "ffn": "tensor",
    "experts": "expert",
    "routes": None,  # the router's outputs, one per expert
    "head_dim": None,
    "qkv": None,
    "frames": None,
    "patch": None,
    "norm": None,  # every vector as wide as an activation: norms and the biases that are added after a psum
}


def partition_spec(axes: Sequence[str], ndim: int) -> P:
    """Returns the PartitionSpec of a parameter with these logical axes; leading stacked dimensions are replicated."""
    return P(*[None] * (ndim - len(axes)), *(PARTITION[name] for name in axes))


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns the mesh over all devices (or the given ones), with Explicit axes.

    Raises:
        ConfigError: the axes do not multiply to the number of devices, or more than one is -1.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = _shape(config, len(devices))
    if math.prod(shape.values()) != len(devices):
        text = " x ".join(f"{name}={size}" for name, size in shape.items())
        raise ConfigError(f"config.mesh {text} does not multiply to the {len(devices)} devices that are here")
    return jax.make_mesh(tuple(shape.values()), AXES, axis_types=(AxisType.Explicit,) * 4, devices=devices)


def abstract_mesh(config: MeshConfig) -> AbstractMesh:
    """Returns the mesh without devices, for planning; an axis of -1 takes what the devices that are here leave."""
    shape = _shape(config, len(jax.devices()))
    return AbstractMesh(tuple(shape.values()), AXES, axis_types=(AxisType.Explicit,) * 4)


def _shape(config: MeshConfig, devices: int) -> dict[str, int]:
    """Returns the sizes of the axes, with what is left in place of -1 (at least 1)."""
    shape = {name: getattr(config, name) for name in AXES}
    free = [name for name, size in shape.items() if size == -1]
    if len(free) > 1 or any(size < 1 and size != -1 for size in shape.values()):
        text = " x ".join(f"{name}={size}" for name, size in shape.items())
        raise ConfigError(f"config.mesh {text}: sizes are positive, and at most one axis may be -1 (= what is left)")
    for name in free:
        shape[name] = max(devices // math.prod(size for size in shape.values() if size != -1), 1)
    return shape


def batch_shards(mesh: Mesh | AbstractMesh) -> int:
    """Returns G, the number of batch shards: the leading axis of every host array."""
    return math.prod(mesh.shape[name] for name in BATCH_AXES)


def host_shards(mesh: Mesh) -> range:
    """Returns the batch shards whose devices this process owns; they are consecutive.

    Raises:
        ConfigError: the mesh interleaves the processes, so that a host would read batches with gaps.
    """
    owners = np.array([[d.process_index for d in row] for row in mesh.devices.reshape(batch_shards(mesh), -1)])
    mine = np.flatnonzero((owners == jax.process_index()).any(axis=1))
    if len(mine) != mine[-1] - mine[0] + 1:
        raise ConfigError(f"process {jax.process_index()} owns the batch shards {mine.tolist()}, which have gaps")
    return range(int(mine[0]), int(mine[-1]) + 1)


def place_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Returns the host's shards [G of this host, ...] as global arrays [G, ...], sharded over the batch axes."""
    sharding = NamedSharding(mesh, BATCH_SPEC)
    return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}


def check_divisible(shapes: Any, specs: Any, mesh: Mesh | AbstractMesh) -> None:
    """Checks that every sharded dimension divides by its mesh axis, before anything is compiled.

    Args:
        shapes: tree of arrays or ShapeDtypeStructs.
        specs: tree of PartitionSpecs of the same structure.
        mesh: the mesh they are meant for.

    Raises:
        ConfigError: names every parameter, dimension and axis that do not fit.
    """
    problems = []
    for (path, leaf), spec in zip(
        jax.tree_util.tree_leaves_with_path(shapes), jax.tree.leaves(specs, is_leaf=is_spec), strict=True
    ):
        for dimension, axis in enumerate(spec):
            if axis is not None and leaf.shape[dimension] % mesh.shape[axis]:
                name = jax.tree_util.keystr(path, simple=True, separator=".")
                problems.append(
                    f"{name} {leaf.shape}: dimension {dimension} = {leaf.shape[dimension]} does not divide by "
                    f"config.mesh.{axis} = {mesh.shape[axis]}"
                )
    if problems:
        raise ConfigError("the model does not fit the mesh:\n" + "\n".join(f"  - {p}" for p in problems))


def is_spec(x: Any) -> bool:
    """Returns whether a tree node is a PartitionSpec (a leaf for us, a tuple for jax)."""
    return isinstance(x, P)


def shardings(specs: Any, mesh: Mesh | AbstractMesh) -> Any:
    """Returns the tree of NamedShardings for a tree of PartitionSpecs."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=is_spec)
