"""What a picture is stored as: its own file where that is small enough, else a smaller JPEG."""

import dataclasses
import io
import math
import os

from PIL import Image

from moon_jax.data import picture_files
from moon_jax.data.records import DataError, ImageSource

KEEP = ("all", "jpeg")
JPEG_SIGNATURE = b"\xff\xd8\xff"
MAX_SIDE_PX = 16_384
NOTES_BYTES = 65_536  # what a file may hold beside its pixels


@dataclasses.dataclass(frozen=True)
class StoreSettings:
    """What pictures are stored as; all of a store have the same."""

    max_pixels: int = 1024 * 1024  # larger pictures are scaled down to it
    quality: int = 90  # of the JPEG files that are written; with all the colour (4:4:4)
    keep: str = "all"  # which pictures of at most max_pixels keep their own bytes: "all" or "jpeg" files only

    def __post_init__(self):
        if self.max_pixels < 1 or not 1 <= self.quality <= 100 or self.keep not in KEEP:
            raise DataError(f"image store: max_pixels >= 1, quality 1..100, keep one of {', '.join(KEEP)}; not {self}")


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A picture as it is stored."""

    content: bytes  # of a file
    size: tuple[int, int]  # (width, height), upright
    source_size: tuple[int, int]  # of the picture that it was made of


def encode(source: ImageSource, settings: StoreSettings) -> Encoded:
    """Returns what is stored of a picture, all of which is decoded first.

    A picture that is not too large gives the same pixels as its own file: the file itself is stored, or, where that is
    larger than its pixels, a PNG. With `keep="jpeg"` this holds for JPEG files; the others become JPEG files.

    Raises:
      ImageError: it cannot be read as a picture; see `picture_files.load`.
    """
    if not isinstance(source, (str, bytes, Image.Image)):
        source = source.read()
    image = picture_files.load(source)
    width, height = image.size
    small = _capped(width, height, settings.max_pixels)
    if small != image.size:
        return Encoded(_file(image.resize(small, Image.Resampling.BICUBIC), settings), small, image.size)
    own = _own_bytes(source, 3 * width * height + NOTES_BYTES)
    if settings.keep == "all" and own is None:
        own = _lossless(image)
    if settings.keep == "jpeg" and (own is None or not own.startswith(JPEG_SIGNATURE)):
        own = _file(image, settings)
    return Encoded(own, image.size, image.size)


def _own_bytes(source: ImageSource, most: int) -> bytes | None:
    """Returns the picture's own file, None where there is none or it is larger than `most` bytes."""
    if isinstance(source, bytes):
        return source if len(source) <= most else None
    if isinstance(source, str) and os.path.getsize(source) <= most:
        with open(source, "rb") as file:
            return file.read()
    return None


def _capped(width: int, height: int, max_pixels: int) -> tuple[int, int]:
    scale = min(1.0, math.sqrt(max_pixels / (width * height)), MAX_SIDE_PX / max(width, height))
    if scale == 1.0:
        return width, height
    w, h = max(1, math.floor(width * scale)), max(1, math.floor(height * scale))
    return min(w, max(1, max_pixels // h)), min(h, max(1, max_pixels // w))  # a line of pixels cannot get thinner


def _file(image: Image.Image, settings: StoreSettings) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=settings.quality, subsampling=0)
    return out.getvalue()


def _lossless(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=1)
    return out.getvalue()
