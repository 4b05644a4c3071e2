"""Dimensions that do not divide over `tensor`: they stay whole, that is said, and the numbers stay the same."""

import functools
import math

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from meshes import ONE, assert_close, leaves, mesh_of, name_of, step_on
from odd_sizes import odd_batch, odd_config

from moon_jax.config import ConfigError
from moon_jax.models import moon
from moon_jax.parallel.mesh import partition_spec, replicated_dimensions
from moon_jax.training.state import Trainer


def kept(config, shape):
    """{parameter: dimensions over `tensor`} of those that the table means for it."""
    mesh, out = mesh_of(shape), {}
    specs = leaves(moon.abstract(config.model, config.moe, mesh)[2])
    for name, meant in leaves(moon.abstract(config.model, config.moe, mesh_of(ONE))[2]).items():
        if "tensor" in meant:
            out[name] = tuple(i for i, axis in enumerate(specs[name]) if axis == "tensor")
    return out


def test_what_is_split_instead():
    """Over 4 the queries of each kv head are split, and k and v are not; over 8 all of attention stays whole."""
    four, eight = kept(odd_config(), (2, 1, 1, 4)), kept(odd_config(), (1, 1, 1, 8))
    queries = {"text.layers.q": (3,), "text.layers.q_bias": (2,), "text.layers.o": (2,)}
    keys = dict.fromkeys(("text.layers.k", "text.layers.k_bias", "text.layers.v", "text.layers.v_bias"), ())
    ffn = {f"vision.blocks.{name}": () for name in ("gate", "gate_bias", "up", "up_bias", "down")}
    whole = keys | ffn | {"text.embed": ()}
    heads = {"vision.blocks.qkv": (3,), "vision.blocks.qkv_bias": (2,), "vision.blocks.proj": (1,)}
    experts = {"text.layers.moe.gate": (3,), "text.layers.moe.up": (3,), "text.layers.moe.down": (2,)}
    merger = {"vision.merger.fc1": (1,), "vision.merger.fc1_bias": (0,), "vision.merger.fc2": (0,)}
    assert four == whole | queries | heads | experts | merger
    assert eight == whole | dict.fromkeys([*queries, *heads, *experts], ()) | merger


def test_where_groups_do_not_divide_either_attention_stays_whole():
    kv, group = ("kv", "group", "head_dim"), mesh_of((1, 1, 2, 4))
    assert partition_spec(kv, (2, 2, 8), group) == P(None, None, None)
    assert partition_spec(kv, (2, 4, 8), group) == P(None, "tensor", None)
    assert partition_spec(kv, (4, 4, 8), group) == P("tensor", None, None)
    assert partition_spec(("embed", "kv", "head_dim"), (8, 2, 8), group) == P("fsdp", None, None)


def test_what_is_replicated_is_said():
    config = odd_config()
    said = lambda shape: Trainer(config, mesh_of(shape)).replicated  # noqa: E731
    assert said((2, 2, 1, 2)) == said(ONE) == []
    assert sorted(said((2, 1, 1, 4))) == [
        "text.layers: kv = 2 does not divide by config.mesh.tensor = 4: replicated, computed 4 times "
        "(weights with group = 4 are split there instead)",
        "text: vocab = 94 does not divide by config.mesh.tensor = 4: replicated, computed 4 times",
        "vision.blocks: ffn = 42 does not divide by config.mesh.tensor = 4: replicated, computed 4 times",
    ]
    blocks = [line.split(" does not divide by config.mesh.tensor = 8: ")[0] for line in said((1, 1, 1, 8))]
    assert sorted(blocks) == [
        "text.layers.moe: ffn = 44", "text.layers: kv = 2", "text: vocab = 94", "vision.blocks: ffn = 42",
        "vision.blocks: heads = 4",
    ]  # fmt: skip
    shapes, axes = {"a": {"gate": np.zeros((3, 8, 36))}}, {"a": {"gate": ("split_experts", "embed", "split_ffn")}}
    assert replicated_dimensions(shapes, axes, mesh_of((1, 1, 2, 4))) == [
        "a: split_ffn = 36 does not divide by config.mesh.expert = 2 x tensor = 4: replicated, computed 4 times"
    ]


def test_the_batch_axes_do_not_give_way():
    with pytest.raises(ConfigError, match=r"text.layers.moe.gate .* 6 does not divide by config.mesh.expert = 4"):
        Trainer(odd_config(moe__experts=6), mesh_of((1, 1, 4, 2)))
    with pytest.raises(ConfigError, match=r"text.norm|text.embed .* = 36 does not divide by config.mesh.fsdp = 8"):
        Trainer(odd_config(model__text__hidden_size=36), mesh_of((1, 8, 1, 1)))


@functools.cache
def one_device():
    return step_on(odd_config(), ONE).run(odd_batch())[0]


@pytest.mark.parametrize("shape", [(1, 1, 2, 4), (1, 1, 1, 8)], ids=name_of)
def test_equals_one_device(shape):
    got, want = step_on(odd_config(), shape).run(odd_batch())[0], one_device()
    assert got.loss == pytest.approx(want.loss, rel=3e-6)
    assert got.gradients.keys() == want.gradients.keys()
    for name, value in want.gradients.items():
        assert np.abs(value).max() > 0, name
        assert_close(got.gradients[name], value, 1e-4, name)  # float32 and scores over tau = 0.05
    assert float(got.metrics["grad_norm"]) == pytest.approx(
        math.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in want.gradients.values())), rel=1e-4
    )


def test_devices_that_hold_the_same_weight_stay_equal():
    """What is replicated over `tensor` is updated there again and again: copies must not drift apart."""
    step = step_on(odd_config(), (1, 1, 2, 4))
    with jax.set_mesh(step.mesh):
        state, placed = step.state(), step.place(odd_batch())
        compiled = step.compile(state, placed)
        for _ in range(3):
            state, _ = compiled(state, placed)
    for name, leaf in leaves(state.params).items():
        parts = {}
        for shard in leaf.addressable_shards:
            first = parts.setdefault(str(shard.index), np.asarray(shard.data))
            np.testing.assert_array_equal(shard.data, first, err_msg=name)
