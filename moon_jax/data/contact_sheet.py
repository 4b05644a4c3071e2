"""One picture of many: thumbnails with their boxes and captions, and histograms as bars; Pillow alone."""

import dataclasses
import functools
import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from moon_jax.data import picture_files
from moon_jax.data.histogram import Histogram
from moon_jax.data.records import Box, ImageRef

THUMB_PX, GAP_PX, TEXT_PX, CAPTION_LINES = 180, 10, 13, 3
BOX_COLOR, KNOWN_COLOR, BAR_COLOR, INK, PAPER, FAINT = (
    (220, 30, 30),
    (30, 160, 60),
    (60, 110, 180),
    (30, 30, 30),
    (255, 255, 255),
    (150, 150, 150),
)
ELLIPSIS = "\u2026"
# The first that is installed, by the file names of usual packages: Pillow knows where systems keep fonts.
CHINESE_FONTS = ("NotoSansCJK-Regular.ttc", "wqy-microhei.ttc", "wqy-zenhei.ttc", "msyh.ttc", "PingFang.ttc")
OTHER_FONTS = ("DejaVuSans.ttf",)


@dataclasses.dataclass(frozen=True)
class Cell:
    """A place on the sheet; `image` None leaves the text alone."""

    image: ImageRef | None
    heading: str  # one line: what it is
    caption: str
    known_box: Box | None = None  # drawn in green, beside the picture's own in red


def contact_sheet(cells: Sequence[Cell], columns: int) -> Image.Image:
    """Returns a sheet of the cells, row by row: the picture with its box in red, the heading, up to 3 lines of caption.

    A picture that cannot be read is a cross with the reason in place of the caption.
    """
    line = TEXT_PX + 4
    width, height = THUMB_PX + GAP_PX, THUMB_PX + (1 + CAPTION_LINES) * line + GAP_PX
    rows = math.ceil(len(cells) / columns)
    sheet = Image.new("RGB", (columns * width + GAP_PX, rows * height + GAP_PX), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, cell in enumerate(cells):
        x, y = GAP_PX + number % columns * width, GAP_PX + number // columns * height
        caption = cell.caption
        if cell.image is not None:
            try:
                thumb = _thumbnail(cell.image, cell.known_box)
                sheet.paste(thumb, (x + (THUMB_PX - thumb.width) // 2, y + (THUMB_PX - thumb.height) // 2))
            except picture_files.ImageError as error:
                draw.line((x, y, x + THUMB_PX, y + THUMB_PX), BOX_COLOR, 2)
                draw.line((x, y + THUMB_PX, x + THUMB_PX, y), BOX_COLOR, 2)
                caption = str(error)
        else:
            draw.rectangle((x, y, x + THUMB_PX, y + THUMB_PX), outline=FAINT)
            draw.text((x + 6, y + THUMB_PX // 2), "no picture", FAINT, font())
        y += THUMB_PX + 2
        draw.text((x, y), _fit(cell.heading, 1)[0], BAR_COLOR, font())
        for text in _fit(caption, CAPTION_LINES):
            y += line
            draw.text((x, y), text, INK, font())
    return sheet


def chart(histograms: Sequence[Histogram], columns: int = 2) -> Image.Image:
    """Returns the histograms as bars, side by side."""
    width, height, label = 460, 300, 46
    rows = math.ceil(len(histograms) / columns)
    sheet = Image.new("RGB", (columns * width, rows * height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, found in enumerate(histograms):
        left, top = number % columns * width + GAP_PX, number // columns * height + GAP_PX
        draw.text((left, top), found.name, INK, font())
        note = f"n = {sum(found.counts):,}   median {found.median:g}   largest {found.largest:,}"
        draw.text((left, top + TEXT_PX + 4), note, FAINT, font())
        base, tall = top + height - label - GAP_PX, height - label - 4 * TEXT_PX
        step = (width - 2 * GAP_PX) / len(found.counts)
        for place, (text, count) in enumerate(zip(found.labels(), found.counts, strict=True)):
            x = left + place * step
            draw.rectangle((x, base - tall * count / max(found.counts), x + step - 2, base), BAR_COLOR)
            text = text.partition("-")[0] if len(found.counts) > 6 else text
            if len(found.counts) <= 8 or place % 2 == 0 or text.endswith("+"):
                draw.text((x, base + 4), text, INK, font())
        draw.line((left, base, left + width - 2 * GAP_PX, base), FAINT)
    return sheet


@functools.cache
def font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Returns the font of captions: one with Chinese if there is any."""
    return _installed(CHINESE_FONTS) or _installed(OTHER_FONTS) or ImageFont.load_default(TEXT_PX)


@functools.cache
def lacks_chinese() -> bool:
    """Returns whether Chinese captions come out as empty boxes, for want of a font."""
    return _installed(CHINESE_FONTS) is None


def _installed(names: Sequence[str]) -> ImageFont.FreeTypeFont | None:
    for name in names:
        try:
            return ImageFont.truetype(name, TEXT_PX)
        except OSError:
            continue
    return None


def _thumbnail(ref: ImageRef, known_box: Box | None) -> Image.Image:
    image = picture_files.load(ref.path)
    scale = THUMB_PX / max(image.size)
    size = tuple(max(1, round(side * scale)) for side in image.size)
    image = image.resize(size, Image.Resampling.BICUBIC)
    for box, color in ((known_box, KNOWN_COLOR), (ref.box, BOX_COLOR)):
        if box is not None:
            ImageDraw.Draw(image).rectangle(tuple(side * scale for side in box), outline=color, width=2)
    return image


def _fit(text: str, lines: int) -> list[str]:
    """Returns the text as at most `lines` lines of a thumbnail's width, broken at spaces where there are any."""
    text = "".join(c if c.isprintable() else " " for c in text[: 200 * lines])
    out: list[str] = []
    while text and len(out) < lines:
        end = len(text)
        while end > 1 and font().getlength(text[:end]) > THUMB_PX:
            end -= 1
        space = text.rfind(" ", 1, end) if end < len(text) else -1
        if len(out) == lines - 1 and end < len(text):
            while end > 1 and font().getlength(text[:end] + ELLIPSIS) > THUMB_PX:
                end -= 1
            out.append(text[:end] + ELLIPSIS)
            break
        cut = space if space > 0 else end
        out.append(text[:cut])
        text = text[cut:].lstrip()
    return out or [""]
