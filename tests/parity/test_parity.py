"""The dense model against transformers in float32: pixels, positions, visual tokens, hidden states, logits, embeddings.

The oracle computes one document at a time; ours are packed together into shared rows and slots, so every comparison
also says that neighbours and padding have no influence.
"""

import pytest

pytest.importorskip("torch")

import measures
from cases import CASES, REAL_WIDTHS, Sizes

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("name", CASES)
def test_packed_documents_equal_transformers(tmp_path, name):
    measures.assert_equal(measures.packed(measures.prepare(CASES[name], tmp_path, seed=len(name))))


@pytest.mark.parametrize("name", ["irregular, window floored", "patch 6, windows of 5"])
def test_padding_on_either_side(tmp_path, name):
    measures.assert_equal(measures.padded(measures.prepare(CASES[name], tmp_path)))


def test_a_long_document(tmp_path):
    """Beyond 2,000 positions, with a picture at the far end: rotary angles keep their precision."""
    pair = measures.prepare(Sizes(), tmp_path, documents=[(2040, (56, 84), 30), (40, (28, 28))])
    assert pair.documents[0].positions.max() > 2050
    measures.assert_equal(measures.packed(pair))


def test_real_widths(tmp_path):
    documents = [(4, (140, 168), 7), (20,), (1, (28, 84), 2)]
    measures.assert_equal(measures.packed(measures.prepare(REAL_WIDTHS, tmp_path, documents=documents)))
