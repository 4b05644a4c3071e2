"""Positions and windows against arrays written by hand and against transformers' own functions."""

import numpy as np
import pytest

from moon_jax.config import VisionConfig
from moon_jax.data import positions

VISION = VisionConfig()


def test_mrope_of_text_picture_text_by_hand():
    is_image = np.array([0, 0, 1, 1, 1, 1, 1, 1, 0, 0], bool)  # a picture of 2 x 3 visual tokens
    expected = [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6],
    ]
    np.testing.assert_array_equal(positions.mrope_positions(is_image, [(4, 6)], 2), expected)


def test_mrope_of_two_touching_pictures_by_hand():
    is_image = np.array([1, 1, 1, 1, 1, 0], bool)  # 2 x 1, then 1 x 3
    expected = [[0, 0, 2, 2, 2, 5], [0, 1, 2, 2, 2, 5], [0, 0, 2, 3, 4, 5]]
    np.testing.assert_array_equal(positions.mrope_positions(is_image, [(4, 2), (2, 6)], 2), expected)


@pytest.mark.parametrize(
    ("is_image", "grids", "message"),
    [([1, 1, 1], [(4, 4)], "do not match"), ([1, 1, 0, 1, 1], [(4, 4)], "torn apart"), ([0, 1], [], "do not match")],
)
def test_mrope_refuses_runs_that_contradict_the_grids(is_image, grids, message):
    with pytest.raises(ValueError, match=message):
        positions.mrope_positions(np.array(is_image, bool), grids, 2)


def test_patch_positions_are_block_major_by_hand():
    expected = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (0, 3), (1, 2), (1, 3)]
    np.testing.assert_array_equal(positions.patch_positions((2, 4), 2), expected)


def test_windows_are_ragged_at_right_and_bottom_by_hand():
    vision = VisionConfig(window_size=56)  # 2 x 2 units
    order, windows = positions.window_order((6, 6), vision)  # 3 x 3 units
    np.testing.assert_array_equal(order, [0, 1, 3, 4, 2, 5, 6, 7, 8])
    np.testing.assert_array_equal(windows, [0, 0, 0, 0, 1, 1, 2, 2, 3])


@pytest.mark.torch
def test_windows_and_patch_positions_equal_transformers_on_many_grids():
    import torch
    from transformers import vision_utils

    for grid in [(2, 2), (8, 8), (16, 16), (6, 10), (10, 6), (2, 64), (34, 18), (18, 32), (30, 34)]:
        grid_thw = torch.tensor([[1, *grid]])
        index, cumulative = vision_utils.get_vision_window_index(grid_thw, 2, VISION.window_size, VISION.patch_size)
        order, windows = positions.window_order(grid, VISION)
        np.testing.assert_array_equal(order, index, err_msg=str(grid))
        sizes = np.diff(np.unique(cumulative)) // VISION.merge_unit
        np.testing.assert_array_equal(np.unique(windows, return_counts=True)[1], sizes, err_msg=str(grid))
        expected = vision_utils.get_vision_position_ids(grid_thw, 2)
        np.testing.assert_array_equal(positions.patch_positions(grid, 2), expected, err_msg=str(grid))
