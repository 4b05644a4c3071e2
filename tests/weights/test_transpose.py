"""Copies between orders are numpy's, for every order, size and type."""

import itertools

import ml_dtypes
import numpy as np
import pytest

from moon_jax.weights import transpose
from moon_jax.weights.transpose import copy

BF16 = np.dtype(ml_dtypes.bfloat16)
SHAPES = [(), (1,), (5,), (0, 3), (7, 30), (30, 7, 3), (3, 2, 60, 5), (1, 30, 1, 52), (2, 3, 2, 3, 2)]


@pytest.mark.parametrize("tile", [(4, 8), (512, 256)])
@pytest.mark.parametrize(("kind", "to"), [(BF16, BF16), (BF16, np.float32), (np.float32, BF16), (np.float16, BF16)])
def test_every_order(monkeypatch, tile, kind, to):
    monkeypatch.setattr(transpose, "_ROWS", tile[0])
    monkeypatch.setattr(transpose, "_COLUMNS", tile[1])
    for shape in SHAPES:
        x = np.random.default_rng(0).standard_normal(shape).astype(kind)
        for order in itertools.permutations(range(len(shape))):
            view = x.transpose(order)
            out = np.empty(view.shape, to)
            copy(out, view)
            np.testing.assert_array_equal(out, view.astype(to), err_msg=f"{shape} {order}")
            frame = np.full([n + 2 for n in view.shape], 9, to)  # a part of a larger array; the rest stays
            inside = (*[slice(1, -1)] * view.ndim, ...)
            copy(frame[inside], view)
            np.testing.assert_array_equal(frame[inside], view.astype(to))
            frame[inside] = 9
            assert (frame == 9).all()


def test_parts_and_broadcasts_are_copied_too():
    x = np.arange(600, dtype=np.float32).reshape(20, 30)
    for view in (x[3:9, ::2].T, x[::-1].T, np.broadcast_to(x[:, :1].T, (4, 20)), x[:, 5]):
        out = np.empty(view.shape, np.float32)
        copy(out, view)
        np.testing.assert_array_equal(out, view)


def test_bits_stay_what_they_are():
    """Not-a-numbers with a payload, negative zeros, subnormals: all 65536 values of the type."""
    x = np.arange(1 << 16, dtype=np.uint16).view(BF16).reshape(256, 256)
    out = np.empty((256, 256), BF16)
    copy(out, x.T)
    np.testing.assert_array_equal(out.view(np.uint16), x.view(np.uint16).T)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(3, 2\)"):
        copy(np.empty((2, 3)), np.empty((3, 2)))
