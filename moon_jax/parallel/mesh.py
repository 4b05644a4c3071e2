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
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from moon_jax.config import ConfigError, MeshConfig

AXES = ("data", "fsdp", "expert", "tensor")
BATCH_AXES = ("data", "fsdp", "expert")
BATCH_SPEC = P(BATCH_AXES)

PARTITION: dict[str, str | tuple[str, ...] | None] = {
    "vocab": "tensor",
    "embed": "fsdp",  # the width of the language model
    "vision_embed": "fsdp",  # the width of the vision tower
    "merge": "fsdp",  # the merger's input: merge_unit * vision width
    "kv": "tensor",  # kv heads, each with its group of query heads
    "group": None,  # query heads of one kv head
    "heads": "tensor",  # vision heads
    "ffn": "tensor",
    "experts": "expert",
    "split_experts": None,  # placement "split": every shard of `expert` has a slice of every expert
    "split_ffn": ("expert", "tensor"),
    "routes": None,  # the router's outputs, one per expert
    "head_dim": None,
    "qkv": None,
    "frames": None,
    "patch": None,
    "positions": None,  # learned ones of the patches of a tile
    "norm": None,  # every vector as wide as an activation: norms and the biases that are added after a psum
}

INSTEAD = {"kv": "group"}  # where kv heads do not divide over `tensor`, the query heads of each are split


def mesh_axes(logical: str) -> tuple[str, ...]:
    """Returns the mesh axes over which the table puts a logical axis."""
    entry = PARTITION[logical]
    return entry if isinstance(entry, tuple) else (entry,) if entry else ()


def partition_spec(axes: Sequence[str], shape: Sequence[int], mesh: Mesh | AbstractMesh) -> P:
    """Returns the PartitionSpec of a parameter on a mesh; leading stacked dimensions are replicated.

    A dimension that does not divide over `tensor` stays whole there (and `INSTEAD` names one that may be split for
    it). Over the other axes the table holds as it is, and `check_divisible` complains.

    Args:
        axes: logical axes of the last dimensions.
        shape: of the whole parameter.
        mesh: the mesh that it is meant for.
    """
    sizes = dict(zip(axes, shape[len(shape) - len(axes) :], strict=True))
    entries = {name: mesh_axes(name) for name in axes}
    for name, size in sizes.items():
        if _stays_whole(name, size, mesh):
            entries[name] = tuple(axis for axis in entries[name] if axis != "tensor")
            if (other := INSTEAD.get(name)) in sizes and sizes[other] % mesh.shape["tensor"] == 0:
                entries[other] += ("tensor",)
    entries = [entry if len(entry) > 1 else entry[0] if entry else None for entry in entries.values()]
    return P(*[None] * (len(shape) - len(axes)), *entries)


def _stays_whole(logical: str, size: int, mesh: Mesh | AbstractMesh) -> bool:
    """Returns whether a dimension is meant for `tensor` and does not divide over it."""
    names = mesh_axes(logical)
    return "tensor" in names and size % math.prod(mesh.shape[name] for name in names) != 0


def replicated_dimensions(shapes: Any, axes: Any, mesh: Mesh | AbstractMesh) -> list[str]:
    """Returns what `tensor` does not split because it does not divide: a line for each such dimension of each block.

    Args:
        shapes: nested dicts of arrays or ShapeDtypeStructs.
        axes: their logical axes, as tuples, in dicts of the same structure.
        mesh: the mesh that they are meant for.
    """
    lines, times = {}, mesh.shape["tensor"]
    names = jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, tuple))
    for (path, leaf), logical in zip(jax.tree_util.tree_leaves_with_path(shapes), names, strict=True):
        block = jax.tree_util.keystr(path[:-1], simple=True, separator=".")
        sizes = dict(zip(logical, leaf.shape[len(leaf.shape) - len(logical) :], strict=True))
        for name, size in sizes.items():
            if _stays_whole(name, size, mesh):
                ways = " x ".join(f"{axis} = {mesh.shape[axis]}" for axis in mesh_axes(name))
                line = f"{block}: {name} = {size} does not divide by config.mesh.{ways}: replicated, "
                line += f"computed {times} times"
                if (other := INSTEAD.get(name)) in sizes and sizes[other] % times == 0:
                    line += f" (weights with {other} = {sizes[other]} are split there instead)"
                lines[block, name] = max(lines.get((block, name), ""), line, key=len)
    return list(lines.values())


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns the mesh over all devices (or the given ones), with Explicit axes.

    Raises:
        ConfigError: the axes do not multiply to the number of devices, more than one is -1, or `data` does not go
            over the slices of several TPU slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = _shape(config, len(devices))
    if math.prod(shape.values()) != len(devices):
        text = " x ".join(f"{name}={size}" for name, size in shape.items())
        raise ConfigError(f"config.mesh {text} does not multiply to the {len(devices)} devices that are here")
    # neighbours along an axis are neighbours in the pod's torus, also where an axis is part of a physical one
    slices = len({getattr(d, "slice_index", 0) for d in devices if d.platform == "tpu"})
    if slices > 1:
        if shape["data"] % slices:
            raise ConfigError(f"config.mesh.data = {shape['data']} must be a multiple of the {slices} TPU slices")
        within = (shape["data"] // slices, *tuple(shape.values())[1:])
        grid = mesh_utils.create_hybrid_device_mesh(within, (slices, 1, 1, 1), devices, allow_split_physical_axes=True)
    else:
        grid = mesh_utils.create_device_mesh(tuple(shape.values()), devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Explicit,) * 4)


