"""What is counted by hand for the other backbones, against their traced programs."""

import pytest
from fake_batch import tiny_config
from traced import traced

from moon_jax.planning.cost import transfers
from moon_jax.planning.flops import step_flops
from moon_jax.planning.memory import estimated_bytes

SMALL = {
    "model__vision__depth": 3, "model__vision__hidden_size": 64, "model__vision__intermediate_size": 128,
    "model__vision__window_size": 112, "model__vision__fullatt_block_indexes": (7, 15, 23, 31),
    "model__text__num_hidden_layers": 2, "model__text__vocab_size": 64, "data__max_pixels": 64 * 64,
    "data__min_pixels": 32 * 32, "data__max_aspect": 4.0, "data__title_tokens": 16, "data__category_tokens": 8,
    "data__attribute_tokens": 16, "train__batch_size": 2, "moe__experts": 4, "mesh__data": 1,
}  # fmt: skip
KINDS = {
    "qwen2_vl": {"model__vision__kind": "qwen2_vl"},
    "internvl": {
        "model__vision__kind": "internvl", "model__vision__temporal_patch_size": 1,
        "model__vision__intern__image_size": 32, "model__text__mrope_section": (4, 0, 0),
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_products_bytes_and_transfers(kind):
    small = traced(tiny_config(**SMALL | KINDS[kind]))
    parts = step_flops(small.trainer, small.shape, small.moe.rows)
    assert sum(part.total for part in parts.values()) == pytest.approx(small.work.flops, rel=1e-3)
    assert min(estimated_bytes(small.trainer, small.shape, small.moe).values()) >= 0
    assert transfers(small.trainer, small.shape, small.moe) == {}  # one device
