"""Pictures of InternVL: the tiles that transformers cuts, the bounds that static shapes rest on, plain positions."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
from PIL import Image

from moon_jax.config import DataConfig, GroundingConfig, Role, VisionConfig
from moon_jax.config_backbone import InternConfig
from moon_jax.data import slots
from moon_jax.data.documents import Document, EncodedDocument, encode
from moon_jax.data.grids import max_picture_tokens, picture_grid, tile_grid
from moon_jax.data.grounding import Frame, ask, see
from moon_jax.data.packing import BatchShape, pack
from moon_jax.data.patches import patchify
from moon_jax.data.positions import token_positions
from moon_jax.data.records import DataError
from moon_jax.data.tokenizer import load, train_bpe

VISION = VisionConfig(patch_size=4, temporal_patch_size=1, kind="internvl", intern=InternConfig(image_size=16))


def test_arrangements_are_those_of_transformers():
    pil = pytest.importorskip("transformers.models.got_ocr2.image_processing_pil_got_ocr2")
    sides = (1, 7, 16, 23, 31, 32, 33, 48, 97, 300)
    for size, limits in itertools.product(itertools.product(sides, sides), ((1, 1), (1, 6), (1, 12), (3, 5))):
        columns, rows = pil.get_optimal_tiled_canvas(size, (16, 16), *limits)
        assert tile_grid(*size, 16, *limits) == (rows, columns), (size, limits)


def test_of_equal_arrangements_the_larger_only_for_a_picture_of_more_than_half_its_pixels():
    assert tile_grid(22, 22, 16, 1, 4) == (1, 1)  # 484 of 2 x 2 x 256 = 1024 px
    assert tile_grid(23, 23, 16, 1, 4) == (2, 2)  # 529
    assert tile_grid(10, 10, 16, 2, 4) == (2, 2)  # one tile is too few


@pytest.mark.parametrize("tiles", [1, 2, 7])
def test_no_picture_is_larger_than_its_bounds(tiles):
    data = DataConfig(min_pixels=1, max_pixels=tiles * 256, max_aspect=16.0)
    sizes = [(h, w) for h, w in itertools.product((1, 5, 16, 40, 80, 200), repeat=2) if max(h, w) <= 16 * min(h, w)]
    grids = {picture_grid(*size, VISION, data.min_pixels, data.max_pixels) for size in sizes}
    assert max(h * w for h, w in grids) // 4 == max_picture_tokens(data, VISION)
    assert max(len(slots.layout(grid, VISION).groups) for grid in grids) == slots.max_picture_chunks(data, VISION)
    assert len(grids) > 1 or tiles == 1


def test_a_tile_is_a_chunk_and_its_patches_are_its_pixels():
    """Of a picture of 2 x 1 tiles and the whole: each chunk holds the tile that Pillow cuts by itself."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 20, 3), np.uint8))
    picture = patchify(image, VISION, 1, 3 * 256)
    assert picture.grid == (12, 4)
    tokens = np.zeros(12, np.int32)
    document = EncodedDocument(tokens, np.full(12, Role.IMAGE, np.int32), (picture,))
    batch = pack([document], BatchShape(1, 16, 1, 4 * 16, 1), VISION)
    resized = np.asarray(image.resize((16, 32), Image.Resampling.BICUBIC))
    whole = np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC))
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    for number, tile in enumerate((resized[:16], resized[16:], whole)):
        chunk = batch["patches"][0, 16 * number : 16 * (number + 1)]
        where = batch["patch_positions"][0, 16 * number : 16 * (number + 1)]
        rows, columns = where.T
        assert (rows // 4 == rows[0] // 4).all()
        tile = (tile / 255 - mean) / std
        top = rows[0] // 4 * 4
        if number != rows[0] // 4:
            pytest.fail(f"chunk {number} holds tile {rows[0] // 4}")
        for patch, row, column in zip(chunk, rows - top, columns, strict=True):
            wanted = tile[4 * row : 4 * row + 4, 4 * column : 4 * column + 4].transpose(2, 0, 1)
            np.testing.assert_allclose(patch.reshape(3, 4, 4), wanted, atol=2e-6)
    places = batch["image_slots"][0, :12]
    assert sorted(places) == list(range(12))
    assert (batch["positions"][:, 0, :12] == np.arange(12)).all()


def test_positions_are_plain_places():
    is_image = np.array([0, 1, 1, 1, 1, 0, 0], bool)
    np.testing.assert_array_equal(token_positions(is_image, [(4, 4)], VISION), [np.arange(7)] * 3)
    with pytest.raises(ValueError, match="do not match the grids"):
        token_positions(is_image, [(8, 4)], VISION)
    qwen = dataclasses.replace(VISION, kind="qwen2_vl", intern=InternConfig())
    assert token_positions(is_image, [(4, 4)], qwen)[0].tolist() == [0, 1, 1, 1, 1, 3, 4]


def test_a_box_has_no_place_in_the_pixels_of_tiles(tmp_path):
    data = DataConfig(max_pixels=2 * 256)
    image = Image.new("RGB", (40, 20))
    assert Frame.of(image.size, data, VISION).to_model((0.0, 0.0, 20.0, 20.0), "relative") == (0, 0, 500, 1000)
    words = train_bpe(["a red mug"], tmp_path, 280)
    with pytest.raises(DataError, match="'relative'"):
        ask(see(image, data, VISION), "mug", words, data, VISION)
    data = dataclasses.replace(data, grounding=GroundingConfig(coordinates="relative"))
    assert len(ask(see(image, data, VISION), "mug", words, data, VISION).pictures) == 1


def test_pictures_stand_between_internvls_own_tokens(tmp_path):
    """Its tokenizer has Qwen2.5's vision tokens too; they are not the ones that its model knows."""
    words = train_bpe(["a red mug"], tmp_path, 280)
    assert words.image_pad == words.special["<|image_pad|>"]
    state = json.loads((tmp_path / "tokenizer.json").read_text())
    for number, name in enumerate(("<img>", "</img>", "<IMG_CONTEXT>"), start=words.vocab_size):
        state["added_tokens"].append(state["added_tokens"][0] | {"content": name, "id": number})
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    intern, first = load(tmp_path), words.vocab_size
    assert (intern.vision_start, intern.vision_end, intern.image_pad) == (first, first + 1, first + 2)
    picture = patchify(Image.new("RGB", (16, 16)), VISION, 1, 256)
    encoded = encode(Document(), intern, [picture], DataConfig(), VISION)
    assert encoded.tokens.tolist() == [first, *[first + 2] * 4, first + 1]
