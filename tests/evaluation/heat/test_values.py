"""What is drawn of the weights: averages, cells and tokens by hand; colours where the attention is."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from moon_jax.config import ConfigError, DataConfig, Role, VisionConfig
from moon_jax.config_backbone import InternConfig
from moon_jax.data import images, tokenizer
from moon_jax.data.documents import Document
from moon_jax.data.patches import patchify
from moon_jax.data.records import ImageRef
from moon_jax.evaluation.heat.draw import Drawing, runs
from moon_jax.evaluation.heat.folder import WITH, WITHOUT
from moon_jax.evaluation.heat.maps import AttentionMap
from moon_jax.evaluation.heat.sheet import LEAST_TOP, WIDTH, colors, overlay, sheet, top_of, views
from moon_jax.evaluation.heat.values import cells_of, heat_values, parse_numbers


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return tokenizer.train_bpe(["red mug"] * 4, tmp_path_factory.mktemp("words"), 290)


def attention(words, text="red 蓝", grids=((1, 2), (2, 1)), layers=2, heads=3):
    """A document of two pictures and a title; weights drawn at random."""
    tokens, roles = [], []
    for (high, wide), role in zip(grids, (Role.IMAGE, Role.CORE), strict=False):
        tokens += [words.vision_start, *[words.image_pad] * (high * wide), words.vision_end]
        roles += [Role.OTHER, *[role] * (high * wide), Role.OTHER]
    title = words.encode(text)
    weights = np.random.default_rng(0).dirichlet(np.ones(len(tokens) + len(title)), (layers, heads))
    return AttentionMap(
        np.array(tokens + title, np.int32),
        np.array(roles + [Role.TITLE] * len(title), np.int32),
        weights.astype(np.float32),
        tuple(zip(grids, (Role.IMAGE, Role.CORE), strict=False)),
    )


def test_values_by_hand(words):
    found = attention(words)
    n = len(found.tokens)
    even = np.arange(1, n + 1) / (n * (n + 1) / 2)
    values = heat_values(found, words, (1,), (0, 2), even)
    mean = (found.weights[1, 0].astype(float) + found.weights[1, 2]) / 2
    assert values["tokens"] == n
    first, second = values["pictures"]
    assert (first["role"], first["grid"], second["role"], second["grid"]) == ("image", [1, 2], "core", [2, 1])
    np.testing.assert_allclose(first["share"], [mean[1:3]], rtol=1e-5)
    np.testing.assert_allclose(second["share"], mean[5:7][:, None], rtol=1e-5)
    np.testing.assert_allclose(second["relative"], (mean[5:7] / even[5:7])[:, None], rtol=1e-5)
    np.testing.assert_allclose(values["shares"]["other"], mean[[0, 3, 4, 7]].sum(), rtol=1e-5)
    np.testing.assert_allclose(sum(values["shares"].values()), 1, rtol=1e-4)


def test_tiles_lie_where_they_were_cut_from():
    """Two rows and three columns of tiles of 2 x 2 tokens, numbered by hand, and the whole picture behind them."""
    tiles = np.arange(24.0).reshape(12, 2)
    whole = np.array([[60.0, 120.0], [0.0, 600.0]])
    cut = np.array([
        [0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10, 11], [12, 13, 16, 17, 20, 21], [14, 15, 18, 19, 22, 23],
    ])  # fmt: skip
    spread = np.array([[10, 10, 10, 20, 20, 20]] * 2 + [[0, 0, 0, 100, 100, 100]] * 2)
    np.testing.assert_array_equal(cells_of(np.concatenate([tiles, whole]), (2, 3)), cut + spread)
    np.testing.assert_array_equal(cells_of(whole, (1, 1)), whole)
    np.testing.assert_array_equal(cells_of(tiles, None), tiles)


@pytest.mark.parametrize("size", [(96, 40), (40, 96), (50, 50), (120, 80)])
def test_cells_of_tiles_are_where_the_model_was_shown_them(words, size):
    """A picture that grows brighter from left to right and from top to bottom: so do its patches, put back as cells."""
    vision = VisionConfig(kind="internvl", patch_size=4, spatial_merge_size=2, intern=InternConfig(image_size=32))
    data = DataConfig(min_pixels=32 * 32, max_pixels=6 * 32 * 32)
    drawing = Drawing(words, data, vision, True, 0, (0,), (0,), "share", "no")
    x, y = np.meshgrid(np.linspace(0, 100, size[0]), np.linspace(0, 150, size[1]))
    image = Image.fromarray(np.repeat((x + y)[..., None], 3, axis=-1).astype(np.uint8))
    picture = patchify(image, vision, data.min_pixels, data.max_pixels)
    high, wide = picture.grid[0] // 2, picture.grid[1] // 2
    brightness = picture.patches.astype(float).reshape(high * wide, -1).mean(1).reshape(high, wide)
    rows, columns = drawing._tiles(image)
    cells = cells_of(brightness, (rows, columns))
    assert cells.shape == (rows * 4, columns * 4)
    assert (np.diff(cells, axis=0) > 0).all()
    assert (np.diff(cells, axis=1) > 0).all()
    np.testing.assert_allclose(cells.sum(), brightness.sum())


def test_tokens_of_one_character_come_together(words):
    """ "蓝" is three bytes that this tokenizer has never seen side by side: three tokens, one piece."""
    found = attention(words, "red 蓝 mug")
    even = np.full(len(found.tokens), 1 / len(found.tokens))
    text = heat_values(found, words, (0,), (0,), even)["text"]
    assert "".join(piece["text"] for piece in text) == "red 蓝 mug"
    blue = next(number for number, piece in enumerate(text) if "蓝" in piece["text"])
    title = found.weights[0, 0, 8:]
    bytes_of_it = len(title) - len(text) + 1
    assert bytes_of_it >= 3
    np.testing.assert_allclose(text[blue]["share"], title[blue : blue + bytes_of_it].sum(), rtol=1e-5)
    np.testing.assert_allclose(text[blue]["relative"], len(found.tokens) * text[blue]["share"] / bytes_of_it, rtol=1e-4)
    np.testing.assert_allclose(sum(piece["share"] for piece in text), title.sum(), rtol=1e-4)


def test_a_text_of_broken_characters_ends(words):
    """U+FFFD looks like the first bytes of a character for ever; no token is lost."""
    found = attention(words, "\ufffd" * 30)
    text = heat_values(found, words, (0,), (0,), np.ones(len(found.tokens)))["text"]
    assert len(text) >= 90 / 8
    np.testing.assert_allclose(sum(piece["share"] for piece in text), found.weights[0, 0, 8:].sum(), rtol=1e-4)


@pytest.mark.parametrize(
    ("text", "numbers"), [("all", (0, 1, 2, 3)), ("3", (3,)), ("0-1, 3", (0, 1, 3)), ("2-2,0,1-2", (0, 1, 2))]
)
def test_numbers_of_layers(text, numbers):
    assert parse_numbers(text, 4, "layers") == numbers
    assert parse_numbers(runs(numbers), 4, "layers") == numbers


@pytest.mark.parametrize("text", ["", "4", "2-1", "-1", "1-", "last", "0,,1", "1-2-3", "²"])
def test_numbers_that_are_none(text):
    with pytest.raises(ConfigError, match="--heads="):
        parse_numbers(text, 4, "heads")


def test_the_redder_the_more_attention():
    """A bright cell in the corner of a grey picture: red there, grey at the far end, one colour scale between."""
    grey = Image.new("RGB", (80, 40), (128, 128, 128))
    cells = np.zeros((4, 8))
    cells[0, 7] = 3.0
    drawn = np.asarray(overlay(grey, cells, 3.0, (160, 80))).astype(int)
    assert drawn.shape == (80, 160, 3)
    assert drawn[2, -3, 0] - drawn[2, -3, 2] > 60
    assert np.ptp(drawn[:, :80], axis=-1).max() == 0
    middle = np.asarray(overlay(grey, np.full((4, 8), 1.5), 3.0, (160, 80)))[40, 80]
    np.testing.assert_allclose(colors(np.array(0.5)), [253, 141, 60])
    shown = 255 - 0.8 * (255 - 128)
    np.testing.assert_allclose(middle, shown + 0.85 * 0.5 * (np.array([253, 141, 60]) - shown), atol=1)
    beyond = overlay(grey, 2 * cells, 3.0, (160, 80))
    assert np.asarray(beyond).dtype == np.uint8  # what is beyond the scale has its end


def test_large_cells_are_told_apart_by_lines():
    grey = Image.new("RGB", (80, 40), (128, 128, 128))
    drawn = np.asarray(overlay(grey, np.ones((1, 2)), 3.0, (160, 80))).astype(int)
    assert set(np.flatnonzero((drawn != drawn[0, 0]).any((0, 2)))) == {80}
    assert (drawn[:, 80] > drawn[:, 79]).all()
    small = np.asarray(overlay(grey, np.ones((4, 8)), 3.0, (160, 80)))
    assert (small == small[0, 0]).all()


def test_the_end_of_the_scale_leaves_out_tokens_that_few_see():
    """One token of 1% of even attention has 50 times even; the others 3 times: the scale ends at 3, not at 50."""
    even = np.array([0.33, 0.33, 0.33, 0.01])
    relative = np.array([1.0, 3.0, 0.0, 50.0])
    pieces = [{"share": s, "relative": r} for s, r in zip(relative * even, relative, strict=True)]
    assert top_of(pieces, "relative") == 3.0
    assert top_of(pieces, "share") == pytest.approx(0.99)
    assert top_of([{"share": 0.5, "relative": 1.0}] * 2, "relative") == LEAST_TOP


def test_views_are_what_the_patches_are_made_of(tmp_path):
    """The pictures under the maps, resized as the model's, give the patches of the model: same crop, same padding."""
    data, vision = DataConfig(min_pixels=56 * 56, max_pixels=112 * 112, max_aspect=3.0), VisionConfig()
    path = tmp_path / "strip.png"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (40, 300, 3)).astype(np.uint8)).save(path)
    document = Document((ImageRef(str(path), (20.0, 5.0, 90.0, 39.0)), ImageRef(str(path))))
    made, shown = images.pictures(document, data, vision), views(document, data)
    assert [picture.role for picture in made] == [Role.IMAGE, Role.CORE, Role.IMAGE]
    for picture, view in zip(made, shown, strict=True):
        again = patchify(view, vision, data.min_pixels, data.max_pixels, picture.role)
        np.testing.assert_array_equal(again.patches, picture.patches)
    assert len(views(document, dataclasses.replace(data, crop=False))) == 2


def test_sheets_of_every_kind_of_record(words):
    """Pictures and text, one of both, hostile texts; the parts of a record that is larger are taller."""
    found = attention(words, "mug \x00\u202e<script>\n" * 30)
    even = np.full(len(found.tokens), 1 / len(found.tokens))
    both = heat_values(found, words, (0, 1), (0, 1, 2), even)
    bare = both | {"text": []}
    text = both | {"pictures": []}
    shown = [Image.new("RGB", (50, 25), (200, 30, 30)), Image.new("RGB", (10, 400), (9, 200, 30))]
    for scale in ("relative", "share"):
        whole = sheet({"id": "a" * 900, WITH: both, WITHOUT: bare}, shown, scale, "mean")
        pictures = sheet({"id": "b", WITHOUT: bare}, shown, scale, "mean")
        texts = sheet({"id": "c", WITH: text}, [], scale, "mean")
        assert whole.width == pictures.width == texts.width == WIDTH
        assert whole.height > max(pictures.height, texts.height)
