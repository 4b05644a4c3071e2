"""A method beside the model: embedded once, in pieces, into a folder of its own."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from moon_jax.config import Config, DataConfig, Role
from moon_jax.data.documents import Document, Segment
from moon_jax.data.picture_files import ImageError, load
from moon_jax.data.records import DataError, ImageRef
from moon_jax.evaluation import embedded
from moon_jax.evaluation.baselines import Baseline


class Letters:
    """How often each letter stands in a text."""

    name, about, counts = "letters", {"text": "counts of letters"}, {}

    def __init__(self, weight=1.0, dies_at=None):
        self.weight, self.dies_at, self.given = weight, dies_at, []
        self.fingerprint = hashlib.sha256(str(weight).encode()).hexdigest()

    def embed(self, documents):
        if len(self.given) == self.dies_at:
            raise DataError("died")
        self.given.append(len(documents))
        counts = [[document.segments[0].text.count(letter) for letter in "abcd"] for document in documents]
        vectors = self.weight + np.array(counts, np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


DOCUMENTS = [Document((), (Segment(Role.TITLE, "abcd"[n % 4] * (n // 4 + 1)),)) for n in range(30)]
OTHER = Document((), (Segment(Role.TITLE, "another"),))
CONFIG = Config(data=DataConfig())


def embed(baseline, folder):
    return embedded.embed_with_baseline(baseline.name, baseline, DOCUMENTS, folder, CONFIG)


def test_a_baseline_is_embedded_in_pieces_and_once(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "BASELINE_WINDOW", 8)
    first, second, third = Letters(dies_at=2), Letters(), Letters()
    assert isinstance(first, Baseline)
    with pytest.raises(DataError, match="died"):
        embed(first, tmp_path)
    method = embed(second, tmp_path)
    assert (first.given, second.given) == ([8, 8], [8, 6])
    again = embed(third, tmp_path)
    assert third.given == []
    for found in (method, again):
        np.testing.assert_array_equal(found.take(np.arange(30)), Letters().embed(DOCUMENTS))
        np.testing.assert_array_equal(found.take(np.array([29, 3])), Letters().embed([DOCUMENTS[29], DOCUMENTS[3]]))
    assert method.about == {
        "fingerprint": second.fingerprint,
        "about": {"text": "counts of letters"},
        "embedded": {"windows": 4, "batch_documents": 64},
    }
    assert again.about == method.about
    one_more = embedded.embed_with_baseline("letters", third, [*DOCUMENTS, OTHER], tmp_path, CONFIG)
    assert one_more.about["embedded"]["windows"] == 5


def test_two_models_of_a_kind_stand_apart(tmp_path):
    one, other = embed(Letters(), tmp_path), embed(Letters(weight=2.0), tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    assert not np.array_equal(one.vectors, other.vectors)


class Colors(Letters):
    """The first pixel of the first picture, or of a text how long it is."""

    def embed(self, documents):
        self.given.append(len(documents))
        pixels = [
            load(d.images[0].path).getpixel((0, 0)) if d.images else (len(d.segments[0].text), 1, 1) for d in documents
        ]
        vectors = np.array(pixels, np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_torn_pictures_are_left_out_or_refused(tmp_path):
    names = ["a", "torn", "b", "lost"]
    for name, color in (("a", (255, 0, 0)), ("b", (0, 255, 0))):
        Image.new("RGB", (4, 4), color).save(tmp_path / f"{name}.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    documents = [Document((ImageRef(str(tmp_path / f"{name}.png")),)) for name in names] + [OTHER]
    with pytest.raises(ImageError, match=r"torn\.png"):
        embedded.embed_with_baseline("colors", Colors(), documents, tmp_path / "e", CONFIG)
    skip = Config(data=DataConfig(on_error="skip", max_skipped_share=0.5))
    method = embedded.embed_with_baseline("colors", Colors(), documents, tmp_path / "e", skip)
    assert (method.rows >= 0).tolist() == [True, False, True, False, True]
    np.testing.assert_array_equal(method.take(np.array([0, 2])), np.eye(3, dtype=np.float32)[:2])
    nothing = embedded.embed_with_baseline(
        "colors",
        Colors(),
        documents[1:2],
        tmp_path / "n",
        Config(data=DataConfig(on_error="skip", max_skipped_share=1.0)),
    )
    assert nothing.rows.tolist() == [-1]
    few = Config(data=DataConfig(on_error="skip", max_skipped_share=0.1))
    with pytest.raises(DataError, match="2 of 5 documents could not be embedded"):
        embedded.embed_with_baseline("colors", Colors(), documents, tmp_path / "e", few)
