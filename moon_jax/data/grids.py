"""Which size a picture gets, and how large the largest can be: the static shapes rest on these bounds."""

import functools
import math

from moon_jax.config import DataConfig, VisionConfig

ROUNDING = 1e-9  # smart_resize computes in floats: a side that is a whole number may come out a little above it


def smart_resize(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Returns the (height, width) that Qwen2.5-VL's processor resizes a picture to: multiples of `factor`.

    The pixel budget is kept except at the extremes: a strip keeps at least one `factor` of height, and a picture that
    is scaled up has both sides rounded up. Python's round() is half to even, as in transformers.

    Raises:
      ValueError: the longer side is more than 200 times the shorter one.
    """
    if max(height, width) > 200 * min(height, width):
        raise ValueError(f"a picture of {width}x{height} px is more than 200 times as long as wide")
    h, w = round(height / factor) * factor, round(width / factor) * factor
    if h * w > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        h = max(factor, math.floor(height / shrink / factor) * factor)
        w = max(factor, math.floor(width / shrink / factor) * factor)
    elif h * w < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        h, w = math.ceil(height * grow / factor) * factor, math.ceil(width * grow / factor) * factor
    return h, w


@functools.lru_cache(maxsize=64)
def longest_sides(min_tokens: float, max_tokens: float, max_aspect: float) -> tuple[int, ...]:
    """Returns for every short side n = 1, 2, ... a bound of the long side, both in merged tokens.

    It holds for every picture that `smart_resize` can make of one whose sides have a ratio of at most `max_aspect`.
    With real sides x <= y before rounding: pictures that are kept or shrunk have n * long <= max_tokens, except strips
    (x < 1, n = 1) with y = sqrt(max_tokens * ratio); grown ones have x * y = min_tokens and both rounded up, so that
    x > n - 1 gives y < min_tokens / (n - 1).

    Args:
      min_tokens: min_pixels / factor**2.
      max_tokens: max_pixels / factor**2.
      max_aspect: longest side / shortest side of the source.
    """
    longest: list[int] = []
    while True:
        n = len(longest) + 1
        kept = math.floor(min(max_tokens / n, max_aspect * (n + 1) + 1))
        strip = math.floor(math.sqrt(max_tokens * max_aspect) * (1 + ROUNDING)) if n == 1 else 0
        grown = min_tokens / (n - 1) if n > 1 else math.inf
        grown = min(grown, math.sqrt(min_tokens * max_aspect)) * (1 + ROUNDING)
        # x <= sqrt(min_tokens) on the short side: beyond its ceiling nothing is grown.
        grown = math.ceil(grown) if n <= math.ceil(math.sqrt(min_tokens) * (1 + ROUNDING)) else 0
        bound = max(kept, strip, grown)
        if bound < n:
            return tuple(longest)
        longest.append(bound)


def picture_bounds(data: DataConfig, vision: VisionConfig) -> tuple[int, ...]:
    """Returns `longest_sides` for the settings of a run."""
    area = (vision.patch_size * vision.spatial_merge_size) ** 2
    return longest_sides(data.min_pixels / area, data.max_pixels / area, data.max_aspect)


def max_picture_tokens(data: DataConfig, vision: VisionConfig) -> int:
    """Returns the most visual tokens that one picture can have."""
    return max(short * long for short, long in enumerate(picture_bounds(data, vision), start=1))
