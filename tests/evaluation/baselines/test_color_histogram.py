import colorsys

import numpy as np
import pytest
from PIL import Image

from moon_jax.data.picture_files import ImageError
from moon_jax.evaluation.baselines import color_histogram


def _save(path, pixels):
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)
    return path


def test_equals_a_count_by_hand(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3))
    expected = np.zeros(color_histogram.BINS)
    for r, g, b in pixels.reshape(-1, 3) / 255.0:
        hsv = colorsys.rgb_to_hsv(r, g, b)
        bins = [int(round(c * 255) * n // 256) for c, n in zip(hsv, color_histogram.BINS, strict=True)]
        expected[tuple(bins)] += 1 / 63
    out = color_histogram.embed_pictures([_save(tmp_path / "a.png", pixels)])
    assert out.dtype == np.float32
    # Pillow floors the hue where we round it: a pixel may fall into the next bin
    np.testing.assert_allclose(out[0] ** 2, expected.ravel(), atol=3 / 63)
    assert np.abs(out[0] ** 2 - expected.ravel()).sum() < 0.2


def test_colour_ranks_and_shape_does_not(tmp_path):
    red_left, red_right, blue_left = (np.full((20, 20, 3), 255) for _ in range(3))
    red_left[:, :10] = red_right[:, 10:] = (200, 20, 20)
    blue_left[:, :10] = (20, 20, 200)
    paths = [_save(tmp_path / f"{i}.png", p) for i, p in enumerate((red_left, red_right, blue_left))]
    out = color_histogram.embed_pictures(paths)
    np.testing.assert_allclose(np.linalg.norm(out, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(out @ out.T, [[1, 1, 0.5], [1, 1, 0.5], [0.5, 0.5, 1]], atol=1e-6)


def test_transparent_is_white_and_any_mode_is_read(tmp_path):
    clear = np.zeros((4, 4, 4))
    paths = [_save(tmp_path / "clear.png", clear), _save(tmp_path / "white.png", np.full((4, 4), 255))]
    out = color_histogram.embed_pictures(paths)
    np.testing.assert_array_equal(out[0], out[1])
    assert color_histogram.embed_pictures([]).shape == (0, 256)


def test_a_broken_picture_is_named(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"not a picture")
    with pytest.raises(ImageError, match=r"broken\.jpg"):
        color_histogram.embed_pictures([tmp_path / "broken.jpg"])
