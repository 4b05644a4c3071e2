"""The trainer runs every backbone: one whole step, the same numbers on eight devices, every parameter learns."""

import functools

import numpy as np
import pytest
from fake_batch import fake_batch, tiny_config
from meshes import ONE, assert_close, step_on

EIGHT = (1, 2, 2, 2)
BACKBONES = {
    "qwen2_vl": {
        "model__vision__kind": "qwen2_vl", "model__vision__intermediate_size": 64, "model__vision__window_size": 112,
        "model__vision__fullatt_block_indexes": (7, 15, 23, 31),
    },
    "internvl": {
        "model__vision__kind": "internvl", "model__vision__temporal_patch_size": 1,
        "model__vision__window_size": 112, "model__vision__fullatt_block_indexes": (7, 15, 23, 31),
        "model__vision__intern__image_size": 16, "model__vision__intern__use_qk_norm": True,
        "model__text__mrope_section": (4, 0, 0),
    },
}  # fmt: skip


@functools.cache
def config_of(kind):
    return tiny_config(train__clip_norm=1e9, train__warmup_ratio=0.0, **BACKBONES[kind])


@pytest.mark.parametrize("kind", BACKBONES)
def test_a_step_on_eight_devices_equals_one(kind):
    config = config_of(kind)
    chunk = config.model.vision.window_patches
    batch = fake_batch(8, 1, rows=2, row_tokens=32, patch_dim=48, vocab=96, chunk=chunk)
    (want,), (got,) = (step_on(config, shape).run(batch) for shape in (ONE, EIGHT))
    assert got.loss == pytest.approx(want.loss, rel=3e-6)
    for name, gradient in want.gradients.items():
        assert_close(got.gradients[name], gradient, 1e-4, name)
        assert np.isfinite(gradient).all(), name
        assert np.abs(gradient).max() > 1e-6, name


@pytest.mark.parametrize("kind", BACKBONES)
def test_a_batch_without_pictures_leaves_the_tower_alone(kind):
    config = config_of(kind)
    batch = fake_batch(8, 1, rows=2, row_tokens=32, patch_dim=48, vocab=96, chunk=config.model.vision.window_patches)
    for name in ("patches", "patch_picture", "patch_window", "patch_positions"):
        batch[name][:] = 0
    batch["image_slots"][:] = -1
    (result,) = step_on(config, EIGHT).run(batch)
    for name, gradient in result.gradients.items():
        assert np.isfinite(gradient).all(), name
        assert (np.abs(gradient).max() == 0) == name.startswith("vision"), name
