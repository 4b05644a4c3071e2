"""The products of a step counted by hand, against jax's own counts and against the traced program of the full model."""

import jax
import pytest
from fake_batch import tiny_config
from meshes import mesh_of
from traced import FULL, traced

from moon_jax.config import MeshConfig
from moon_jax.parallel.mesh import abstract_mesh
from moon_jax.planning.batch import abstract_batch, planned_shape
from moon_jax.planning.flops import model_flops, step_flops
from moon_jax.planning.moe_work import moe_work
from moon_jax.training.state import Trainer

SMALL = {
    "model__vision__depth": 1, "model__vision__hidden_size": 256, "model__vision__intermediate_size": 768,
    "model__vision__num_heads": 4, "model__vision__fullatt_block_indexes": (0,),
    "model__text__num_hidden_layers": 1, "model__text__hidden_size": 256, "model__text__intermediate_size": 768,
    "model__text__head_dim": 64, "model__text__mrope_section": (8, 12, 12), "model__text__vocab_size": 64,
    "data__max_pixels": 64 * 64, "data__min_pixels": 32 * 32, "data__max_aspect": 4.0, "data__title_tokens": 16,
    "data__category_tokens": 8, "data__attribute_tokens": 16, "train__batch_size": 2,
}  # fmt: skip


@pytest.mark.parametrize("remat", ["none", "layer"])
@pytest.mark.parametrize("experts", [0, 4])
def test_jax_counts_the_same_products_in_a_small_model_without_loops(remat, experts):
    """Every stack has one layer, so that the loop bodies that jax counts once run once. It counts additions, too."""
    config = tiny_config(**SMALL, model__remat=remat, moe__experts=experts)
    mesh = mesh_of((1, 1, 1, 1))
    trainer = Trainer(config, mesh)
    shape = planned_shape(config, mesh)
    rows = moe_work(config, trainer.mesh.abstract_mesh, shape.rows * shape.row_tokens).rows if experts else 0.0
    hand = sum(part.total for part in step_flops(trainer, shape, rows).values())
    with jax.set_mesh(mesh):
        lowered = trainer.train_step(shape.documents).lower(trainer.abstract_state(), abstract_batch(config, mesh))
    assert hand == pytest.approx(lowered.cost_analysis()["flops"], rel=0.05)


@pytest.mark.parametrize("name", FULL)
def test_the_full_model_multiplies_what_its_program_says(name):
    full = traced(FULL[name])
    parts = step_flops(full.trainer, full.shape, full.moe.rows if full.moe else 0.0)
    assert sum(part.total for part in parts.values()) == pytest.approx(full.work.flops, rel=1e-3)


@pytest.mark.parametrize("freeze", ["vision", "llm", "backbone"])
def test_what_is_frozen_is_not_differentiated(freeze):
    small = traced(tiny_config(**SMALL, model__path="checkpoint", train__freeze=freeze, moe__experts=4, mesh__data=1))
    parts = step_flops(small.trainer, small.shape, small.moe.rows)
    assert sum(part.total for part in parts.values()) == pytest.approx(small.work.flops, rel=1e-3)


def test_mfu_counts_a_causal_dense_model_by_the_book():
    """6 products a weight and token, half of the attention, nothing for remat."""
    config = tiny_config(**SMALL, moe__experts=0)
    mesh = abstract_mesh(MeshConfig(1, 1, 1, 1))
    trainer, shape = Trainer(config, mesh), planned_shape(config, mesh)
    tokens, patches = shape.rows * shape.row_tokens, shape.image_slots * shape.slot_patches
    layer = 256 * (4 * 64 + 2 * 2 * 64 + 4 * 64) + 3 * 256 * 768
    vision = 4 * 256 * 256 + 3 * 256 * 768
    patch_embed, merger = 48 * 256, 1024 * 1024 + 1024 * 256
    attention = 3 * (2 * tokens * shape.row_tokens * 4 * 64 + 4 * patches * shape.slot_patches * 256)
    expected = 6 * (tokens * layer + patches * vision + patches / 4 * merger) + 4 * patches * patch_embed + attention
    rest = 4 * tokens * shape.documents * 256 + 6 * 2 * 2 * 2 * 3 * 256  # pooling; loss of 2 queries on 12 candidates
    assert model_flops(trainer, shape) == pytest.approx(expected + rest, rel=1e-9)
