"""The bfloat16 forward points the same way: dense against torch in bfloat16, guided MoE against its own float32."""

import pytest

pytest.importorskip("torch")

import measures
from cases import CASES

from moon_jax.config import MoEConfig

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("name", ["periodic full attention", "full everywhere but last"])
def test_dense_against_torch(tmp_path, name):
    assert measures.bfloat16_cosine(measures.prepare(CASES[name], tmp_path)) >= measures.COSINE


def test_guided_moe_with_the_routing_replayed(tmp_path):
    pair = measures.prepare(CASES["full everywhere but last"], tmp_path)
    replayed, free, moved = measures.moe_cosine(pair, MoEConfig(experts=8, top_k=2))
    assert replayed.min() >= measures.COSINE
    assert replayed.min() < 1 - 1e-7  # it was computed in bfloat16
    assert moved > 0  # some decisions would have been others,
    assert (free < replayed - 1e-5).any()  # and they matter
