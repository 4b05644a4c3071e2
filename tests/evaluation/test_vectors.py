"""Saved embeddings: nothing is embedded twice, and a run that dies anywhere goes on to the same bytes."""

import json

import numpy as np
import pytest

from moon_jax.config import Role
from moon_jax.data.documents import Document, Segment
from moon_jax.data.records import ImageRef
from moon_jax.evaluation.vectors import SavedVectors, VectorsError, digest

WIDTH = 6


def document(number, text="text"):
    return Document((), (Segment(Role.TITLE, f"{text} {number}"),))


DOCUMENTS = [document(number) for number in range(23)]


class KilledError(Exception):
    pass


class Batches:
    """Embeds four documents at a time, from the window's last to its first; the bits depend on the whole window."""

    def __init__(self, dies_after=None, size=4):
        self.embedded, self._left, self._size = [], dies_after, size

    def __call__(self, window, first):
        order = np.arange(len(window))[::-1]
        for start in range(first * self._size, len(window), self._size):
            if self._left is not None:
                self._left -= 1
                if self._left < 0:
                    raise KilledError
            rows = order[start : start + self._size]
            self.embedded += [window[row] for row in rows]
            vectors = np.stack([vector(window[row], len(window)) for row in rows])
            yield rows, vectors, {int(row): "torn.png: broken" for row in rows if window[row] == DOCUMENTS[5]}


def vector(document, others):
    number = int(document.segments[0].text.split()[-1])
    return np.array([number, others, *np.random.default_rng(number).normal(size=WIDTH - 2)], np.float32)


def open_at(folder, **identity):
    return SavedVectors(folder, {"fingerprint": "abc", **identity})


def filled(folder, batches, documents=DOCUMENTS, **settings):
    saved = open_at(folder)
    saved.fill(documents, batches, "model", window=10, **settings)
    return saved


@pytest.fixture
def whole(tmp_path):
    return filled(tmp_path / "whole", Batches())


def test_every_document_finds_its_vector(whole):
    asked = [DOCUMENTS[n] for n in (22, 0, 7, 7, 5)]
    rows = whole.rows(asked)
    assert rows.tolist() == [22, 0, 7, 7, -1]  # the order of the documents, whatever the order of the batches
    np.testing.assert_array_equal(whole.vectors[rows[:4], 0], [22, 0, 7, 7])
    assert whole.left_out == {digest(DOCUMENTS[5]): "torn.png: broken"}
    again = open_at(whole.folder)
    np.testing.assert_array_equal(again.rows(asked), rows)
    np.testing.assert_array_equal(again.vectors, whole.vectors)
    assert again.left_out == whole.left_out


def test_what_is_there_is_not_embedded_again(whole):
    before = {path.name: path.read_bytes() for path in whole.folder.iterdir()}
    batches = Batches()
    filled(whole.folder, batches, DOCUMENTS[3:9] * 2)
    assert batches.embedded == []
    assert {path.name: path.read_bytes() for path in whole.folder.iterdir()} == before
    more = [document(100), *DOCUMENTS, document(101), document(100)]
    saved = filled(whole.folder, batches, more)
    assert sorted(d.segments[0].text for d in batches.embedded) == ["text 100", "text 101"]
    np.testing.assert_array_equal(saved.vectors[saved.rows([document(101), DOCUMENTS[1]])][:, 0], [101, 1])


@pytest.mark.parametrize("dies_after", range(7))
def test_killed_after_any_batch_it_goes_on_to_the_same_bytes(whole, tmp_path, dies_after):
    folder, first, second = tmp_path / "killed", Batches(dies_after), Batches()
    with pytest.raises(KilledError):
        filled(folder, first)
    if dies_after:
        with (folder / "index.jsonl").open("a") as file:
            file.write('{"rows": [' + "1, " * 1000)  # a line that was cut short
    filled(folder, second)
    assert len(first.embedded) + len(second.embedded) == len(DOCUMENTS)
    for path in whole.folder.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes(), path.name


def test_cut_at_any_byte_of_the_index_it_goes_on_to_the_same_bytes(whole, tmp_path):
    index = (whole.folder / "index.jsonl").read_bytes()
    for length in range(0, len(index), 61):
        folder = tmp_path / str(length)
        folder.mkdir()
        for path in whole.folder.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        (folder / "index.jsonl").write_bytes(index[:length])
        filled(folder, Batches())
        assert (folder / "index.jsonl").read_bytes() == index
        assert (folder / "vectors.f32").read_bytes() == (whole.folder / "vectors.f32").read_bytes()


