"""Picture files of strangers in, upright RGB pictures out, under the limits of `policy`."""

import contextlib
import io
import os
import stat
import threading
from collections.abc import Iterator

import numpy as np
from PIL import ExifTags, Image

from moon_jax.data import policy
from moon_jax.data.records import DataError, ImageSource, StoredImage
from moon_jax.data.store import PackedImage

_COPYING = threading.Lock()
_ORIENTATION_IN = {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif", "Raw profile type APP1"}  # Image.info
_PNG = b"\x89PNG\r\n\x1a\n"
_KEYWORD_BYTES = 80  # of a text in a PNG, with what ends it
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


class ImageError(DataError):
    """A picture that cannot be used; the message names the file."""

    reason = "no readable picture"


class MissingImageError(ImageError):
    """There is no such file."""

    reason = "no such picture"


class LargeImageError(ImageError):
    """More pixels or bytes than are decoded."""

    reason = "picture too large"


def name_of(path: ImageSource) -> str:
    """Returns what messages call a picture."""
    in_memory = isinstance(path, (bytes, Image.Image))
    return f"a picture in memory ({type(path).__name__})" if in_memory else policy.shown(path)


def load(path: ImageSource) -> Image.Image:
    """Returns the picture upright, as RGB: the first frame, alpha composited on white, 16-bit gray scaled to 8.

    Args:
      path: of a file, a place in a larger one, the bytes of one, or a Pillow image, which is copied and not changed.

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


def upright_size(path: ImageSource) -> tuple[int, int]:
    """Returns (width, height) as `load` would give them.

    Raises:
      ImageError: see `load`, as far as the header of the file tells.
    """
    if isinstance(path, PackedImage):
        return path.size
    with _open(path) as image:
        width, height = image.size
        # Without a note, Pillow would decode every PNG to look behind its pixels.
        noted = _ORIENTATION_IN & image.info.keys() or _noted_behind(image)
        turned = noted and _turn(image) in SIDEWAYS
        return (height, width) if turned else (width, height)


@contextlib.contextmanager
def _open(path: ImageSource) -> Iterator[Image.Image]:
    """Gives the picture with its header read and checked; whatever goes wrong inside becomes an ImageError."""
    name = name_of(path)
    try:
        with contextlib.ExitStack() as stack:
            image = path if isinstance(path, Image.Image) else stack.enter_context(_file(path, name))
            width, height = image.size
            if width * height > policy.MAX_SOURCE_PIXELS:
                limit = f"more than the limit of {policy.MAX_SOURCE_PIXELS:,} px"
                raise LargeImageError(f"{name}: {width}x{height} px is {limit}")
            yield image
    except ImageError:
        raise
    except FileNotFoundError as error:
        hint = " (`python -m moon_jax.download` fetches URLs into an image store)" if "://" in name else ""
        raise MissingImageError(f"{name}: no such picture{hint}") from error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        kinds = ", ".join(policy.FORMATS)
        raise ImageError(f"{name}: cannot be read as a picture ({kinds}): {policy.shown(error)}") from error


def _file(path: str | bytes | StoredImage, name: str) -> Image.Image:
    content = path.read() if isinstance(path, StoredImage) else path
    if isinstance(content, str):
        found = os.stat(content)
        if not stat.S_ISREG(found.st_mode):  # opening a pipe would wait for ever
            raise ValueError("it is a folder, a pipe or a device")
        size = found.st_size
    else:
        size = len(content)
    if size > policy.MAX_FILE_BYTES:
        raise LargeImageError(f"{name}: {size:,} bytes is more than the limit of {policy.MAX_FILE_BYTES:,} bytes")
    return Image.open(content if isinstance(content, str) else io.BytesIO(content), formats=policy.FORMATS)


def _noted_behind(image: Image.Image) -> bool:
    """Returns whether a PNG that is not decoded yet has a note of its orientation behind its pixels."""
    file = getattr(image, "fp", None)
    if image.format != "PNG" or file is None:
        return False
    with _COPYING:  # another thread may decode the same picture
        start = file.tell()
        try:
            file.seek(len(_PNG))
            while len(head := file.read(8)) == 8 and head[4:] != b"IEND":
                size, kind = int.from_bytes(head[:4]), head[4:]
                begin = file.read(min(size, _KEYWORD_BYTES)) if kind in (b"tEXt", b"zTXt", b"iTXt") else b""
                if kind == b"eXIf" or begin.partition(b"\0")[0].decode("latin-1") in _ORIENTATION_IN:
                    return True
                file.seek(size - len(begin) + 4, 1)  # the checksum too
            return False
        finally:
            file.seek(start)


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
