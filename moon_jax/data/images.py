"""Picture files of strangers in, patches of Qwen2.5-VL out; Pillow and numpy only."""

import concurrent.futures
import contextlib
import dataclasses
import io
import math
import threading
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float32
from PIL import ExifTags, Image, ImageEnhance
from tqdm import tqdm

from moon_jax.config import DataConfig, Role, VisionConfig
from moon_jax.data.documents import Document
from moon_jax.data.grids import smart_resize
from moon_jax.data.records import Box, DataError, Dataset, ImageRef, ImageSource

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # Pillow would also run ghostscript on what calls itself EPS
MAX_SOURCE_PIXELS = 50_000_000  # read from the header: a file of 10 kB can unpack to gigabytes
_COPYING = threading.Lock()
_ORIENTATION_IN = {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif", "Raw profile type APP1"}  # Image.info
# What makes a picture upright, by the orientation that its EXIF data name.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = tuple(TURNS[number] for number in (5, 6, 7, 8))
BLOCK_LINES = 4  # lines of merge blocks that are turned into patches at a time
MIN_CROP_PX = 2  # a box that covers less than this in the picture is no picture of a product

# CLIP's statistics of the channels, as all Qwen2.5-VL processors have them.
MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])
SCALE, SHIFT = (1 / (255 * STD)).astype(np.float32), (-MEAN / STD).astype(np.float32)


