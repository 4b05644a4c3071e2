"""d/d(every parameter) against torch's autograd: of the embeddings, and of the next-token loss."""

import dataclasses

import pytest

pytest.importorskip("torch")

import gradients
import measures
from cases import Sizes
from meshes import mesh_of

from moon_jax.models import head

pytestmark = pytest.mark.torch

SIZES = Sizes(depth=3, full=(1,), window=84)


def assert_small(errors):
    assert {name: f"{error:.1e}" for name, error in errors.items() if not error <= measures.FLOAT32} == {}


def test_of_the_embeddings(tmp_path):
    assert_small(gradients.of_embeddings(measures.prepare(SIZES, tmp_path)))


CASES = [(True, (1, 1, 1, 1)), (False, (1, 1, 1, 1)), (True, (2, 2, 1, 2)), (False, (1, 2, 2, 2))]


@pytest.mark.parametrize(("tied", "shape"), CASES, ids=str)
def test_of_the_next_token_loss(tmp_path, monkeypatch, tied, shape):
    """Answers of different lengths, a whole document and none; several chunks of logits; on meshes."""
    pair = measures.prepare(dataclasses.replace(SIZES, tied=tied), tmp_path)
    monkeypatch.setattr(head, "CHUNK", 37)
    errors = gradients.of_next_tokens(pair, (6, 5, 9, 1, 0), mesh_of(shape))
    assert ("text/lm_head" in errors) == (not tied)
    assert_small(errors)
