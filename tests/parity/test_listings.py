"""From files and texts to embeddings and answers: twelve kinds of pictures, Chinese and English, as chats."""

import pytest

pytest.importorskip("torch")

import listings
import measures

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return listings.prepare(tmp_path_factory.mktemp("listings"))


def test_packed(pair):
    measures.assert_equal(measures.packed(pair))


def test_padded_on_either_side(pair):
    measures.assert_equal(measures.padded(pair))


def test_sixteen_tokens(pair):
    assert measures.wrong_tokens(pair) == 0


def test_bfloat16(pair):
    assert measures.bfloat16_cosine(pair) >= measures.COSINE