class ImageError(DataError):
    """A picture that cannot be used; the message names the file."""


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture as the vision tower reads it."""

    patches: Float32[np.ndarray, "n patch_dim"]  # (channels, patch, patch) each, block-major (positions.block_major)
    grid: tuple[int, int]  # patches (high, wide)
    role: Role  # IMAGE, or CORE for the crop of the product


def load(path: ImageSource) -> Image.Image:
    """Returns the picture upright, as RGB: the first frame, alpha composited on white, 16-bit gray scaled to 8.

    Args:
      path: of a file, or the bytes of one, or a Pillow image, which is copied and not changed.

    Raises:
      ImageError: no such file, not one of the formats, broken, or too many pixels (found before they are decoded).
    """
    with _open(path) as image:
        if image is path:
            with _COPYING:  # it may be a file that is not read yet, and stand in several documents
                image = image.copy()
        image.load()
        turn = _turn(image)
        return _to_rgb(image if turn is None else image.transpose(turn))


@contextlib.contextmanager
def _open(path: ImageSource) -> Iterator[Image.Image]:
    """Gives the picture with its header read and checked; whatever goes wrong inside becomes an ImageError."""
    name = path if isinstance(path, str) else f"a picture in memory ({type(path).__name__})"
    try:
        with contextlib.ExitStack() as stack:
            if isinstance(path, Image.Image):
                image = path
            else:
                file = path if isinstance(path, str) else io.BytesIO(path)
                image = stack.enter_context(Image.open(file, formats=FORMATS))
            width, height = image.size
            if width * height > MAX_SOURCE_PIXELS:
                raise ImageError(f"{name}: {width}x{height} px is more than the limit of {MAX_SOURCE_PIXELS:,} px")
            yield image
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"{name}: no such picture") from error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        kinds = ", ".join(FORMATS)
        raise ImageError(f"{name}: cannot be read as a picture ({kinds}): {error}") from error


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Returns what makes a picture upright, None where it is or does not say."""
    try:
        return TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # damaged notes about a picture do not damage it
        return None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit gray: convert() would clip it at 255
        deep = np.asarray(image).astype(np.int64)
        clear = deep == image.info.get("transparency", -1)
        return Image.fromarray(np.where(clear, 255, deep.clip(0, 65535) // 256).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def crop(image: Image.Image, box: Box, margin: float) -> Image.Image | None:
    """Returns the part of an upright picture inside the box, or None where the box holds nothing of it.

    Args:
      image: any mode.
      box: x1, y1, x2, y2 in its pixels; what lies outside is cut off.
      margin: share of the box's width and height that is added on every side.
    """
    area = _crop_area(image.size, box, margin)
    return None if area is None else image.crop(area)


def _crop_area(size: tuple[int, int], box: Box, margin: float) -> tuple[int, int, int, int] | None:
    x1, y1, x2, y2 = _clamp(box, *size)
    if x2 - x1 < MIN_CROP_PX or y2 - y1 < MIN_CROP_PX:
        return None
    x1, y1, x2, y2 = box
    dx, dy = margin * (x2 - x1), margin * (y2 - y1)
    return (
        max(0, math.floor(x1 - dx)),
        max(0, math.floor(y1 - dy)),
        min(size[0], math.ceil(x2 + dx)),
        min(size[1], math.ceil(y2 + dy)),
    )


def pad_to_aspect(image: Image.Image, max_aspect: float) -> Image.Image:
    """Returns the picture, a longer strip than `max_aspect` in the middle of a white one of that ratio."""
    width, height = _padded_size(image.size, max_aspect)
    if (width, height) == image.size:
        return image
    canvas = Image.new("RGB", (width, height), (255, 255, 255))
    canvas.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    return canvas


def _padded_size(size: tuple[int, int], max_aspect: float) -> tuple[int, int]:
    short = math.ceil(max(size) / max_aspect)
    return max(size[0], short), max(size[1], short)


def patchify(
    image: Image.Image, vision: VisionConfig, min_pixels: int, max_pixels: int, role: Role = Role.IMAGE
) -> Picture:
    """Returns the patches of an RGB picture, equal to those of transformers' Qwen2VLImageProcessor to 1e-6.

    One frame only: transformers repeats a still picture `temporal_patch_size` times; the model adds its kernel's frames
    up instead. Bytes are put into order before they become floats, four times as large, and a few lines of blocks at a
    time, so that they stay in the cache and little new memory is touched (`benchmarks/images.py`).

    Raises:
      ValueError: the longer side is more than 200 times the shorter one.
    """
    p, m = vision.patch_size, vision.spatial_merge_size
    height, width = smart_resize(image.height, image.width, p * m, min_pixels, max_pixels)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    gh, gw = height // p, width // p
    lines = np.asarray(image).reshape(gh // m, m, p, gw // m, m, 3 * p).view(f"V{3 * p}")[..., 0]  # one item each
    lines = lines.transpose(0, 3, 1, 4, 2)
    scale, shift = np.repeat(SCALE, p * p), np.repeat(SHIFT, p * p)
    patches = np.empty((gh // m, gw * m, 3 * p * p), np.float32)
    for top in range(0, gh // m, BLOCK_LINES):
        part = patches[top : top + BLOCK_LINES]
        pixels = lines[top : top + BLOCK_LINES].copy().view(np.uint8).reshape(*part.shape[:2], p * p, 3)
        part[...] = pixels.swapaxes(2, 3).reshape(part.shape)
        part *= scale
        part += shift
    return Picture(patches.reshape(gh * gw, 3 * p * p), (gh, gw), role)


def augment(
    image: Image.Image, box: Box | None, key: Sequence[int], least: float = 0.6
) -> tuple[Image.Image, Box | None]:
    """Returns a random view of an RGB picture and the box in it: part of it, perhaps mirrored, in other light.

    The part has `least` to all of the area and up to 4/3 of the aspect, and is made larger where it would not hold the
    whole box. Brightness, contrast and saturation change by up to 20%; the hue stays: colour tells products apart.

    Args:
      image: upright.
      box: of the product, or None.
      key: non-negative numbers that decide everything: the same key gives the same view.
      least: share of the area that stays at least.
    """
    rng = np.random.default_rng(key)
    width, height = image.size
    x1, y1, x2, y2 = _clamp(box, width, height) if box is not None else (0.0, 0.0, 0.0, 0.0)
    area, aspect = rng.uniform(least, 1.0), math.exp(rng.uniform(-1, 1) * math.log(4 / 3))
    w = min(width, max(math.ceil(x2) - math.floor(x1), MIN_CROP_PX, round(width * math.sqrt(area * aspect))))
    h = min(height, max(math.ceil(y2) - math.floor(y1), MIN_CROP_PX, round(height * math.sqrt(area / aspect))))
    low, high = (0, 0), (width - w, height - h)
    if box is not None:
        low = max(0, math.ceil(x2) - w), max(0, math.ceil(y2) - h)
        high = min(high[0], math.floor(x1)), min(high[1], math.floor(y1))
    left, top = (int(rng.integers(a, max(a, b) + 1)) for a, b in zip(low, high, strict=True))
    image = image.crop((left, top, left + w, top + h))
    x1, y1, x2, y2 = x1 - left, y1 - top, x2 - left, y2 - top
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        x1, x2 = w - x2, w - x1
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(rng.uniform(0.8, 1.2))
    return image, None if box is None else (x1, y1, x2, y2)


def _clamp(box: Box, width: int, height: int) -> Box:
    """Returns the part of a box inside the picture; of no width or height where there is none or the box is none."""
    if not all(map(math.isfinite, box)):
        return 0.0, 0.0, 0.0, 0.0
    x1, y1 = min(max(box[0], 0.0), float(width)), min(max(box[1], 0.0), float(height))
    return x1, y1, max(x1, min(box[2], float(width))), max(y1, min(box[3], float(height)))


def pictures(
    document: Document, data: DataConfig, vision: VisionConfig, augment_key: Sequence[int] | None = None
) -> list[Picture]:
    """Returns the pictures of a document in order, each followed by the crop of its box where that is usable.

    Args:
      document: its `images`.
      data: `crop`, `crop_margin` and the pixel budget.
      vision: sizes of patches.
      augment_key: see `augment`; None leaves the pictures as they are.

    Raises:
      ImageError: names the picture that cannot be read.
    """
    out = []
    for number, ref in enumerate(document.images):
        image, box = load(ref.path), ref.box
        if augment_key is not None:
            image, box = augment(image, box, (*augment_key, number), data.augment_area)
        views = [(image, Role.IMAGE)]
        if data.crop and box is not None and (core := crop(image, box, data.crop_margin)) is not None:
            views.append((core, Role.CORE))
        for view, role in views:
            view = pad_to_aspect(view, data.max_aspect)
            out.append(patchify(view, vision, data.min_pixels, data.max_pixels, role))
    return out


def grids(document: Document, data: DataConfig, vision: VisionConfig) -> list[tuple[tuple[int, int], Role]]:
    """Returns the (grid, role) of every picture that `pictures` makes, from the headers of the files alone.

    Raises:
      ImageError: names the picture whose header cannot be read.
    """
    out = []
    for ref in document.images:
        size = _upright_size(ref.path)
        views = [(size, Role.IMAGE)]
        if data.crop and ref.box is not None and (area := _crop_area(size, ref.box, data.crop_margin)) is not None:
            views.append(((area[2] - area[0], area[3] - area[1]), Role.CORE))
        for view, role in views:
            width, height = _padded_size(view, data.max_aspect)
            factor = vision.patch_size * vision.spatial_merge_size
            h, w = smart_resize(height, width, factor, data.min_pixels, data.max_pixels)
            out.append(((h // vision.patch_size, w // vision.patch_size), role))
    return out


def _upright_size(path: ImageSource) -> tuple[int, int]:
    """Returns (width, height) as `load` would give them; orientation that stands behind the pixels is not seen."""
    with _open(path) as image:
        width, height = image.size
        noted = _ORIENTATION_IN & image.info.keys()  # without one, Pillow would decode a PNG to look behind its pixels
        turned = noted and _turn(image) in SIDEWAYS
        return (height, width) if turned else (width, height)


def count(image: ImageRef, data: DataConfig) -> int:
    """Returns how many pictures `pictures` makes of a reference at most: one, or two with a box."""
    return 1 + (data.crop and image.box is not None)


def blank(data: DataConfig, vision: VisionConfig) -> Picture:
    """Returns the smallest white picture: what stands for a document of which nothing else is left."""
    side = vision.patch_size * vision.spatial_merge_size
    return patchify(Image.new("RGB", (side, side), (255, 255, 255)), vision, data.min_pixels, data.max_pixels)


def check(dataset: Dataset, data: DataConfig) -> None:
    """Reads the header of every picture of a data set, so that a missing one is known before training starts.

    With `on_error="skip"` broken ones are left to be skipped where they occur; a file that is cut short behind a whole
    header is found only when it is decoded. `data.check_pictures` turns this off where it would take too long.

    Raises:
      ImageError: names the first broken pictures; or, with "skip", more than `max_skipped_share` of all are broken.
    """
    if not data.check_pictures:
        return
    triplets = (*dataset.train, *dataset.seen, *dataset.unseen)
    paths = {image.path for product in dataset.products.values() for image in product.images}
    paths |= {t.query.image.path for t in triplets if t.query.image is not None}
    with concurrent.futures.ThreadPoolExecutor() as pool:
        found = tqdm(
            pool.map(_broken, sorted(paths)),
            total=len(paths),
            desc="checking pictures",
            unit="file",
            disable=len(paths) < 20_000,
        )
        broken = [message for message in found if message]
    allowed = data.max_skipped_share * len(paths) if data.on_error == "skip" else 0
    if len(broken) > allowed:
        shown = "".join(f"\n  - {message}" for message in broken[:10])
        raise ImageError(
            f"{len(broken)} of {len(paths)} pictures cannot be used (config.data.on_error = {data.on_error!r}, "
            f"max_skipped_share = {data.max_skipped_share:g}), the first of them:{shown}"
        )


def _broken(path: str) -> str | None:
    """Returns what is wrong with a picture as far as its header tells, or None."""
    try:
        with _open(path):
            return None
    except ImageError as error:
        return str(error)
