"""The cost model against the collectives of traced and compiled programs, and against sums done by hand."""

from collections import defaultdict

import jax
import pytest
from fake_batch import tiny_config
from meshes import QUICK, mesh_of
from traced import FULL, moon_3b, traced

from moon_jax.planning.batch import abstract_batch, planned_shape
from moon_jax.planning.chips import parse_target
from moon_jax.planning.cost import cost_of, transfers
from moon_jax.planning.hlo import collectives_of
from moon_jax.planning.memory import estimated_bytes
from moon_jax.planning.moe_work import moe_work
from moon_jax.planning.network import Links
from moon_jax.training.state import Trainer


def assert_same(expected, found, least):
    """By kind and mesh axes, to 2 in 100; what is smaller than `least` bytes (norms, counts) may be missing."""
    for key in expected.keys() | found.keys():
        assert expected.get(key, 0.0) == pytest.approx(found.get(key, 0.0), rel=0.02, abs=least), key


@pytest.mark.parametrize("name", FULL)
def test_the_bytes_that_the_program_of_the_full_model_sends(name):
    full = traced(FULL[name])
    found = defaultdict(float)
    for transfer, count in full.work.transfers.items():
        found[transfer.kind, transfer.axes] += transfer.bytes * count
    assert_same(transfers(full.trainer, full.shape, full.moe), found, 0.002 * sum(found.values()))


def test_the_bytes_that_a_compiled_program_sends():
    sizes = {
        "data__max_pixels": 32 * 32, "data__min_pixels": 16 * 16, "data__max_aspect": 4.0, "data__title_tokens": 16,
        "data__category_tokens": 8, "data__attribute_tokens": 8, "data__crop": False, "moe__experts": 4,
    }  # fmt: skip
    config, mesh = tiny_config(**sizes, model__remat="full"), mesh_of((1, 2, 2, 2))
    trainer, shape = Trainer(config, mesh), planned_shape(config, mesh)
    moe = moe_work(config, mesh.abstract_mesh, shape.rows * shape.row_tokens)
    with jax.set_mesh(mesh):
        lowered = trainer.train_step(shape.documents).lower(trainer.abstract_state(), abstract_batch(config, mesh))
        text = lowered.compile(compiler_options=QUICK).as_text()
    found = defaultdict(float)
    for c in collectives_of(text, mesh.shape):
        found[c.kind, c.axes] += c.bytes * c.count
    assert_same(transfers(trainer, shape, moe), found, 0.01 * sum(found.values()))


@pytest.mark.parametrize(("dtype", "peak"), [("bfloat16", 989e12), ("float32", 67e12)])
def test_arithmetic_takes_as_long_as_the_compute_dtype_does(dtype, peak):
    config, mesh = tiny_config(moe__experts=0, model__dtype=dtype), mesh_of((2, 2, 1, 2))
    cost = cost_of(config, Trainer(config, mesh), Links(parse_target("h100:8"), mesh))
    assert cost.arithmetic_seconds == pytest.approx(sum(part.total for part in cost.flops.values()) / peak)


def test_the_memory_that_is_certain_is_that_of_the_plan_and_the_rest_moves_the_right_way():
    def memory(config):
        step = traced(config)
        return estimated_bytes(step.trainer, step.shape, step.moe)

    layer, none = memory(FULL["1x16x4x1"]), memory(moon_3b((1, 16, 4, 1), remat="none"))
    experts = 36 * 8 * 3 * 2048 * 11008
    rest = 20_798_767_104 - experts
    assert layer["parameters (float32)"] == pytest.approx(4 * (experts / 64 + rest / 16), rel=0.01)
    assert layer["AdamW moments (float32)"] == pytest.approx(2 * layer["parameters (float32)"])
    tokens, patches = 12 * 786, 24 * 1152
    assert layer["saved for the backward pass"] == 2 * (36 * tokens * 2048 + 32 * patches * 1280)
    assert layer["kept by dispatch"] == pytest.approx(36 * 4 * tokens * (2 * 2048 + 3 * 8), rel=0.3)
    assert none["kept by dispatch"] == 0
    assert none["saved for the backward pass"] > 10 * layer["saved for the backward pass"]
    full = memory(moon_3b((1, 16, 4, 1), remat="full"))
    assert sum(full.values()) == sum(layer.values()) - layer["kept by dispatch"]
    flash = memory(moon_3b((1, 16, 4, 1), remat="full", attention_impl="splash"))
    assert flash["the largest layer"] <= full["the largest layer"]
