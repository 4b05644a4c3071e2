"""Which size a picture gets, or how many tiles, and how large it can be at most: static shapes rest on that."""

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


def tile_limits(min_pixels: int, max_pixels: int, tile: int) -> tuple[int, int]:
    """Returns the fewest and the most tiles of `tile` px that a picture is cut into, by the budget of its pixels."""
    return max(1, min_pixels // tile**2), max(1, max_pixels // tile**2)


def tile_grid(height: int, width: int, tile: int, fewest: int, most: int) -> tuple[int, int]:
    """Returns the (rows, columns) of tiles that InternVL's processor cuts a picture into.

    Of all arrangements of `fewest` to `most` tiles the one whose ratio of sides is nearest to the picture's; of equal
    ones that with more tiles, as long as the picture has more than half of its pixels (transformers
    `get_optimal_tiled_canvas`).
    """
    best, difference = (1, 1), math.inf
    pairs = ((w, h) for w in range(1, most + 1) for h in range(1, most // w + 1) if w * h >= fewest)
    for w, h in sorted(pairs, key=lambda pair: pair[0] * pair[1]):
        off = abs(width / height - w / h)
        if off < difference or (off == difference and width * height > 0.5 * tile * tile * w * h):
            best, difference = (h, w), off
    return best


def picture_grid(height: int, width: int, vision: VisionConfig, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Returns the patches (high, wide) of a picture.

    A picture of tiles is as high as all of its tiles, one below the other row by row, and last of all the whole
    picture as one more tile, where there is more than one.

    Raises:
      ValueError: the longer side is more than 200 times the shorter one.
    """
    p = vision.patch_size
    if vision.kind != "internvl":
        h, w = smart_resize(height, width, p * vision.spatial_merge_size, min_pixels, max_pixels)
        return h // p, w // p
    tile = vision.intern.image_size
    rows, columns = tile_grid(height, width, tile, *tile_limits(min_pixels, max_pixels, tile))
    tiles = rows * columns + (rows * columns > 1)
    return tiles * tile // p, tile // p


def picture_bounds(data: DataConfig, vision: VisionConfig) -> tuple[int, ...]:
    """Returns `longest_sides` for the settings of a run; 0 for a short side that no picture has."""
    if vision.kind == "internvl":
        most = tile_limits(data.min_pixels, data.max_pixels, vision.intern.image_size)[1]
        return *[0] * (vision.tile_tokens - 1), vision.tile_tokens * (most + (most > 1))
    area = (vision.patch_size * vision.spatial_merge_size) ** 2
    return longest_sides(data.min_pixels / area, data.max_pixels / area, data.max_aspect)


def max_picture_tokens(data: DataConfig, vision: VisionConfig) -> int:
    """Returns the most visual tokens that one picture can have."""
    return max(short * long for short, long in enumerate(picture_bounds(data, vision), start=1))
