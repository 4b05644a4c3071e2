"""The floor under image retrieval: how much is found by colour alone, without looking at shapes."""

import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from moon_jax.data.picture_files import load
from moon_jax.data.records import ImageSource

BINS = (16, 4, 4)  # hue, saturation, value
_SIDE = 128  # larger pictures are reduced first: a histogram does not need more pixels


def embed_pictures(paths: Sequence[ImageSource | os.PathLike]) -> Float[np.ndarray, "n d"]:
    """Returns the HSV histogram of each whole picture as a unit vector, float32 [n, 256].

    The histogram sums to 1 and its square root is taken, so the vectors have L2 norm 1 and their dot product is the
    Bhattacharyya coefficient of two histograms: 1 for equal ones, 0 where no colour is shared.

    Raises:
        ImageError: a picture is missing or broken; the message names the file.
    """
    out = np.zeros((len(paths), int(np.prod(BINS))), np.float32)
    for row, path in zip(out, paths, strict=True):
        picture = load(os.fspath(path) if isinstance(path, os.PathLike) else path)
        picture.thumbnail((_SIDE, _SIDE))
        hsv = np.asarray(picture.convert("HSV"), np.int64).reshape(-1, 3)
        hue, saturation, value = (hsv[:, axis] * bins // 256 for axis, bins in enumerate(BINS))
        counts = np.bincount((hue * BINS[1] + saturation) * BINS[2] + value, minlength=out.shape[1])
        row[:] = np.sqrt(counts / counts.sum())
    return out
