"""Batches of anything to embed: every document once, with its own pixels, in a shape that is planned from headers."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from moon_jax.config import Config, DataConfig, EvalConfig, ModelConfig, MoEConfig, Role, VisionConfig
from moon_jax.data import images, tokenizer
from moon_jax.data.document_batches import DocumentBatches
from moon_jax.data.documents import Document, Segment
from moon_jax.data.pipeline import stream
from moon_jax.data.records import DataError, ImageRef

VISION = VisionConfig(patch_size=4, window_size=16)
DATA = DataConfig(min_pixels=64, max_pixels=40 * 64, title_tokens=16)
CONFIG = Config(
    model=ModelConfig(vision=VISION), moe=MoEConfig(experts=0), data=DATA, eval=EvalConfig(batch_documents=5)
)


def with_data(**changes):
    return dataclasses.replace(CONFIG, data=dataclasses.replace(DATA, **changes))


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return tokenizer.train_bpe([], tmp_path_factory.mktemp("tokenizer"), 270)  # one token a byte


def text(n):
    return Segment(Role.TITLE, chr(97 + n % 26) * (1 + n % 15))


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    """Texts, pictures, both, several pictures with and without a box; the title says which one it is."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)

    def ref(name, boxed):
        size = rng.integers(20, 90, 2)
        Image.fromarray(rng.integers(0, 255, (*size, 3)).astype(np.uint8)).save(folder / f"{name}.png")
        return ImageRef(str(folder / f"{name}.png"), (2.0, 3.0, 15.0, 16.0) if boxed else None)

    out = []
    for n in range(40):
        pictures = tuple(ref(f"{n}-{k}", (n + k) % 3 == 0) for k in range(n % 4))
        out.append(Document(pictures, (text(n),) if n % 3 or not pictures else (), "plain", f"record {n}"))
    return out


