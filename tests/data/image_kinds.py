"""Kinds of picture files, each written from known pixels, with the upright RGB picture that it shows by formula."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

WHITE = 255


def noise(height, width, channels=3, seed=0):
    """A smooth picture with some noise: resizing errors would show in both."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [127 + 90 * np.sin(x / (7 + 3 * c) + y / (11 - c)) for c in range(channels)]
    out = np.clip(np.stack(waves, -1) + rng.normal(0, 20, (height, width, channels)), 0, 255).astype(np.uint8)
    return out[..., 0] if channels == 1 else out


def file(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def decoded(content, mode):
    """The pixels that Pillow's decoder gives, as they are stored."""
    image = Image.open(io.BytesIO(content))
    assert image.mode == mode
    return np.asarray(image)


def gray_to_rgb(gray):
    return np.repeat(gray[..., None], 3, axis=-1).astype(np.uint8)


def on_white(rgb, alpha):
    """Straight alpha over white, rounded to the nearest level."""
    alpha = alpha[..., None].astype(float) / 255
    return np.floor(rgb * alpha + WHITE * (1 - alpha) + 0.5).astype(np.uint8)


def alpha_channel(height=90, width=70):
    """All 256 levels, and a corner that is clear and one that is opaque."""
    alpha = np.resize(np.arange(256, dtype=np.uint8), (height, width)).copy()
    alpha[:20, :20], alpha[-20:, -20:] = 0, 255
    return alpha


def rgba(kind, **options):
    rgb, alpha = noise(90, 70), alpha_channel()
    return file(Image.fromarray(np.dstack([rgb, alpha])), kind, **options), on_white(rgb, alpha)


def gray_alpha():
    gray, alpha = noise(90, 70, 1), alpha_channel()
    return file(Image.fromarray(np.dstack([gray, alpha]), "LA"), "PNG"), on_white(gray_to_rgb(gray), alpha)


def palette(kind="PNG", transparency=None):
    """A palette of 32 colours; `transparency` is one clear entry, or the alpha of the first entries."""
    rng = np.random.default_rng(4)
    colours = rng.integers(0, 256, (32, 3), dtype=np.uint8)
    numbers = (noise(90, 70, 1) // 8).astype(np.uint8)
    image = Image.fromarray(numbers, "P")
    image.putpalette(colours.ravel().tolist())
    alpha = np.full(32, 255, np.uint8)
    if isinstance(transparency, bytes):
        alpha[: len(transparency)] = list(transparency)
    elif transparency is not None:
        alpha[transparency] = 0
    options = {} if transparency is None else {"transparency": transparency}
    return file(image, kind, **options), on_white(colours[numbers], alpha[numbers])


def png(pixels, depth, colour, *chunks):
    """A PNG of 8 or 16 bits written by hand: Pillow cannot write every kind that it reads."""
    height, width = pixels.shape[:2]
    data = pixels.astype(">u2" if depth == 16 else np.uint8)
    lines = b"".join(b"\0" + line.tobytes() for line in data)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in parts
    )


def deep_gray(clear=None):
    """16-bit gray over the whole range, perhaps with one level that is transparent."""
    deep = np.random.default_rng(5).permutation(np.linspace(0, 65535, 90 * 70).astype(np.uint16)).reshape(90, 70)
    if clear is None:
        return png(deep, 16, 0), gray_to_rgb(deep >> 8)
    deep[10:30, 10:30] = clear
    shown = np.where(deep == clear, WHITE, deep >> 8)
    return png(deep, 16, 0, (b"tRNS", struct.pack(">H", clear))), gray_to_rgb(shown)


def deep_rgb():
    deep = np.random.default_rng(6).integers(0, 65536, (90, 70, 3))
    return png(deep, 16, 2), (deep >> 8).astype(np.uint8)


def colour_key():
    """RGB with one colour that is transparent."""
    rgb = noise(90, 70)
    rgb[10:30, 10:30] = (10, 200, 30)
    shown = rgb.copy()
    shown[10:30, 10:30] = WHITE
    return png(rgb, 8, 2, (b"tRNS", struct.pack(">HHH", 10, 200, 30))), shown


def bilevel():
    bits = noise(90, 70, 1) > 127
    return file(Image.fromarray(bits), "PNG"), gray_to_rgb(bits * 255)


def gray_jpeg():
    content = file(Image.fromarray(noise(90, 70, 1)), "JPEG")
    return content, gray_to_rgb(decoded(content, "L"))


def cmyk_jpeg():
    content = file(Image.fromarray(noise(90, 70, 4), "CMYK"), "JPEG")
    inks = decoded(content, "CMYK").astype(float)
    return content, np.floor((255 - inks[..., :3]) * (255 - inks[..., 3:]) / 255 + 0.5).clip(0, 255).astype(np.uint8)


def progressive_jpeg():
    """The coefficients of a progressive file are those of the plain one: it shows the same."""
    image = Image.fromarray(noise(90, 70))
    return file(image, "JPEG", progressive=True), decoded(file(image, "JPEG", progressive=False), "RGB")


def rgb(height, width, kind="PNG"):
    pixels = noise(height, width)
    return file(Image.fromarray(pixels), kind), pixels


def animated(kind, **options):
    frames = [Image.fromarray(noise(90, 70, seed=seed)) for seed in range(3)]
    if kind == "GIF":  # at most 256 colours: what the first frame shows is its quantised self
        frames = [frame.quantize(64) for frame in frames]
    content = file(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, **options)
    return content, np.asarray(frames[0].convert("RGB"))


UPRIGHT = {  # what turns stored pixels into the picture, by EXIF orientation
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


def turned(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = file(Image.fromarray(noise(40, 60)), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    return content, UPRIGHT[orientation](decoded(content, "RGB"))


KINDS: dict[str, Callable[[], tuple[bytes, np.ndarray]]] = {
    "rgba.png": lambda: rgba("PNG"),
    "rgba.webp": lambda: rgba("WEBP", lossless=True, exact=True),
    "gray_alpha.png": gray_alpha,
    "palette.png": palette,
    "palette.gif": lambda: palette("GIF"),
    "palette_one_clear.png": lambda: palette("PNG", 3),
    "palette_one_clear.gif": lambda: palette("GIF", 3),
    "palette_alpha.png": lambda: palette("PNG", bytes(range(0, 256, 16))),
    "colour_key.png": colour_key,
    "gray.png": lambda: (file(Image.fromarray(noise(90, 70, 1)), "PNG"), gray_to_rgb(noise(90, 70, 1))),
    "gray.jpg": gray_jpeg,
    "gray16.png": deep_gray,
    "gray16_key.png": lambda: deep_gray(40000),
    "rgb16.png": deep_rgb,
    "bilevel.png": bilevel,
    "cmyk.jpg": cmyk_jpeg,
    "progressive.jpg": progressive_jpeg,
    "rgb.bmp": lambda: rgb(90, 70, "BMP"),
    "9x13.png": lambda: rgb(13, 9),
    "300x21.png": lambda: rgb(21, 300),
    "one_pixel.png": lambda: rgb(1, 1),
    "odd_997x31.png": lambda: rgb(31, 997),
    "odd_211x307.png": lambda: rgb(307, 211),
    "animated.gif": lambda: animated("GIF"),
    "animated.webp": lambda: animated("WEBP", lossless=True),
    **{f"turned_{number}.jpg": lambda number=number: turned(number, "JPEG") for number in UPRIGHT},
    **{f"turned_{number}.png": lambda number=number: turned(number, "PNG") for number in (1, 3, 6)},
    **{f"turned_{number}.webp": lambda number=number: turned(number, "WEBP") for number in (5, 8)},
}
