"""Picture files that strangers might send: strange ones that show something, damaged ones, and none at all."""

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from hostile_case import HEIGHT, PIXELS, WIDTH, Case, line
from image_kinds import KINDS, file, noise, png
from PIL import Image

MILLION = 10**6


def effect(name: str) -> str:
    effects = {
        "turned": "upright by its EXIF data", "animated": "the first frame", "gray16_key": "8 bits, on white",
        "gray16": "8 bits", "rgb16": "8 bits", "cmyk": "as RGB", "rgba": "on white", "gray_alpha": "on white",
        "palette_": "on white", "colour_key": "on white", "one_pixel": "scaled up", "palette": "as RGB",
        "gray": "as RGB", "bilevel": "as RGB",
    }  # fmt: skip
    return next((said for start, said in effects.items() if name.startswith(start)), "")


def written(name: str, content: Callable[[], bytes]) -> Callable[[Any], bytes]:
    def make(folder: Any) -> bytes:
        (folder / name).write_bytes(content())
        return line(image=name)

    return make


def kinds() -> Iterator[Case]:
    for name, kind in KINDS.items():
        yield Case("Pictures", name, written(name, lambda kind=kind: kind()[0]), note=effect(name), shown=kind()[1])


def encoded(kind: str = "JPEG", size: tuple[int, int] = (HEIGHT, WIDTH), **options: Any) -> bytes:
    return file(Image.fromarray(noise(*size)), kind, **options)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_of(width: int, height: int, data: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def bomb() -> bytes:
    """10 kB that unpack to 9000x9000 pixels."""
    pack = zlib.compressobj(9)
    return png_of(9000, 9000, b"".join(pack.compress(bytes(27001)) for _ in range(9000)) + pack.flush())


def text_bomb() -> bytes:
    note = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(200_000_000), 9))
    whole = png(PIXELS, 8, 2)
    return whole[:33] + note + whole[33:]


def gif_frame_beyond_screen() -> bytes:
    content = bytearray(encoded("GIF"))
    content[6:10] = struct.pack("<HH", 4, 4)  # the screen; the frame has its own size
    return bytes(content)


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a.png", encoded("PNG"))
    return out.getvalue()


def huge_file(folder: Any) -> bytes:
    (folder / "huge.jpg").write_bytes(encoded())
    os.truncate(folder / "huge.jpg", 1 << 30)  # a hole, which takes no place on the disk
    return line(image="huge.jpg")


def pipe(folder: Any) -> bytes:
    os.mkfifo(folder / "pipe.jpg")
    return line(image="pipe.jpg")


def a_folder(folder: Any) -> bytes:
    (folder / "folder.jpg").mkdir()
    return line(image="folder.jpg")


def elsewhere(folder: Any) -> bytes:
    (folder.parent / f"{folder.name}-elsewhere.png").write_bytes(png(PIXELS, 8, 2))
    return line(image=f"../{folder.name}-elsewhere.png")


def exif(content: bytes) -> bytes:
    return file(Image.fromarray(PIXELS), "PNG", exif=content)


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
LOST = "skipped while loading"

DAMAGED: tuple[tuple[str, str, Callable[[], bytes]], ...] = (
    ("an empty file", "empty.jpg", lambda: b""),
    ("a web page named .jpg", "page.jpg", lambda: b"<!DOCTYPE html><html><body>404</body></html>"),
    ("a JPEG cut in the middle", "cut.jpg", lambda: encoded(size=(200, 200))[:3000]),
    ("a JPEG cut in its header", "header.jpg", lambda: encoded()[:20]),
    ("a PNG cut in the middle", "cut.png", lambda: encoded("PNG")[:3000]),
    ("a GIF cut in the middle", "cut.gif", lambda: encoded("GIF")[:1500]),
    ("a WebP cut in the middle", "cut.webp", lambda: encoded("WEBP")[:500]),
    ("a BMP cut in the middle", "cut.bmp", lambda: encoded("BMP")[:3000]),
    ("a PNG with garbage for pixels", "garbage.png", lambda: png_of(50, 50, b"garbage")),
    ("a PNG of 0x0 pixels", "zero.png", lambda: png_of(0, 0, zlib.compress(b""))),
    ("a PNG of 80 kB that unpacks to 9000x9000 pixels", "bomb.png", bomb),
    ("a PNG that claims 60000x60000 pixels", "giant.png", lambda: png_of(60000, 60000, b"garbage")),
    ("a PNG with a note that unpacks to 200 MB", "note.png", text_bomb),
    ("a PostScript file named .jpg", "script.jpg", lambda: EPS),
    ("an SVG file that names another file", "drawing.svg", lambda: SVG),
    ("a TIFF file", "scan.tiff", lambda: encoded("TIFF")),
    ("a ZIP archive named .png", "archive.png", zipped),
    ("random bytes", "random.jpg", lambda: np.random.default_rng(0).bytes(5000)),
    ("the signature of a JPEG and nothing else", "signature.jpg", lambda: b"\xff\xd8\xff"),
)


