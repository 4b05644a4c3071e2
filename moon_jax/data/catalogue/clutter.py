"""What stands around a product and is not for sale: backdrops, rooms, plants, shelves, banners, other things, hands."""

import math
import random

from PIL import Image, ImageDraw, ImageFont

from moon_jax.data.catalogue.paint import COLORS, Rgb, shade
from moon_jax.data.catalogue.sketch import Sketch
from moon_jax.data.catalogue.tree import LEAVES

_STUDIO: tuple[Rgb, ...] = (
    (250, 250, 250), (244, 244, 246), (226, 228, 232), (246, 238, 224), (226, 238, 246), (246, 226, 230),
    (228, 242, 230), (206, 206, 212), (238, 228, 244), (120, 128, 140), (196, 214, 222), (222, 200, 178),
)  # fmt: skip
_WALLS: tuple[Rgb, ...] = (
    (214, 206, 192), (178, 190, 196), (150, 168, 150), (196, 170, 150), (120, 136, 156), (168, 150, 170),
    (226, 220, 206), (110, 104, 100), (190, 130, 110), (90, 116, 112), (226, 196, 130), (140, 90, 80),
)  # fmt: skip
_SKINS: tuple[Rgb, ...] = ((240, 200, 172), (214, 164, 128), (168, 116, 84), (112, 76, 54))
_SLOGANS = ("SALE", "NEW", "-50%", "HOT", "2 for 1", "FREE SHIP", "TOP 10", "DEAL")
_LEAVES: tuple[Rgb, ...] = ((58, 122, 60), (92, 146, 70), (40, 96, 72), (130, 150, 70))


def studio(draw: ImageDraw.ImageDraw, side: int, rng: random.Random) -> None:
    """Draws a seller's backdrop: one tint, brighter above, sometimes a table edge or a slogan."""
    tint = rng.choice(_STUDIO)
    low = rng.uniform(0.84, 1.0)
    for i in range(16):
        draw.rectangle((0, i * side / 16, side, (i + 1) * side / 16), fill=shade(tint, 1 + (low - 1) * i / 15))
    if rng.random() < 0.35:
        draw.rectangle((0, side * rng.uniform(0.72, 0.88), side, side), fill=shade(tint, rng.uniform(0.8, 0.94)))
    if rng.random() < 0.15:
        _banner(draw, side, rng)


