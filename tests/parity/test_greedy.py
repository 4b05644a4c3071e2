"""Greedy decoding against transformers' generate: token for token, in one batch of prompts of different lengths."""

import itertools

import pytest

pytest.importorskip("torch")

import measures
import oracle
import ours
from cases import CASES, Sizes
from meshes import mesh_of, name_of

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("name", ["all full, one kv head", "one frame, beyond the depth", "patch 6, windows of 5"])
def test_sixteen_tokens(tmp_path, name):
    """Texts, one picture, several, at the start and at the end; tied head and not; padding on either side."""
    assert measures.wrong_tokens(measures.prepare(CASES[name], tmp_path)) == 0


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return measures.prepare(Sizes(tied=False), tmp_path_factory.mktemp("greedy"))


@pytest.mark.parametrize("shape", [(8, 1, 1, 1), (2, 2, 1, 2), (1, 2, 2, 2)], ids=name_of)
def test_the_same_tokens_on_a_mesh(pair, shape):
    """Weights and heads are split, shards have different numbers of prompts, and some have none."""
    want = [oracle.continue_one(pair.reference, document, 8) for document in pair.documents]
    assert len({token for tokens in want for token in tokens}) >= 8
    assert ours.generate(pair.ours, pair.encoded, 8, mesh=mesh_of(shape)) == [want]


def test_each_row_ends_at_its_own_eos_token(pair):
    """Of two eos tokens: rows stop with theirs, at the first token or later, others go on; then all rows stop."""
    free = [oracle.continue_one(pair.reference, document, 12) for document in pair.documents]

    def lengths(eos):
        return [next((i + 1 for i, token in enumerate(tokens) if token in eos), 99) for tokens in free]

    pairs = list(itertools.combinations(sorted({token for tokens in free for token in tokens}), 2))
    eos = next(eos for eos in pairs if {1, 99} < set(lengths(eos)))
    want = [oracle.continue_one(pair.reference, document, 12, eos) for document in pair.documents]
    assert [len(tokens) for tokens in want] == [min(n, 12) for n in lengths(eos)]
    assert ours.generate(pair.ours, pair.encoded, 12, eos) == [want]
    ended = [i for i, n in enumerate(lengths(eos)) if n < 12]
    got = ours.generate(pair.ours, [pair.encoded[i] for i in ended], 12, eos)
    assert got == [[want[i] for i in ended]]
