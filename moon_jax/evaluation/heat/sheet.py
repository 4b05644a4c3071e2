"""Heat maps drawn: pictures under their attention, texts with coloured tokens, shares as bars; Pillow and numpy."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont

from moon_jax.config import DataConfig
from moon_jax.data import contact_sheet
from moon_jax.data.documents import Document
from moon_jax.data.picture_files import load
from moon_jax.data.views import crop, pad_to_aspect
from moon_jax.evaluation.heat.folder import CONDITIONS, WITH

WIDTH, MARGIN, GAP, LABEL, HEADING = 1320, 40, 20, 150, 28  # px
TILE, SMALL_TILE = (400, 400), (190, 190)
CELL = 24  # px: from this size on the cells of a grid are told apart by lines
BEYOND = 0.02  # share of even attention that may be beyond the scale
LEAST_TOP = 2.0  # of the relative scale: attention that is almost even stays pale
INK, FAINT, PAPER, LINE = (34, 38, 46), (120, 126, 136), (255, 255, 255), (226, 229, 233)
# From almost white over yellow and orange to dark red: the redder, the more attention (as in the paper's Fig. 9).
STOPS = ((255, 252, 214), (254, 217, 118), (253, 141, 60), (227, 26, 28), (128, 0, 38))
ROLE_COLORS = {
    "image": (52, 96, 148), "core": (118, 167, 209), "title": (217, 122, 44), "category": (240, 178, 88),
    "attribute": (178, 160, 96), "other": (206, 210, 216),
}  # fmt: skip
ROLE_NAMES = {
    "image": "picture", "core": "crop", "title": "title", "category": "category", "attribute": "attributes",
    "other": "prompt",
}  # fmt: skip
HEADINGS = {"without_text": "without text", "with_text": "with text"}


def views(document: Document, data: DataConfig) -> list[Image.Image]:
    """Returns the pictures of a document as they are before they are resized for the model, each before its crop."""
    out = []
    for ref in document.images:
        image = load(ref.path)
        core = crop(image, ref.box, data.crop_margin) if data.crop and ref.box is not None else None
        out += [pad_to_aspect(view, data.max_aspect) for view in (image, core) if view is not None]
    return out


def overlay(image: Image.Image, values: Float[np.ndarray, "h w"], top: float, size: tuple[int, int]) -> Image.Image:
    """Returns the picture under its attention: grey where there is little, then yellow to dark red.

    The colours run smoothly from cell to cell; thin lines show how large the cells are.

    Args:
        image: RGB.
        values: of the cells of a grid over the whole picture; at least 0.
        top: the value that has the darkest red.
        size: of the result, px.
    """
    cells = Image.fromarray(np.clip(values / top, 0, 1).astype(np.float32))
    heat = np.clip(np.asarray(cells.resize(size, Image.Resampling.BICUBIC)), 0, 1)
    shown = np.asarray(image.resize(size, Image.Resampling.LANCZOS), np.float32)
    grey = shown.mean(-1, keepdims=True)
    shown = 255 - (255 - (0.35 * shown + 0.65 * grey)) * 0.8  # pale, so that the colours stand out
    opacity = 0.85 * heat[..., None]
    shown = (1 - opacity) * shown + opacity * colors(heat)
    for axis, (count, length) in enumerate(zip(values.shape, shown.shape, strict=False)):
        lines = np.round(np.arange(1, count) * length / count).astype(int) if length >= CELL * count else []
        np.moveaxis(shown, axis, 0)[lines] = 0.6 * np.moveaxis(shown, axis, 0)[lines] + 0.4 * 255
    return Image.fromarray(np.round(shown).astype(np.uint8))


def colors(values: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n 3"]:
    """Returns the colour of values from 0 to 1, as RGB from 0 to 255."""
    places = np.linspace(0, 1, len(STOPS))
    return np.stack([np.interp(values, places, [stop[i] for stop in STOPS]) for i in range(3)], axis=-1)


def sheet(record: Mapping[str, Any], shown: Sequence[Image.Image], scale: str, heading: str) -> Image.Image:
    """Returns one picture of a record: its pictures without and with text, the coloured text, shares by role.

    All pictures have one scale of colours, and the texts one of their own: a token of text has often far more attention
    than a cell of a picture.

    Args:
        record: "id", and for each condition in `CONDITIONS` that it has: its `heat_values`.
        shown: the pictures (`views`).
        scale: "relative" or "share".
        heading: under the id: what is averaged.
    """
    there = [name for name in CONDITIONS if name in record]
    parts = [_title(str(record["id"]), heading)]
    if shown:
        top = top_of([picture for name in there for picture in record[name]["pictures"]], scale)
        parts += [_picture_rows(record, there, shown, scale, top), _legend(top, scale, "cells of the pictures")]
    if WITH in there and record[WITH]["text"]:
        pieces = record[WITH]["text"]
        top = top_of(pieces, scale)
        parts += [_text(pieces, scale, top), _legend(top, scale, "tokens of the text")]
    parts.append(_shares({HEADINGS[name]: record[name]["shares"] for name in there}))
    return _stack(parts)


def split_sheet(tiles: Sequence[tuple[str, Image.Image]], heading: tuple[str, str]) -> Image.Image:
    """Returns small pictures with their captions row by row, e.g. one for each layer."""
    columns = (WIDTH - 2 * MARGIN + GAP) // (SMALL_TILE[0] + GAP)
    wide, high = SMALL_TILE[0] + GAP, max(tile.height for _, tile in tiles) + 34
    strip = Image.new("RGB", (WIDTH, high * -(-len(tiles) // columns)), PAPER)
    for number, (caption, tile) in enumerate(tiles):
        x, y = MARGIN + number % columns * wide, number // columns * high
        ImageDraw.Draw(strip).text((x, y), caption, FAINT, _font(15))
        strip.paste(tile, (x, y + 22))
    return _stack([_title(*heading), strip])


def top_of(values: Sequence[Mapping[str, Any]], scale: str) -> float:
    """Returns the value that is drawn darkest; what has more would have at most 2% of attention that is even.

    So a single value does not hide all others, nor do the last tokens of causal attention, which few tokens see.

    Args:
        values: pictures or pieces of text of `heat_values`.
        scale: "relative" or "share".
    """
    share, relative = (np.concatenate([np.ravel(value[name]) for value in values]) for name in ("share", "relative"))
    even = np.divide(share, relative, out=np.zeros_like(share), where=relative > 0)
    drawn = relative if scale == "relative" else share
    order = np.argsort(-drawn)
    above = np.cumsum(even[order])
    least = LEAST_TOP if scale == "relative" else 1e-12
    return max(float(drawn[order][np.argmax(above >= BEYOND * above[-1])]), least)


def fit(size: tuple[int, int], box: tuple[int, int]) -> tuple[int, int]:
    """Returns the largest size of the same aspect inside a box."""
    factor = min(box[0] / size[0], box[1] / size[1])
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _title(title: str, heading: str) -> Image.Image:
    strip = Image.new("RGB", (WIDTH, 118), PAPER)
    draw = ImageDraw.Draw(strip)
    draw.text((MARGIN, 28), _cut(title, 28, WIDTH - 2 * MARGIN), INK, _font(28))
    draw.text((MARGIN, 66), _cut(heading, 17, WIDTH - 2 * MARGIN), FAINT, _font(17))
    return strip


def _picture_rows(record, there: Sequence[str], shown: Sequence[Image.Image], scale: str, top: float) -> Image.Image:
    pictures = [record[name]["pictures"] for name in there]
    roles = [picture["role"] for picture in pictures[0]]
    blocks, box = (1, TILE) if len(shown) <= 2 else (2, SMALL_TILE)  # of several pictures, each stands beside its crop
    rows: list[list[int]] = []
    for number, role in enumerate(roles):
        with_crop = role == "image" and roles[number + 1 : number + 2] == ["core"]
        if not rows or len(rows[-1]) == blocks or with_crop:
            rows.append([])
        rows[-1].append(number)
    sizes = [fit(image.size, box) for image in shown]
    heights = [HEADING + max(sizes[number][1] for number in row) + 10 for row in rows]
    strip = Image.new("RGB", (WIDTH, sum(heights) + GAP), PAPER)
    draw, y = ImageDraw.Draw(strip), 0
    for row, height in zip(rows, heights, strict=True):
        for block, number in enumerate(row):
            x, size = MARGIN + block * 3 * (box[0] + GAP), sizes[number]
            draw.text((x, y), ROLE_NAMES[roles[number]], FAINT, _font(17))
            strip.paste(shown[number].resize(size, Image.Resampling.LANCZOS), (x, y + HEADING))
            for name, cells in zip(there, pictures, strict=True):
                x += box[0] + GAP
                if y == 0:
                    draw.text((x, y), HEADINGS[name], FAINT, _font(17))
                strip.paste(overlay(shown[number], np.array(cells[number][scale]), top, size), (x, y + HEADING))
        y += height
    return strip


def _text(pieces: Sequence[Mapping[str, Any]], scale: str, top: float) -> Image.Image:
    font, line, left = _font(22), 40, MARGIN + LABEL
    x, y, role, marks = left, 0, None, []
    for piece in pieces:
        said = "".join(c if c.isprintable() else " " for c in piece["text"])
        wide = font.getlength(said)
        if piece["role"] != role or x + wide > WIDTH - MARGIN:
            y += 0 if role is None else line
            y += 10 if role not in (None, piece["role"]) else 0
            x = left
        marks.append((x, y, said, wide, piece, piece["role"] != role))
        x, role = x + wide, piece["role"]
    strip = Image.new("RGB", (WIDTH, y + line + GAP), PAPER)
    draw = ImageDraw.Draw(strip)
    for x, y, said, wide, piece, first in marks:
        heat = np.array(min(1.0, piece[scale] / top))
        color = tuple(np.round(colors(heat)).astype(int).tolist())
        draw.rectangle((x, y, x + wide - 1, y + line - 8), color if heat > 0.02 else PAPER)
        draw.text((x, y + 3), said, PAPER if heat > 0.62 else INK, font)
        if first:
            draw.text((MARGIN, y + 6), ROLE_NAMES[piece["role"]], FAINT, _font(17))
    return strip


def _legend(top: float, scale: str, of: str) -> Image.Image:
    strip = Image.new("RGB", (WIDTH, 62), PAPER)
    draw = ImageDraw.Draw(strip)
    left, wide = MARGIN + LABEL, 240
    bar = np.broadcast_to(colors(np.linspace(0, 1, wide)), (12, wide, 3))
    strip.paste(Image.fromarray(np.round(bar).astype(np.uint8)), (left, 4))
    draw.rectangle((left, 4, left + wide - 1, 15), outline=LINE)
    draw.text((MARGIN, 0), "colours", FAINT, _font(17))
    end = f"{top:.3g} \u00d7 even attention" if scale == "relative" else f"{top:.2%} of the attention"
    draw.text((left, 22), "0", FAINT, _font(15))
    draw.text((left + wide + 12, 0), f"{end}, {of}", FAINT, _font(17))
    if scale == "relative" and 1 < top < 40:
        x = left + wide / top
        draw.line((x, 0, x, 19), INK, 2)
        draw.text((x - 4, 22), "1", INK, _font(15))
    return strip


def _shares(shares: Mapping[str, Mapping[str, float]]) -> Image.Image:
    """Returns a stacked bar for each condition, labelled where there is room, and the names of the colours."""
    strip = Image.new("RGB", (WIDTH, 48 * len(shares) + 48), PAPER)
    draw = ImageDraw.Draw(strip)
    left, full = MARGIN + LABEL, WIDTH - 2 * MARGIN - LABEL
    for number, (name, by_role) in enumerate(shares.items()):
        x, y = float(left), 48 * number
        draw.text((MARGIN, y + 6), name, FAINT, _font(17))
        for role, share in by_role.items():
            draw.rectangle((x, y, x + full * share - 1, y + 32), ROLE_COLORS[role]) if full * share >= 1 else None
            for text in (f"{ROLE_NAMES[role]} {share:.0%}", f"{share:.0%}"):
                if _font(16).getlength(text) + 12 < full * share:
                    draw.text((x + 7, y + 7), text, PAPER if role in ("image", "title") else INK, _font(16))
                    break
            x += full * share
    x, y = left, 48 * len(shares)
    for role in ROLE_COLORS:
        if any(by_role[role] > 0 for by_role in shares.values()):
            draw.rectangle((x, y + 4, x + 12, y + 16), ROLE_COLORS[role])
            draw.text((x + 18, y), ROLE_NAMES[role], FAINT, _font(16))
            x += 18 + _font(16).getlength(ROLE_NAMES[role]) + 22
    return strip


def _stack(parts: Sequence[Image.Image]) -> Image.Image:
    out = Image.new("RGB", (WIDTH, sum(part.height for part in parts) + GAP), PAPER)
    y = 0
    for part in parts:
        out.paste(part, (0, y))
        y += part.height
    return out


def _cut(text: str, size: int, wide: int) -> str:
    text = "".join(c if c.isprintable() else " " for c in text[:400])
    if _font(size).getlength(text) <= wide:
        return text
    while text and _font(size).getlength(text + contact_sheet.ELLIPSIS) > wide:
        text = text[:-1]
    return text + contact_sheet.ELLIPSIS


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return contact_sheet.font().font_variant(size=size)