def seen(batch, place, shards):
    """The tokens, positions and pixels of the document in a place of a batch."""
    g, index = divmod(place, shards)
    shard = {name: array[g] for name, array in batch.arrays.items()}
    owner = np.take_along_axis(shard["document_of_segment"], shard["segment_ids"], axis=1)
    here = owner == index
    pixels = shard["patches"].reshape(-1, VISION.merge_unit * VISION.patch_dim)
    slots = shard["image_slots"][here]
    return shard["tokens"][here], pixels[slots[slots >= 0]], shard["positions"][:, here]


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_every_document_is_there_once_with_its_own_tokens_and_pixels(documents, words, shards):
    batches = DocumentBatches(documents, words, CONFIG, shards, range(shards))
    found = {}
    for step, batch in stream(batches, 0, len(batches), 0, 2):
        rows = batches.rows[step]
        for place in np.flatnonzero(rows >= 0):
            assert rows[place] not in found
            found[rows[place]] = seen(batch, place, len(rows) // shards)
    assert sorted(found) == list(range(40))
    for number, document in enumerate(documents):
        pictures = images.pictures(document, DATA, VISION)
        tokens, pixels, positions = found[number]
        said = "".join(segment.text for segment in document.segments)
        pads = ["<|image_pad|>" * (len(p.patches) // VISION.merge_unit) for p in pictures]
        expected = "".join(f"<|vision_start|>{pad}<|vision_end|>" for pad in pads) + said
        assert words.decode(tokens.tolist()) == expected
        assert positions.min() == 0
        whole = [p.patches.reshape(-1, VISION.merge_unit * VISION.patch_dim) for p in pictures]
        np.testing.assert_array_equal(pixels, np.concatenate(whole) if whole else np.zeros((0, 192)))


def test_hosts_make_their_shards_of_the_same_plan(documents, words):
    whole = DocumentBatches(documents, words, CONFIG, 4, range(4))
    for step in range(len(whole)):
        parts = [DocumentBatches(documents, words, CONFIG, 4, hosts)[step] for hosts in (range(1), range(1, 4))]
        for name, array in whole[step].arrays.items():
            np.testing.assert_array_equal(np.concatenate([p.arrays[name] for p in parts]), array)


def test_texts_do_not_pay_for_pictures(documents, words):
    batches = DocumentBatches(documents, words, CONFIG, 1, range(1))
    for step, (bucket, _) in enumerate(batches._batches):
        pictured = {bool(documents[n].images) for n in batches.rows[step] if n >= 0}
        assert len(pictured) == 1  # never together
        if pictured == {False}:
            assert (bucket.shape.image_slots, bucket.shape.slot_patches) == (1, VISION.window_patches)
            assert bucket.shape.row_tokens == 16
        else:
            assert bucket.shape.row_tokens > 100
    assert len(DocumentBatches([], words, CONFIG, 1, range(1))) == 0


def test_a_broken_picture_raises_before_anything_is_made_or_is_skipped(words, tmp_path):
    Image.new("RGB", (30, 30)).save(tmp_path / "whole.png")
    cut = (tmp_path / "whole.png").read_bytes()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3)).astype(np.uint8)).save(tmp_path / "big.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "big.png").read_bytes()[:900])  # its header is whole
    lost, torn = ImageRef(str(tmp_path / "lost.png")), ImageRef(str(tmp_path / "cut.png"))
    whole = ImageRef(cut)
    made = [
        Document((lost,), name="record 0"),
        Document((lost,), (text(3),), name="record 1"),
        Document((whole, torn), (text(4),), name="record 2"),
        Document((whole,), (text(5),), name="record 3"),
    ]
    with pytest.raises(DataError, match=r"^record 0: .*lost\.png: no such picture"):
        DocumentBatches(made, words, CONFIG, 1, range(1))
    late = DocumentBatches(made[2:], words, CONFIG, 1, range(1))
    with pytest.raises(DataError, match=r"^record 2: .*cut\.png: cannot be read"):
        late[0]
    skipping = with_data(on_error="skip")
    batches = DocumentBatches(made, words, skipping, 1, range(1))
    texts = {}
    for step in range(len(batches)):
        batch = batches[step]
        for place, row in enumerate(batches.rows[step]):
            if row >= 0:
                texts[row] = words.decode(seen(batch, place, 5)[0].tolist())
        assert batch.left_out == {}
    start, pad, end = "<|vision_start|>", "<|image_pad|>", "<|vision_end|>"
    # 30 x 30 px at 8 px a token are 4 x 4 tokens; a white picture of the smallest size is one
    assert texts == {
        0: start + pad + end,
        1: "dddd",
        2: start + pad * 16 + end + "eeeee",
        3: start + pad * 16 + end + "ffffff",
    }
    strict = DocumentBatches(made, words, skipping, 1, range(1), whole=True)
    left_out, there = {}, 0
    for step in range(len(strict)):
        batch = strict[step]
        left_out |= batch.left_out
        there += (batch.arrays["document_of_segment"] >= 0).sum()
    assert left_out.keys() == {0, 1, 2}
    assert "cut.png" in left_out[2]


def test_a_header_that_says_too_little_widens_the_shape_on_one_host_and_stops_several(words):
    """A picture turned by an orientation behind its pixels, or replaced since it was planned."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3)).astype(np.uint8)).save(file, "PNG")
    document = Document((ImageRef(file.getvalue()),))
    expected = DocumentBatches([document], words, CONFIG, 1, range(1))[0]
    small = Document((ImageRef(Image.new("RGB", (8, 8))),))
    batches = DocumentBatches([small], words, CONFIG, 1, range(1))
    batches.documents = [document]
    got = batches[0]
    for arrays in (got.arrays, expected.arrays):
        assert (arrays["patch_picture"] > 0).sum() == 100
    assert got.arrays["tokens"].shape == expected.arrays["tokens"].shape
    several = DocumentBatches([small], words, CONFIG, 2, range(1))
    several.documents = [document]
    with pytest.raises(DataError, match="did a file change"):
        several[0]


@pytest.mark.parametrize("form", ["png", "jpeg", "webp", "pillow"])
def test_headers_tell_the_grids_of_what_is_loaded(form):
    """Boxes inside, across and beyond the edge, strips, tiny and turned pictures."""
    rng = np.random.default_rng(0)
    data = dataclasses.replace(DATA, max_aspect=5.0, on_error="skip")  # some boxes hold nothing
    for number in range(40):
        height, width = (int(n) for n in rng.integers(1, 120, 2))
        image = Image.fromarray(rng.integers(0, 255, (height, width, 3)).astype(np.uint8))
        exif, file = Image.Exif(), io.BytesIO()
        exif[0x0112] = 1 + number % 8
        if form != "pillow":
            image.save(file, form, exif=exif)
        x, y, w, h = rng.uniform(-20, 120, 4)
        box = (x, y, x + w + 21, y + h + 21) if number % 3 else None
        document = Document((ImageRef(image if form == "pillow" else file.getvalue(), box),))
        expected = [(p.grid, p.role) for p in images.pictures(document, data, VISION)]
        assert images.grids(document, data, VISION) == expected
