"""smart_resize against transformers, and the bounds against every size that a brute-force search reaches."""

import dataclasses
import math

import numpy as np
import pytest
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as transformers_resize

from moon_jax.config import DataConfig, VisionConfig
from moon_jax.data import grids

VISION = VisionConfig()


def test_smart_resize_equals_transformers_on_random_sizes():
    rng = np.random.default_rng(0)
    sizes = [*np.exp(rng.uniform(0, 9, (3000, 2))).astype(int), *rng.integers(1, 120, (3000, 2))]
    sizes += [(14, 14), (42, 42), (70, 14), (13, 2000), (1, 200), (28, 5600), (2000, 2000)]
    compared = 0
    for h, w in sizes:
        h, w = int(h), int(w)
        for low, high in [(56 * 56, 448 * 448), (1, 28 * 28 * 4), (56 * 56, 12845056)]:
            if max(h, w) <= 200 * min(h, w):
                assert grids.smart_resize(h, w, 28, low, high) == transformers_resize(h, w, 28, low, high)
                compared += 1
    assert compared > 15000


def test_smart_resize_refuses_extreme_strips():
    with pytest.raises(ValueError, match="2010x10 px"):
        grids.smart_resize(10, 2010, 28, 56 * 56, 448 * 448)


@pytest.mark.parametrize(
    ("low", "high", "aspect"),
    [(4, 256, 16), (4, 256, 200), (4, 16, 16), (4, 16, 4), (16, 16, 200), (1, 1, 8), (9, 20, 1.5), (3.3, 30.7, 50)],
)
def test_bounds_hold_for_every_reachable_grid_and_are_tight(low, high, aspect):
    data = DataConfig(min_pixels=int(low * 784), max_pixels=int(high * 784), max_aspect=float(aspect))
    bounds = grids.picture_bounds(data, VISION)
    rng = np.random.default_rng(1)
    ratios = np.exp(rng.uniform(-math.log(aspect), math.log(aspect), 20000))
    long = np.exp(rng.uniform(0, math.log(3000), 20000))
    reached = 0
    for ratio, side in zip(ratios, long, strict=True):
        h, w = round(max(1, side * min(1, ratio))), round(max(1, side / max(1, ratio)))
        if max(h, w) > aspect * min(h, w):
            continue
        h, w = grids.smart_resize(h, w, 28, data.min_pixels, data.max_pixels)
        short, tall = sorted((h // 28, w // 28))
        assert short <= len(bounds), (h, w)
        assert tall <= bounds[short - 1], (h, w)
        reached = max(reached, short * tall)
    assert grids.max_picture_tokens(data, VISION) <= 1.3 * reached + 1


def test_longer_strips_cost_larger_slots_only_when_allowed():
    small = DataConfig(max_pixels=112 * 112)
    assert grids.max_picture_tokens(small, VISION) == 16
    assert grids.max_picture_tokens(dataclasses.replace(small, max_aspect=200.0), VISION) == 56
