"""What the model is shown of a picture: the crop of the product, strips padded, random views for training."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageEnhance

from moon_jax.data.policy import MIN_CROP_PX, clamp
from moon_jax.data.records import Box


def crop(image: Image.Image, box: Box, margin: float) -> Image.Image | None:
    """Returns the part of an upright picture inside the box, or None where the box holds nothing of it.

    Args:
      image: any mode.
      box: x1, y1, x2, y2 in its pixels; what lies outside is cut off.
      margin: share of the width and height of the box's part in the picture that is added on every side.
    """
    area = crop_area(image.size, box, margin)
    return None if area is None else image.crop(area)


def crop_area(size: tuple[int, int], box: Box, margin: float) -> tuple[int, int, int, int] | None:
    """Returns what `crop` takes of a picture of `size` = (width, height) px: left, top, right, bottom; or None."""
    x1, y1, x2, y2 = clamp(box, *size)
    if x2 - x1 < MIN_CROP_PX or y2 - y1 < MIN_CROP_PX:
        return None
    dx, dy = margin * (x2 - x1), margin * (y2 - y1)
    return (
        max(0, math.floor(x1 - dx)),
        max(0, math.floor(y1 - dy)),
        min(size[0], math.ceil(x2 + dx)),
        min(size[1], math.ceil(y2 + dy)),
    )


def pad_to_aspect(image: Image.Image, max_aspect: float) -> Image.Image:
    """Returns the picture, a longer strip than `max_aspect` in the middle of a white one of that ratio."""
    width, height = padded_size(image.size, max_aspect)
    if (width, height) == image.size:
        return image
    canvas = Image.new("RGB", (width, height), (255, 255, 255))
    canvas.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    return canvas


def padded_size(size: tuple[int, int], max_aspect: float) -> tuple[int, int]:
    """Returns the (width, height) that `pad_to_aspect` gives a picture of `size`."""
    short = math.ceil(max(size) / max_aspect)
    return max(size[0], short), max(size[1], short)


def augment(
    image: Image.Image, box: Box | None, key: Sequence[int], least: float = 0.6, least_box: float = 1.0
) -> tuple[Image.Image, Box | None]:
    """Returns a random view of an RGB picture and the box in it: part of it, perhaps mirrored, in other light.

    The part has `least` to all of the area and up to 4/3 of the aspect, and is made larger where it would not hold the
    box, or with `least_box` below 1 a random part of the box: then some views are close-ups of the product. Brightness,
    contrast and saturation change by up to 20%; the hue stays: colour tells products apart.

    Args:
      image: upright.
      box: of the product, or None.
      key: non-negative numbers that decide everything: the same key gives the same view.
      least: share of the area that stays at least.
      least_box: share of the box's width and of its height that stays at least; what is cut off of the box is cut off
        of the returned one.
    """
    rng = np.random.default_rng(key)
    width, height = image.size
    x1, y1, x2, y2 = clamp(box, width, height) if box is not None else (0.0, 0.0, 0.0, 0.0)
    area, aspect = rng.uniform(least, 1.0), math.exp(rng.uniform(-1, 1) * math.log(4 / 3))
    kept = (x1, y1, x2, y2)
    if box is not None and least_box < 1:
        kept = _part(rng, kept, least_box)
    first, last = (math.floor(kept[0]), math.floor(kept[1])), (math.ceil(kept[2]), math.ceil(kept[3]))
    w = min(width, max(last[0] - first[0], MIN_CROP_PX, round(width * math.sqrt(area * aspect))))
    h = min(height, max(last[1] - first[1], MIN_CROP_PX, round(height * math.sqrt(area / aspect))))
    low, high = (0, 0), (width - w, height - h)
    if box is not None:
        low = max(0, last[0] - w), max(0, last[1] - h)
        high = min(high[0], first[0]), min(high[1], first[1])
    left, top = (int(rng.integers(a, max(a, b) + 1)) for a, b in zip(low, high, strict=True))
    image = image.crop((left, top, left + w, top + h))
    x1, y1, x2, y2 = clamp((x1 - left, y1 - top, x2 - left, y2 - top), w, h)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        x1, x2 = w - x2, w - x1
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(rng.uniform(0.8, 1.2))
    return image, None if box is None else (x1, y1, x2, y2)


def _part(rng: np.random.Generator, box: Box, share: float) -> Box:
    """Returns a random part of a box with `share` of its width and height, or `MIN_CROP_PX` where that is more."""
    x1, y1, x2, y2 = box
    w, h = (min(side, max(MIN_CROP_PX, share * side)) for side in (x2 - x1, y2 - y1))
    left, top = x1 + rng.uniform(0, x2 - x1 - w), y1 + rng.uniform(0, y2 - y1 - h)
    return left, top, min(left + w, x2), min(top + h, y2)