def room(draw: ImageDraw.ImageDraw, side: int, rng: random.Random) -> None:
    """Draws a wall (plain, panelled, tiled or of bricks) over a floor or table."""
    wall, floor = rng.choice(_WALLS), rng.choice(_WALLS)
    draw.rectangle((0, 0, side, side), fill=wall)
    line, step = shade(wall, rng.choice((0.86, 1.12))), side * rng.uniform(0.09, 0.22)
    style = rng.randrange(4)
    for i in range(int(side / step) + 1) if style else ():
        if style in (1, 3):
            draw.line((i * step, 0, i * step, side), fill=line, width=max(1, side // 90))
        if style in (2, 3):
            draw.line((0, i * step, side, i * step), fill=line, width=max(1, side // 90))
    edge = side * rng.uniform(0.5, 0.9)
    draw.rectangle((0, edge, side, side), fill=floor)
    for i in range(rng.randrange(5)):
        y = edge + (side - edge) * (i + 0.5) / 5
        draw.line((0, y, side, y), fill=shade(floor, 0.88), width=max(1, side // 80))


def thing(draw: ImageDraw.ImageDraw, side: int, rng: random.Random) -> None:
    """Draws one thing that is not for sale, mostly towards the border of the picture."""
    rng.choice((_plant, _shelf, _books, _other, _other, _other, _banner, _frame))(draw, side, rng)


def _place(side: int, rng: random.Random) -> tuple[float, float]:
    """Returns a point that is rather near the border."""
    turn, far = rng.uniform(0, 2 * math.pi), rng.uniform(0.36, 0.6)
    return side * (0.5 + far * math.cos(turn)), side * (0.5 + far * math.sin(turn))


def _plant(draw: ImageDraw.ImageDraw, side: int, rng: random.Random) -> None:
    x, y = _place(side, rng)
    color = rng.choice(_LEAVES)
    for _ in range(rng.randint(5, 9)):
        turn, length = rng.uniform(-math.pi, 0), side * rng.uniform(0.12, 0.3)
        tip = (x + length * math.cos(turn), y + length * math.sin(turn))
        wide, mid = side * 0.03, ((x + tip[0]) / 2, (y + tip[1]) / 2)
        across = (-math.sin(turn) * wide, math.cos(turn) * wide)
        points = [(x, y), (mid[0] + across[0], mid[1] + across[1]), tip, (mid[0] - across[0], mid[1] - across[1])]
        draw.polygon(points, fill=shade(color, rng.uniform(0.8, 1.15)))


def _shelf(draw: ImageDraw.ImageDraw, side: int, rng: random.Random) -> None:
    y, color = side * rng.choice((rng.uniform(0.02, 0.25), rng.uniform(0.78, 0.97))), rng.choice(_WALLS)
    draw.rectangle((0, y, side, y + side * 0.04), fill=shade(color, 0.8))
    draw.rectangle((0, y + side * 0.04, side, y + side * 0.055), fill=shade(color, 0.5))
    _row(draw, side, y, rng)


def _row(draw: ImageDraw.ImageDraw, side: int, floor: float, rng: random.Random) -> None:
    """Draws a few book spines or boxes that stand on `floor`."""
    x = side * rng.uniform(-0.05, 0.6)
    for _ in range(rng.randint(3, 7)):
        width, height = side * rng.uniform(0.025, 0.07), side * rng.uniform(0.1, 0.22)
        color = shade(rng.choice(list(COLORS.values())), rng.uniform(0.7, 1.1))
        draw.rectangle((x, floor - height, x + width, floor), fill=color, outline=shade(color, 0.6))
        x += width


def _books(draw: ImageDraw.ImageDraw, side: int, rng: random.Random) -> None:
    _row(draw, side, side * rng.uniform(0.85, 1.02), rng)


def _frame(draw: ImageDraw.ImageDraw, side: int, rng: random.Random) -> None:
    x, y = _place(side, rng)
    w, h = side * rng.uniform(0.08, 0.2), side * rng.uniform(0.08, 0.2)
    draw.rectangle((x - w, y - h, x + w, y + h), fill=rng.choice(_WALLS), outline=rng.choice(_WALLS), width=side // 40)
    draw.ellipse((x - w * 0.5, y - h * 0.4, x + w * 0.4, y + h * 0.5), fill=rng.choice(list(COLORS.values())))


def _banner(draw: ImageDraw.ImageDraw, side: int, rng: random.Random) -> None:
    """Draws a slogan on a coloured bar, with Pillow's own font (no font file of the machine)."""
    font = ImageFont.load_default(side * rng.uniform(0.06, 0.1))
    text, color = rng.choice(_SLOGANS), rng.choice(list(COLORS.values()))
    width = font.getlength(text) + side * 0.05
    x, y = rng.uniform(0, max(1.0, side - width)), side * rng.choice((rng.uniform(0, 0.08), rng.uniform(0.84, 0.9)))
    draw.rectangle((x, y, x + width, y + side * 0.12), fill=color)
    draw.text(
        (x + side * 0.025, y + side * 0.01), text, fill=(250, 250, 246) if sum(color) < 420 else (40, 40, 40), font=font
    )


def _other(draw: ImageDraw.ImageDraw, side: int, rng: random.Random) -> None:
    """Draws another product's silhouette in flat colours, small."""
    sketch = Sketch()
    rng.choice(LEAVES).shape(sketch, rng.uniform)
    x, y = _place(side, rng)
    scale, turn = side * rng.uniform(0.22, 0.4), rng.uniform(-0.5, 0.5)
    a, b = scale * math.cos(turn), scale * math.sin(turn)
    body, accent = (shade(c, rng.uniform(0.7, 1.2)) for c in rng.choices(list(COLORS.values()), k=2))
    paints = {"body": body, "accent": accent, "inside": shade(body, 0.6), "dark": (50, 50, 56),
              "light": (232, 232, 228), "leaf": _LEAVES[0]}  # fmt: skip
    for part in sketch.parts:
        points = [(x + a * (u - 0.5) - b * (v - 0.5), y + b * (u - 0.5) + a * (v - 0.5)) for u, v in part.points]
        if part.width:
            draw.line(points, fill=paints[part.paint], width=max(1, round(part.width * scale)), joint="curve")
        else:
            draw.polygon(points, fill=paints[part.paint])


def occlude(picture: Image.Image, box: list[int], rng: random.Random) -> None:
    """Draws a hand or a leaf over one side of the box, in place; at most a quarter of its width is hidden."""
    x1, y1, x2, y2 = box
    side, away = picture.width, rng.choice((-1, 1))
    reach = (x2 - x1) * rng.uniform(0.12, 0.25)
    x = 2 * (x1 + reach if away < 0 else x2 - reach)
    y = 2 * rng.uniform(y1 + 0.35 * (y2 - y1), y2)
    layer = Image.new("RGBA", (2 * side, 2 * side))
    draw = ImageDraw.Draw(layer)
    (_hand if rng.random() < 0.65 else _twig)(draw, 2 * side, x, y, away, rng)
    layer = layer.reduce(2)
    picture.paste(layer, (0, 0), layer)


def _hand(draw: ImageDraw.ImageDraw, side: int, x: float, y: float, away: int, rng: random.Random) -> None:
    """Draws four fingers whose tips reach to about (x, y), the back of the hand and an arm out of the picture."""
    skin = rng.choice(_SKINS)
    line, width = shade(skin, 0.72), side * 0.055
    back = x + away * side * 0.2
    draw.line(
        (back, y + side * 0.04, x + away * side, y + side * rng.uniform(0.15, 0.5)), fill=skin, width=round(side * 0.15)
    )
    draw.ellipse((back - side * 0.11, y - side * 0.1, back + side * 0.11, y + side * 0.16), fill=skin)
    for i, short in enumerate((0.03, 0.0, 0.01, 0.05)):
        level = y + (i - 1.5) * width
        tip, root = x + away * side * short, back
        for ink, w in ((line, width), (skin, width * 0.84)):
            draw.line((tip, level, root, level + side * 0.02), fill=ink, width=round(w))
            draw.ellipse((tip - w / 2, level - w / 2, tip + w / 2, level + w / 2), fill=ink)


def _twig(draw: ImageDraw.ImageDraw, side: int, x: float, y: float, away: int, rng: random.Random) -> None:
    """Draws three leaves that reach from the border of the picture to about (x, y)."""
    color, root = rng.choice(_LEAVES), (x + away * side * 0.4, y + side * 0.2)
    for i in range(3):
        tip = (x + away * side * 0.03 * i, y - side * 0.09 * i)
        mid = ((root[0] + tip[0]) / 2, (root[1] + tip[1]) / 2)
        points = [root, (mid[0], mid[1] - side * 0.05), tip, (mid[0], mid[1] + side * 0.04)]
        draw.polygon(points, fill=shade(color, 1.1 - 0.12 * i))
