"""Meshes, the one table of shardings, and the complaints when they do not fit."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from fake_batch import fake_batch, tiny_config
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P
from meshes import leaves, mesh_of

from moon_jax.config import ConfigError, MeshConfig
from moon_jax.models import moon
from moon_jax.parallel import mesh as meshes
from moon_jax.parallel.mesh import (
    AXES,
    PARTITION,
    batch_shards,
    check_divisible,
    host_shards,
    make_mesh,
    partition_spec,
    place_batch,
    shard_readers,
)
from moon_jax.training.state import Trainer

# Shapes are those of the tiny config: V = 96, D = Dv = 32, F = 48, K = 2 kv heads of g = 2, hd = 8 (vision: 2 of 16).
GOLDEN = {
    "text.embed": ((96, 32), P("tensor", "fsdp")),
    "text.norm": ((32,), P(None)),
    "text.layers.norm1": ((2, 32), P(None, None)),
    "text.layers.norm2": ((2, 32), P(None, None)),
    "text.layers.q": ((2, 32, 2, 2, 8), P(None, "fsdp", "tensor", None, None)),
    "text.layers.q_bias": ((2, 2, 2, 8), P(None, "tensor", None, None)),
    "text.layers.k": ((2, 32, 2, 8), P(None, "fsdp", "tensor", None)),
    "text.layers.k_bias": ((2, 2, 8), P(None, "tensor", None)),
    "text.layers.v": ((2, 32, 2, 8), P(None, "fsdp", "tensor", None)),
    "text.layers.v_bias": ((2, 2, 8), P(None, "tensor", None)),
    "text.layers.o": ((2, 2, 2, 8, 32), P(None, "tensor", None, None, "fsdp")),
    "text.layers.moe.router": ((2, 32, 8), P(None, "fsdp", None)),
    "text.layers.moe.gate": ((2, 8, 32, 48), P(None, "expert", "fsdp", "tensor")),
    "text.layers.moe.up": ((2, 8, 32, 48), P(None, "expert", "fsdp", "tensor")),
    "text.layers.moe.down": ((2, 8, 48, 32), P(None, "expert", "tensor", "fsdp")),
    "vision.patch_embed": ((2, 48, 32), P(None, None, "fsdp")),
    "vision.blocks.norm1": ((2, 32), P(None, None)),
    "vision.blocks.norm2": ((2, 32), P(None, None)),
    "vision.blocks.qkv": ((2, 32, 3, 2, 16), P(None, "fsdp", None, "tensor", None)),
    "vision.blocks.qkv_bias": ((2, 3, 2, 16), P(None, None, "tensor", None)),
    "vision.blocks.proj": ((2, 2, 16, 32), P(None, "tensor", None, "fsdp")),
    "vision.blocks.proj_bias": ((2, 32), P(None, None)),
    "vision.blocks.gate": ((2, 32, 48), P(None, "fsdp", "tensor")),
    "vision.blocks.gate_bias": ((2, 48), P(None, "tensor")),
    "vision.blocks.up": ((2, 32, 48), P(None, "fsdp", "tensor")),
    "vision.blocks.up_bias": ((2, 48), P(None, "tensor")),
    "vision.blocks.down": ((2, 48, 32), P(None, "tensor", "fsdp")),
    "vision.blocks.down_bias": ((2, 32), P(None, None)),
    "vision.merger.norm": ((32,), P(None)),
    "vision.merger.fc1": ((128, 128), P("fsdp", "tensor")),
    "vision.merger.fc1_bias": ((128,), P("tensor")),
    "vision.merger.fc2": ((128, 32), P("tensor", "fsdp")),
    "vision.merger.fc2_bias": ((32,), P(None)),
}


WHOLE = (1, 2, 2, 2)  # every dimension divides


def specs_of(config, shape=WHOLE):
    return leaves(moon.abstract(config.model, config.moe, mesh_of(shape))[2])


def test_every_parameter_has_its_shape_and_place():
    config = tiny_config()
    _, shapes, specs = moon.abstract(config.model, config.moe, mesh_of(WHOLE))
    assert {name: (leaf.shape, leaves(specs)[name]) for name, leaf in leaves(shapes).items()} == GOLDEN


def test_the_dense_ffn_has_its_place():
    specs = specs_of(tiny_config(moe__experts=0))
    assert not any("moe" in name for name in specs)
    assert specs["text.layers.ffn.gate"] == specs["text.layers.ffn.up"] == P(None, "fsdp", "tensor")
    assert specs["text.layers.ffn.down"] == P(None, "tensor", "fsdp")


@pytest.mark.parametrize(("logical", "mesh_axis"), [("vocab", None), ("embed", None), ("experts", None)])
def test_the_table_is_all_there_is_to_change(monkeypatch, logical, mesh_axis):
    config = tiny_config()
    before = specs_of(config)
    monkeypatch.setitem(PARTITION, logical, mesh_axis)
    after = specs_of(config)
    changed = {name for name in before if before[name] != after[name]}
    embed = {
        "text.embed", "text.layers.q", "text.layers.k", "text.layers.v", "text.layers.o", "text.layers.moe.router",
        "text.layers.moe.gate", "text.layers.moe.up", "text.layers.moe.down", "vision.merger.fc2",
    }  # fmt: skip
    experts = {"text.layers.moe.gate", "text.layers.moe.up", "text.layers.moe.down"}
    assert changed == {"vocab": {"text.embed"}, "embed": embed, "experts": experts}[logical]
    if logical == "vocab":
        assert after["text.embed"] == P(None, "fsdp")


def test_the_table_reaches_state_and_optimizer(monkeypatch):
    monkeypatch.setitem(PARTITION, "embed", None)
    trainer = Trainer(tiny_config(), mesh_of((2, 2, 2, 1)))
    for specs in (trainer.specs, trainer.state_specs.params):
        assert leaves(specs)["text.embed"] == P("tensor", None)
    moments = [spec for name, spec in leaves(trainer.state_specs.opt_state).items() if name.endswith("text.embed")]
    assert moments == [P("tensor", None)] * 2


def test_partition_spec_leaves_stacked_axes_whole():
    mesh = mesh_of(WHOLE)
    assert partition_spec(("embed", "ffn"), (8, 8), mesh) == P("fsdp", "tensor")
    assert partition_spec(("embed", "ffn"), (3, 3, 8, 8), mesh) == P(None, None, "fsdp", "tensor")
    with pytest.raises(KeyError):
        partition_spec(("no such axis",), (8,), mesh)


def test_a_dimension_over_several_axes():
    """The slices of experts: over `expert` and then over `tensor`, as far as they divide."""
    axes = ("split_experts", "embed", "split_ffn")
    spec = lambda ffn, shape: partition_spec(axes, (8, 32, ffn), mesh_of(shape))  # noqa: E731
    assert spec(48, (1, 1, 2, 4)) == P(None, "fsdp", ("expert", "tensor"))
    assert spec(44, (1, 1, 2, 4)) == P(None, "fsdp", "expert")
    for ffn, shape, ways in ((45, (1, 1, 2, 4), "expert = 2"), (45, (1, 1, 2, 1), "expert = 2")):
        leaf = {"gate": jax.ShapeDtypeStruct((8, 32, ffn), np.float32)}
        with pytest.raises(ConfigError, match=rf"gate .*dimension 2 = {ffn} does not divide by config.mesh.{ways}$"):
            check_divisible(leaf, {"gate": spec(ffn, shape)}, mesh_of(shape))
    both = {"gate": P(None, None, ("expert", "tensor"))}
    with pytest.raises(ConfigError, match=r"dimension 2 = 44 does not divide by config.mesh.expert = 2 x tensor = 4$"):
        check_divisible({"gate": jax.ShapeDtypeStruct((8, 32, 44), np.float32)}, both, mesh_of((1, 1, 2, 4)))


def test_axes_are_explicit_and_in_order():
    mesh = mesh_of((2, 1, 2, 2))
    assert mesh.axis_names == AXES == ("data", "fsdp", "expert", "tensor")
    assert tuple(mesh.shape.values()) == (2, 1, 2, 2)
    assert mesh.axis_types == (AxisType.Explicit,) * 4


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (MeshConfig(), (8, 1, 1, 1)),
        (MeshConfig(data=1, fsdp=-1), (1, 8, 1, 1)),
        (MeshConfig(data=2, fsdp=2, expert=-1), (2, 2, 2, 1)),
        (MeshConfig(data=-1, fsdp=2, expert=2, tensor=2), (1, 2, 2, 2)),
        (MeshConfig(data=1, fsdp=2, expert=4, tensor=-1), (1, 2, 4, 1)),
    ],
)
def test_minus_one_takes_what_is_left(config, shape):
    assert tuple(make_mesh(config).shape.values()) == shape


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MeshConfig(data=-1, fsdp=-1), "data=-1 x fsdp=-1 x expert=1 x tensor=1: .* at most one axis may be -1"),
        (MeshConfig(data=0), "data=0 .*sizes are positive"),
        (MeshConfig(data=-2), "data=-2 .*sizes are positive"),
        (MeshConfig(data=3), "data=3 x .* does not multiply to the 8 devices"),
        (MeshConfig(data=-1, tensor=3), "tensor=3 does not multiply to the 8 devices"),
        (MeshConfig(data=-1, tensor=16), "tensor=16 does not multiply to the 8 devices"),
        (MeshConfig(data=4, fsdp=4), "data=4 x fsdp=4 x expert=1 x tensor=1 does not multiply to the 8 devices"),
    ],
)
def test_a_mesh_that_cannot_be_is_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        make_mesh(config)


def test_check_divisible_names_everything():
    shapes = {"a": {"odd": jax.ShapeDtypeStruct((6, 5), np.float32)}, "fits": jax.ShapeDtypeStruct((4, 3), np.float32)}
    shapes["both"] = jax.ShapeDtypeStruct((7, 9), np.float32)
    specs = {"a": {"odd": P(None, "fsdp")}, "fits": P("fsdp", None), "both": P("tensor", "fsdp")}
    with pytest.raises(ConfigError) as error:
        check_divisible(shapes, specs, mesh_of((2, 2, 1, 2)))
    lines = str(error.value).splitlines()[1:]
    assert len(lines) == 3
    assert "a.odd (6, 5): dimension 1 = 5 does not divide by config.mesh.fsdp = 2" in lines[0]
    assert "both (7, 9): dimension 0 = 7 does not divide by config.mesh.tensor = 2" in lines[1]
    assert "both (7, 9): dimension 1 = 9 does not divide by config.mesh.fsdp = 2" in lines[2]
    check_divisible(shapes, specs, mesh_of((8, 1, 1, 1)))


def test_a_trainer_refuses_before_it_compiles():
    with pytest.raises(ConfigError) as error:  # 6 experts on 4 devices; all else fits
        Trainer(tiny_config(moe__experts=6), mesh_of((1, 2, 4, 1)))
    refused = re.findall(r"- (\S+) \(", str(error.value))
    assert refused == ["text.layers.moe.down", "text.layers.moe.gate", "text.layers.moe.up"]
    with pytest.raises(ConfigError, match=r"batch_size 12 does not divide by the 8 batch shards"):
        Trainer(tiny_config(train__batch_size=12), mesh_of((2, 2, 2, 1)))


def test_a_batch_is_placed_shard_by_shard():
    mesh = mesh_of((1, 2, 2, 2))
    batch = fake_batch(batch_shards(mesh), 1, rows=2, row_tokens=32, patch_dim=48, vocab=96)
    placed = place_batch(batch, mesh)
    assert batch_shards(mesh) == 4
    for name, array in placed.items():
        np.testing.assert_array_equal(array, batch[name])
        for shard in array.addressable_shards:
            g = int(np.argwhere(mesh.devices == shard.device)[0][:3] @ [4, 2, 1])
            np.testing.assert_array_equal(shard.data, batch[name][g : g + 1])


def test_this_process_owns_all_shards():
    assert host_shards(mesh_of((2, 2, 2, 1))) == tuple(range(8))
    assert host_shards(mesh_of((1, 2, 2, 2))) == tuple(range(4))


@dataclasses.dataclass(frozen=True)
class FarDevice:
    """Stands for a device of some process."""

    id: int
    process_index: int
    device_kind: str = "stand-in"
    platform: str = "stand-in"


def mesh_of_processes(owners):
    """Returns a mesh of devices [data, tensor] of these processes."""
    devices = np.array([FarDevice(i, p) for i, p in enumerate(np.ravel(owners).tolist())])
    return Mesh(devices.reshape(len(owners), 1, 1, -1), AXES)


def test_shards_of_several_processes(monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert host_shards(mesh_of_processes([[0, 0], [0, 0], [1, 1], [1, 1]])) == (2, 3)
    assert host_shards(mesh_of_processes([[0, 1], [0, 1]])) == (0, 1)  # a shard across processes: both feed it
    assert host_shards(mesh_of_processes([[0], [1], [0], [1]])) == (1, 3)  # as on a torus


def test_shards_that_several_processes_read():
    assert shard_readers(mesh_of_processes([[0, 0], [1, 1]])) == 1
    assert shard_readers(mesh_of_processes([[0, 1], [0, 1]])) == 2
    assert shard_readers(mesh_of_processes([[0, 1, 2, 3]])) == 4


def test_shardings_keep_the_structure():
    mesh = mesh_of((1, 2, 1, 1))
    out = meshes.shardings({"a": P("fsdp"), "b": [P(None, "fsdp"), P()]}, mesh)
    assert out["a"] == jax.sharding.NamedSharding(mesh, P("fsdp"))
    assert [s.spec for s in out["b"]] == [P(None, "fsdp"), P()]
    assert isinstance(out["a"].mesh, Mesh)
