"""What the sizes of each kind of vision tower must satisfy, said in plain words."""

import pytest

from moon_jax.config import ConfigError, defaults, resolve

QWEN2 = {"model.vision.kind": "qwen2_vl", "model.vision.intermediate_size": 5120}
INTERN = {
    "model.vision.kind": "internvl", "model.vision.temporal_patch_size": 1, "model.text.mrope_section": (64, 0, 0),
    "model.vision.hidden_size": 1024,
}  # fmt: skip


def config(values):
    out = defaults()
    with out.unlocked():
        out.update_from_flattened_dict(values)
    return resolve(out)


def test_each_kind_with_its_own_sizes():
    vision = config(QWEN2).model.vision
    assert vision.full_blocks == tuple(range(32))
    assert vision.window_patches == 64
    vision = config(INTERN).model.vision
    assert (vision.full_blocks, vision.tile_tokens, vision.window_patches) == ((), 16, 1024)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model.vision.kind": "clip"}, "it must be one of qwen2_5_vl, qwen2_vl, internvl"),
        ({"model.vision.intern.image_size": 224}, "intern is of kind 'internvl', not 'qwen2_5_vl'"),
        (QWEN2 | {"model.vision.window_size": 56}, "window_size belongs to kind 'qwen2_5_vl'"),
        (QWEN2 | {"model.vision.fullatt_block_indexes": (1,)}, "fullatt_block_indexes belongs to kind 'qwen2_5_vl'"),
        (QWEN2 | {"model.vision.intermediate_size": 3420}, "a multiple of hidden_size"),
        (INTERN | {"model.vision.temporal_patch_size": 2}, "temporal_patch_size must be 1"),
        (INTERN | {"model.text.mrope_section": (16, 24, 24)}, r"mrope_section must be \(64, 0, 0\)"),
        (INTERN | {"model.vision.intern.image_size": 450}, "image_size 450 must be a positive multiple"),
        (INTERN | {"model.vision.intern.norm_type": "batch_norm"}, "norm_type 'batch_norm'"),
        (INTERN | {"model.vision.intern.layer_norm_eps": 0.0}, "layer_norm_eps 0.0 must be positive"),
        (INTERN | {"data.max_pixels": 447 * 448}, r"at least one tile \(448x448\)"),
        (
            INTERN | {"loss.kind": "next_token", "loss.ring_batches": 0, "eval.metric": "unseen/query/IoU"},
            "coordinates must be 'relative' for kind 'internvl'",
        ),
    ],
)
def test_what_does_not_go_together(values, message):
    with pytest.raises(ConfigError, match=message):
        config(values)
