"""Qwen2-VL against transformers: the same comparisons as for Qwen2.5-VL, whose text model and pixels it shares."""

import pytest

pytest.importorskip("torch")

import gradients
import measures
from cases import QWEN2_CASES
from test_gradients import assert_small

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("name", QWEN2_CASES)
def test_packed_documents_equal_transformers(tmp_path, name):
    pair = measures.prepare(QWEN2_CASES[name], tmp_path, seed=len(name))
    assert pair.ours.config.vision.kind == "qwen2_vl"
    measures.assert_equal(measures.packed(pair))


def test_gradients_of_every_parameter(tmp_path):
    assert_small(gradients.of_embeddings(measures.prepare(QWEN2_CASES["Qwen2-VL"], tmp_path)))


def test_sixteen_tokens(tmp_path):
    assert measures.wrong_tokens(measures.prepare(QWEN2_CASES["Qwen2-VL"], tmp_path)) == 0
