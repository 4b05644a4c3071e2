"""InternVL against transformers: pixels of tiles, visual tokens, plain positions, hidden states, gradients, tokens."""

import pytest

pytest.importorskip("torch")

import gradients
import measures
from cases import INTERN_CASES
from test_gradients import assert_small

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("name", INTERN_CASES)
def test_packed_documents_equal_transformers(tmp_path, name):
    pair = measures.prepare(INTERN_CASES[name], tmp_path, seed=len(name))
    tiles = {len(pixels) for document in pair.documents for pixels in document.pixels}
    assert 1 in tiles
    assert max(tiles) > 2  # several, and the whole beside them
    measures.assert_equal(measures.packed(pair))


@pytest.mark.parametrize("name", ["InternVL", "InternVL, query and key norms"])
def test_gradients_of_every_parameter(tmp_path, name):
    assert_small(gradients.of_embeddings(measures.prepare(INTERN_CASES[name], tmp_path)))


def test_sixteen_tokens(tmp_path):
    assert measures.wrong_tokens(measures.prepare(INTERN_CASES["InternVL"], tmp_path)) == 0