def jpeg_with_tail() -> Case:
    content = encoded()
    shown = np.asarray(Image.open(io.BytesIO(content)))
    return Case(
        "Pictures", "a JPEG with a web page behind its end", written("tail.jpg", lambda: content + SVG), shown=shown
    )


def strip(height: int, width: int) -> Case:
    """Padded with white to 16:1 by numpy."""
    pixels = noise(height, width)
    least = -(-max(height, width) // 16)
    shown = np.full((max(height, least), max(width, least), 3), 255, np.uint8)
    top, left = (shown.shape[0] - height) // 2, (shown.shape[1] - width) // 2
    shown[top : top + height, left : left + width] = pixels
    name = f"strip{width}x{height}.png"
    make = written(name, lambda: png(pixels, 8, 2))
    return Case(
        "Pictures", f"a picture of {width}x{height} pixels", make, note="in the middle of white, 16:1", shown=shown
    )


def pictures() -> Iterator[Case]:
    yield from kinds()
    yield strip(1, 3000)
    yield strip(3000, 1)
    yield jpeg_with_tail()
    png_file = lambda: png(PIXELS, 8, 2)  # noqa: E731
    yield Case("Pictures", "a PNG named .jpg", written("named.jpg", png_file))
    yield Case("Pictures", "a picture without an ending in its name", written("noname", png_file))
    yield Case("Pictures", "a name with spaces, Chinese and an emoji", written("红 dress \U0001f457.png", png_file))
    yield Case("Pictures", "a path that leaves the folder (../)", elsewhere, note="the file is read, as a picture only")
    beyond = np.asarray(Image.open(io.BytesIO(gif_frame_beyond_screen())).convert("RGB"))
    assert beyond.shape == (HEIGHT, WIDTH, 3)
    what = "a GIF whose frame is larger than its screen"
    yield Case("Pictures", what, written("beyond.gif", gif_frame_beyond_screen), shown=beyond, note="the whole frame")
    for what, content in {
        "EXIF data that are none": b"Exif\0\0these are no notes",
        "EXIF data that end early": b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01",
        "EXIF data that point beyond the file": b"Exif\0\0II*\0\xff\xff\xff\x7f",
        "an EXIF orientation that is a text": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x01\0\0\0a\0\0\0\0\0\0\0",
        "an EXIF orientation of 9": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x09\0\0\0\0\0\0\0",
    }.items():
        yield Case("Pictures", what, written("exif.png", lambda content=content: exif(content)), note="as it is stored")
    for what, name, content in DAMAGED:
        yield Case("Pictures", what, written(name, content), LOST)
    yield Case("Pictures", "a picture with a GB of nothing behind it", huge_file, LOST)
    yield Case("Pictures", "a pipe, which nobody writes to", pipe, LOST)
    yield Case("Pictures", "a folder named .jpg", a_folder, LOST)
    yield Case("Pictures", "/dev/zero", lambda _: line(image="/dev/zero"), LOST)
    yield Case("Pictures", "no such file", lambda _: line(image="nothing.jpg"), LOST)
    yield Case("Pictures", "a URL", lambda _: line(image="https://shop.example/a.jpg"), LOST)
    yield Case("Pictures", "a file: URL", lambda _: line(image="file:///etc/passwd"), LOST)
    yield Case("Pictures", "a path with NUL in it", lambda _: line(image="a\0b.jpg"), LOST)
    yield Case("Pictures", "a path of a million characters", lambda _: line(image="a" * MILLION), LOST)
    yield Case("Pictures", "a path with terminal commands in it", lambda _: line(image="\x1b[2J\n\u202ea.jpg"), LOST)