def abstract_mesh(config: MeshConfig, devices: int = 0) -> AbstractMesh:
    """Returns the mesh without devices, for planning.

    Args:
        config: sizes of the axes; one of -1 takes what the others leave.
        devices: how many there would be; 0 = those that are here.
    """
    shape = _shape(config, devices or len(jax.devices()))
    return AbstractMesh(tuple(shape.values()), AXES, axis_types=(AxisType.Explicit,) * 4)


def parse_mesh(text: str) -> MeshConfig:
    """Returns the mesh of a flag like "fsdp=4,tensor=2"; "data" takes the devices that the others leave.

    Raises:
        ConfigError: an axis or a size is none.
    """
    sizes = {}
    for word in filter(None, text.split(",")):
        name, _, size = word.partition("=")
        if name.strip() not in AXES or name.strip() in sizes or not size.strip().lstrip("-").isdigit():
            raise ConfigError(f"--mesh={text}: {word!r} is no AXIS=SIZE; the axes are {', '.join(AXES)}")
        sizes[name.strip()] = int(size)
    return MeshConfig(**sizes)


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


def host_shards(mesh: Mesh) -> tuple[int, ...]:
    """Returns the batch shards whose devices this process owns, in order: the ones whose records it reads.

    They have gaps where the mesh follows a pod's torus. A shard whose `tensor` devices lie on several processes is read
    by each of them.
    """
    owners = np.array([[d.process_index for d in row] for row in mesh.devices.reshape(batch_shards(mesh), -1)])
    return tuple(np.flatnonzero((owners == jax.process_index()).any(axis=1)).tolist())


def shard_readers(mesh: Mesh) -> float:
    """Returns how many processes read each batch shard: more than one where its `tensor` devices lie on several.

    On the slices of TPUs and in hosts of GPUs it is the same for all shards; of a mesh where it is not, the mean.
    """
    rows = mesh.devices.reshape(batch_shards(mesh), -1)
    return float(np.mean([len({d.process_index for d in row}) for row in rows]))


def place_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Returns the host's shards [host_shards(mesh), ...] as global arrays [G, ...], sharded over the batch axes."""
    sharding, shards = NamedSharding(mesh, BATCH_SPEC), batch_shards(mesh)
    rows = {shard: row for row, shard in enumerate(host_shards(mesh))}

    def place(array: np.ndarray) -> jax.Array:
        def own(index):
            row = rows[index[0].start or 0]
            return array[row : row + 1]

        return jax.make_array_from_callback((shards, *array.shape[1:]), sharding, own)

    return {name: place(array) for name, array in batch.items()}


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
        for dimension, entry in enumerate(spec):
            names = entry if isinstance(entry, tuple) else (entry,) if entry else ()
            if leaf.shape[dimension] % math.prod(mesh.shape[axis] for axis in names):
                name = jax.tree_util.keystr(path, simple=True, separator=".")
                ways = " x ".join(f"{axis} = {mesh.shape[axis]}" for axis in names)
                problems.append(
                    f"{name} {leaf.shape}: dimension {dimension} = {leaf.shape[dimension]} does not divide by "
                    f"config.mesh.{ways}"
                )
    if problems:
        raise ConfigError("the model does not fit the mesh:\n" + "\n".join(f"  - {p}" for p in problems))


def is_spec(x: Any) -> bool:
    """Returns whether a tree node is a PartitionSpec (a leaf for us, a tuple for jax)."""
    return isinstance(x, P)


def shardings(specs: Any, mesh: Mesh | AbstractMesh) -> Any:
    """Returns the tree of NamedShardings for a tree of PartitionSpecs."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=is_spec)
