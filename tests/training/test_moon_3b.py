"""The paper's recipe at its real size: the whole train step is traced and lowered, nothing is allocated."""

import math
import re

import jax
import pytest
from recipes import recipe

from moon_jax.config import resolve
from moon_jax.parallel.mesh import make_mesh
from moon_jax.planning.batch import abstract_batch, planned_shape
from moon_jax.training.state import Trainer


@pytest.fixture(scope="module")
def lowered():
    c = recipe("moon_3b.py")
    c.mesh.update(data=2, fsdp=2, expert=2)
    c.train.batch_size = 32
    config = resolve(c)
    mesh = make_mesh(config.mesh)
    trainer = Trainer(config, mesh)
    batch, shape = abstract_batch(config, mesh), planned_shape(config, mesh)
    state = trainer.abstract_state()
    with jax.set_mesh(mesh):
        return state, trainer.train_step(shape.documents).lower(state, batch)


def test_it_has_the_parameters_of_qwen2_5_vl_3b_with_eight_experts(lowered):
    dense, ffn, routers = 3_754_622_976, 36 * 3 * 2048 * 11008, 36 * 2048 * 8
    # one frame kernel per temporal patch is counted in the published number too
    assert sum(math.prod(p.shape) for p in jax.tree.leaves(lowered[0].params)) == dense + 7 * ffn + routers


def test_the_whole_step_lowers_with_its_state_donated(lowered):
    state, program = lowered
    text = program.as_text()
    assert len(re.findall(r"jax\.buffer_donor|tf\.aliasing_output", text)) == len(jax.tree.leaves(state))
    assert all(f"stablehlo.{name}" in text for name in ("all_gather", "reduce_scatter", "all_reduce", "while"))


@pytest.mark.parametrize("recipe_name", ["demo.py:", "shop.py:both,", "shop.py:luma,", "moon_3b.py:"])
@pytest.mark.parametrize("words", ["", "no_crop", "no_moe", "no_neg", "no_crop,no_moe,no_neg"])
def test_every_recipe_takes_every_ablation(recipe_name, words):
    config = resolve(recipe(recipe_name + words))
    assert config.data.crop == ("no_crop" not in words)
    assert (config.moe.experts == 0) == ("no_moe" in words)
    assert (config.loss.ring_batches == 0) == ("no_neg" in words) == (config.loss.group_size > 0)