def test_under_another_plan_the_interrupted_window_is_embedded_from_its_beginning(whole, tmp_path):
    """Batches of another size cannot go on where those left off; the window stays the same, so that the bits do."""
    folder = tmp_path / "killed"
    with pytest.raises(KilledError):
        filled(folder, Batches(5, size=3), plan="3")
    saved = filled(folder, Batches(size=4), plan="4")
    kept = [n for n in range(23) if n != 5]
    documents = [DOCUMENTS[n] for n in kept]
    np.testing.assert_array_equal(saved.vectors[saved.rows(documents)], whole.vectors[kept])
    again = open_at(folder)
    np.testing.assert_array_equal(again.rows(documents), saved.rows(documents))


def test_an_interrupted_window_of_which_less_is_wanted_stays_as_it_is(tmp_path):
    folder = tmp_path / "killed"
    with pytest.raises(KilledError):
        filled(folder, Batches(2))  # 9 8 7 6, 5 4 3 2 are there
    batches = Batches()
    saved = filled(folder, batches, [DOCUMENTS[0], DOCUMENTS[9]])
    assert batches.embedded == [DOCUMENTS[0]]
    np.testing.assert_array_equal(saved.vectors[saved.rows([DOCUMENTS[0], DOCUMENTS[9]]), 0], [0, 9])


def test_other_documents_have_other_digests(tmp_path):
    picture = tmp_path / "a.png"
    picture.write_bytes(b"one")
    base = Document((ImageRef(str(picture), (1.0, 2.0, 3.0, 4.0)),), (Segment(Role.TITLE, "t"),))
    others = [
        Document((ImageRef(str(picture)),), base.segments),
        Document(base.images, (Segment(Role.CATEGORY, "t"),)),
        Document(base.images, (Segment(Role.TITLE, "t"), Segment(Role.TITLE, "t"))),
        Document(base.images, base.segments, "query"),
        Document(base.images * 2, base.segments),
        Document((), base.segments),
    ]
    assert len({digest(one) for one in (base, *others)}) == 7
    assert digest(base) == digest(Document(base.images, base.segments, name="told from no other by it"))
    before = digest(base)
    picture.write_bytes(b"another picture")
    assert digest(base) != before


def test_embeddings_of_another_model_or_width_are_refused(whole):
    with pytest.raises(VectorsError, match=r"embeddings of another model.*\n  - fingerprint was 'abc', is 'xyz'"):
        open_at(whole.folder, fingerprint="xyz")
    with pytest.raises(VectorsError, match="lacks the embeddings of 1 of 2 documents"):
        whole.rows([DOCUMENTS[0], document(99)])

    def wider(window, first):
        yield np.arange(len(window)), np.ones((len(window), WIDTH + 1), np.float32), {}

    with pytest.raises(VectorsError, match=r"vectors of width 7, those in .* have 6"):
        filled(whole.folder, wider, [document(99)])


def test_vectors_that_are_no_numbers_are_refused_and_not_kept(tmp_path):
    def bad(window, first):
        vectors = np.ones((len(window), WIDTH), np.float32)
        vectors[2, 3] = np.nan
        yield np.arange(len(window)), vectors, {}

    with pytest.raises(VectorsError, match="1 of 10 embeddings of a batch are not finite"):
        filled(tmp_path / "bad", bad)
    assert len(open_at(tmp_path / "bad").missing(DOCUMENTS)) == len(DOCUMENTS)

    def few(window, first):
        yield np.arange(3), np.ones((3, WIDTH), np.float32), {}

    with pytest.raises(VectorsError, match="7 of 10 documents were not embedded"):
        filled(tmp_path / "few", few)


def test_damage_is_named(whole):
    index = whole.folder / "index.jsonl"
    lines = index.read_text().splitlines(keepends=True)
    index.write_text("".join([lines[0], "{\n", *lines[1:]]))
    with pytest.raises(VectorsError, match=r"index\.jsonl:2 is damaged"):
        open_at(whole.folder)
    index.write_text("".join(lines))
    with (whole.folder / "vectors.f32").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(VectorsError, match="has 100 bytes, its index speaks of 23 rows"):
        open_at(whole.folder)
    (whole.folder / "about.json").unlink()
    with pytest.raises(VectorsError, match=r"no about\.json"):
        open_at(whole.folder)


def test_two_writers_are_one_too_many(tmp_path):
    def second(window, first):
        with pytest.raises(VectorsError, match="another process is writing"):
            filled(tmp_path / "both", Batches())
        yield np.arange(len(window)), np.ones((len(window), WIDTH), np.float32), {}

    saved = filled(tmp_path / "both", second)
    assert json.loads((saved.folder / "about.json").read_text())["width"] == WIDTH
