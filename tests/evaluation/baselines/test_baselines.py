"""Every baseline on a tiny random instance, against the published way to make one embedding at a time."""

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers")

import oracles
from tiny_baselines import NAMES

from moon_jax.config import Role
from moon_jax.data.documents import Document, Segment
from moon_jax.data.records import ImageRef
from moon_jax.evaluation import baselines

pytestmark = pytest.mark.torch

TOGETHER = ("internvl3", "qwen2_5_vl")  # several pictures stand in one sequence


def picture(seed, size=(90, 60)):
    low = np.random.default_rng(seed).integers(0, 256, (5, 7, 3)).astype(np.uint8)  # smooth: no pixel decides
    return Image.fromarray(low).resize(size, Image.Resampling.BICUBIC)


PICTURES = [picture(0), picture(1, (40, 131)), picture(2, (57, 56)), picture(3, (19, 26))]
LARGE, STRIP = picture(4, (210, 150)), picture(5, (190, 13))


def document(text="", pictures=(), kind="item"):
    texts = (text,) if isinstance(text, str) else text
    segments = tuple(Segment(role, part) for role, part in zip(Role, texts, strict=False) if part)
    return Document(tuple(ImageRef(p) for p in pictures), segments, kind)


CASES = [
    ("a red mug for the kitchen", [], "item"),
    ("Blue Running SHOES", [], "query"),
    ("", PICTURES[:1], "item"),
    ("", PICTURES[1:2], "query"),
    ("color: red", PICTURES[2:3], "item"),
    ("size 12 系列", PICTURES[3:], "query"),
    ("mug", PICTURES[:3], "item"),
    ("", PICTURES[1:], "item"),
    ("", [LARGE], "item"),
    ("red mug", [STRIP], "item"),
]


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Threads that wait for each other cost a tiny model more than they bring."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def opened(folders):
    return {name: baselines.open_baseline(name, folders[name], batch_size=3) for name in NAMES}


def test_all_baselines_are_here(opened):
    assert baselines.NAMES == NAMES
    for name, baseline in opened.items():
        assert isinstance(baseline, baselines.Baseline)
        assert baseline.name == name
        assert {"text", "image", "item", "several_pictures", "source", "dtype", "pixels"} <= baseline.about.keys()


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_published_way(name, folders, opened):
    """Texts, pictures, both, several pictures, queries: batched here, one at a time there."""
    expected = np.array([oracles.vector(name, folders[name], *case) for case in CASES])
    found = opened[name].embed([document(*case) for case in CASES])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=3e-5)
    assert np.abs(expected @ expected.T - np.eye(len(CASES))).max() < 0.9999  # the cases can be told apart


@pytest.mark.parametrize("name", NAMES)
def test_neighbours_order_and_batches_change_nothing(name, folders, opened):
    documents = [document(*case) for case in CASES]
    together = opened[name].embed(documents)
    np.testing.assert_array_equal(opened[name].embed(documents), together)
    alone = np.concatenate([opened[name].embed([d]) for d in documents])
    np.testing.assert_allclose(alone, together, atol=1e-5)
    np.testing.assert_allclose(opened[name].embed(documents[::-1])[::-1], together, atol=1e-5)
    assert opened[name].embed([]).shape == (0, together.shape[1])


@pytest.mark.parametrize("name", NAMES)
def test_several_pictures(name, opened):
    """In one sequence the order counts; as a mean of vectors it does not."""
    a, b, swapped = opened[name].embed(
        [document("mug", PICTURES[:2]), document("mug", PICTURES[2:]), document("mug", PICTURES[1::-1])]
    )
    assert a @ b < 1 - 1e-4
    assert (a @ swapped > 1 - 1e-6) == (name not in TOGETHER)


@pytest.mark.parametrize("name", NAMES)
def test_long_texts_are_cut_and_counted(name, opened):
    baseline, word = opened[name], "kitchen mug "
    before = baseline.counts["cut_texts"]
    long, longer, short = baseline.embed([document(word * 900), document(word * 30_000), document(word)])
    assert baseline.counts["cut_texts"] == before + 2
    np.testing.assert_allclose(long, longer, atol=1e-5)
    assert abs(long @ short) < 0.9999


@pytest.mark.parametrize("name", ["clip", "siglip2", "mm_embed"])
def test_cut_where_the_authors_cut(name, folders, opened):
    """Start and end tokens stay; MM-Embed's limit counts a picture as one token."""
    cases = [("kitchen mug " * 900, [], "item"), ("mug kitchen " * 900, PICTURES[:1], "query")]
    expected = np.array([oracles.vector(name, folders[name], *case) for case in cases])
    np.testing.assert_allclose(opened[name].embed([document(*case) for case in cases]), expected, atol=3e-5)


@pytest.mark.parametrize("name", NAMES)
def test_special_tokens_in_texts_are_plain_text(name, opened):
    names = "<|endoftext|> <|im_end|> <image> <|image_pad|> <IMG_CONTEXT> <eos> </s> <|startoftext|> \ud800"
    vectors = opened[name].embed([document("mug"), document(f"mug {names}"), document(names, PICTURES[:1])])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    words = opened[name]._words
    assert not set(words._special.values()) & set(words.encode(names)[0])


def test_texts_of_a_document_are_joined_in_order(opened):
    parts = document(("red mug", "Home > Mugs", "color: red"))
    for name, separator in (("clip", " "), ("gme", "\n")):
        joined = document(separator.join(("red mug", "Home > Mugs", "color: red")))
        np.testing.assert_array_equal(*opened[name].embed([parts]), *opened[name].embed([joined]))


def test_a_strip_is_padded(opened):
    """1 x 2000 px: more than the processors take, or gigabytes when its short side is scaled up."""
    strips = [document("", [picture(0, (2000, 1))]), document("", [picture(0, (1, 2000))])]
    for name in NAMES:
        assert np.isfinite(opened[name].embed(strips)).all(), name


@pytest.mark.parametrize("name", ["siglip2_naflex", "internvl3", "qwen2_5_vl", "gme"])
def test_fewer_pixels(name, folders, opened):
    small = baselines.open_baseline(name, folders[name], max_pixels=28 * 28 * 2)
    asked = [document("", [PICTURES[0]])]
    assert small.fingerprint != opened[name].fingerprint
    assert small.about["pixels"] != opened[name].about["pixels"]
    assert small.embed(asked) @ opened[name].embed(asked).T < 0.99999


def test_bfloat16_is_near(folders, opened):
    documents = [document(*case) for case in CASES]
    for name in ("clip", "siglip2_naflex", "qwen2_5_vl", "mm_embed"):
        half = baselines.open_baseline(name, folders[name], dtype="bfloat16")
        cosines = (half.embed(documents) * opened[name].embed(documents)).sum(1)
        assert cosines.min() > 0.97, (name, cosines)
        assert cosines.max() < 1 - 1e-9
        assert half.fingerprint != opened[name].fingerprint


def test_qwen2_5_vl_agrees_with_our_own_model(folders, opened, quick_compilation):
    """The same folder through JAX: tokenizer, pixels, towers, positions and pooling of both sides."""
    import moon_jax

    records = [{"text": text} if not pictures else {"text": text, "images": pictures} for text, pictures, _ in CASES]
    records = [{key: value for key, value in record.items() if value} for record in records]
    ours = moon_jax.load(folders["qwen2_5_vl"], dtype="float32").encode(records)
    np.testing.assert_allclose(opened["qwen2_5_vl"].embed([document(*case) for case in CASES]), ours, atol=1e-4)
