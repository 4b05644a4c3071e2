"""The surfaces of products: patterns, materials and the brands' signs, as pixels."""

import functools
import math

import numpy as np
from PIL import Image, ImageDraw

from moon_jax.data.catalogue.sketch import Point

Rgb = tuple[int, int, int]

COLORS: dict[str, Rgb] = {
    "red": (200, 40, 44), "orange": (236, 128, 40), "yellow": (240, 204, 60), "green": (60, 150, 72),
    "teal": (40, 152, 156), "blue": (48, 88, 190), "purple": (128, 72, 168), "pink": (238, 146, 176),
    "brown": (130, 84, 52), "black": (44, 44, 48), "white": (236, 234, 228), "grey": (140, 142, 146),
}  # fmt: skip
STYLE_ACCENTS: dict[str, Rgb] = {
    "classic": (92, 62, 42), "elegant": (206, 168, 84), "cute": (252, 188, 208), "vintage": (228, 208, 168),
}  # fmt: skip  # "minimalist" is a shade of the body and "sporty" a loud second colour


def shade(color: Rgb, factor: float) -> Rgb:
    """Returns the colour darkened (factor < 1) or brightened, clipped."""
    r, g, b = (min(255, int(c * factor)) for c in color)
    return (r, g, b)


def luminance(color: Rgb) -> float:
    """Returns how bright the colour looks, 0..255."""
    return 0.3 * color[0] + 0.59 * color[1] + 0.11 * color[2]


def against(color: Rgb, wish: Rgb) -> Rgb:
    """Returns `wish` if it stands out from `color`, else nearly white or nearly black."""
    if abs(luminance(color) - luminance(wish)) >= 55:
        return wish
    return (246, 244, 238) if luminance(color) < 140 else (40, 40, 46)


def _star(x: float, y: float, radius: float, tips: int = 5, inner: float = 0.42) -> list[Point]:
    turns = [math.pi * (i / tips - 0.5) for i in range(2 * tips)]
    radii = [radius if i % 2 == 0 else radius * inner for i in range(2 * tips)]
    return [(x + r * math.cos(t), y + r * math.sin(t)) for r, t in zip(radii, turns, strict=True)]


def draw_pattern(draw: ImageDraw.ImageDraw, pattern: str, color: Rgb, side: int, scale: float) -> None:
    """Draws the pattern over a square of `side` pixels; `scale` is the distance of its repeats, as a share of it."""
    step = side * scale
    count = int(1 / scale) + 2
    if pattern == "horizontal stripes":
        for i in range(count):
            draw.rectangle((0, i * step, side, i * step + step * 0.45), fill=color)
    elif pattern == "vertical stripes":
        for i in range(count):
            draw.rectangle((i * step, 0, i * step + step * 0.45, side), fill=color)
    elif pattern == "diagonal stripes":
        for i in range(-count, count):
            draw.line((i * step * 1.2, side, i * step * 1.2 + side, 0), fill=color, width=max(1, int(step * 0.4)))
    elif pattern == "checks":
        for i in range(count):
            for j in range(i % 2, count, 2):
                draw.rectangle((i * step * 0.7, j * step * 0.7, (i + 1) * step * 0.7, (j + 1) * step * 0.7), fill=color)
    elif pattern == "zigzag":
        for i in range(count):
            points = [(j * step / 2, i * step + (step * 0.45 if j % 2 else 0)) for j in range(2 * count)]
            draw.line(points, fill=color, width=max(1, int(step * 0.28)))
    elif pattern != "solid":
        for i in range(count):
            for j in range(count):
                x, y = (j + 0.25 + 0.5 * (i % 2)) * step, (i + 0.3) * step
                if pattern == "polka dots":
                    draw.ellipse((x - step * 0.27, y - step * 0.27, x + step * 0.27, y + step * 0.27), fill=color)
                elif pattern == "star print":
                    draw.polygon(_star(x, y, step * 0.42), fill=color)
                else:  # floral print
                    for turn in range(5):
                        a, b = x + step * 0.22 * math.cos(turn * 1.257), y + step * 0.22 * math.sin(turn * 1.257)
                        draw.ellipse((a - step * 0.17, b - step * 0.17, a + step * 0.17, b + step * 0.17), fill=color)
                    draw.ellipse(
                        (x - step * 0.1, y - step * 0.1, x + step * 0.1, y + step * 0.1), fill=COLORS["yellow"]
                    )


@functools.cache
def material_maps(material: str, side: int) -> tuple[Image.Image, Image.Image]:
    """Returns what a material does to a colour: an RGB picture to multiply by, and one to screen with (highlights)."""
    y, x = np.mgrid[0:side, 0:side] / side
    rng = np.random.RandomState(sum(map(ord, material)))

    def noise(cells: int) -> np.ndarray:
        grid = Image.fromarray(rng.randint(0, 256, (cells, cells)).astype(np.uint8))
        return np.asarray(grid.resize((side, side), Image.Resampling.BICUBIC)) / 255.0

    def spot(cx: float, cy: float, rx: float, ry: float) -> np.ndarray:
        return np.exp(-(((x - cx) / rx) ** 2) - ((y - cy) / ry) ** 2)

    dark, light = np.ones((side, side)), np.zeros((side, side))
    if material == "ceramic":
        light = 0.55 * spot(0.36, 0.45, 0.05, 0.3) + 0.25 * spot(0.3, 0.3, 0.15, 0.15)
    elif material == "glass":
        light = 0.5 * (np.mod(x + 0.6 * y, 0.45) < 0.07) + 0.2 * (np.mod(x + 0.6 * y + 0.1, 0.45) < 0.03)
    elif material == "metal":
        wave = np.sin(2 * np.pi * 3.0 * x)
        dark, light = 0.78 + 0.22 * wave, 0.35 * np.clip(wave, 0, 1) ** 4
    elif material == "wood":
        rings = np.sin(2 * np.pi * (9 * y + 1.6 * noise(4)))
        dark = 0.86 + 0.14 * rings - 0.14 * (rings > 0.85)
    elif material == "plastic":
        light = 0.5 * spot(0.64, 0.36, 0.03, 0.12) + 0.25 * spot(0.6, 0.4, 0.14, 0.3)
    elif material == "leather":
        dark = 0.72 + 0.28 * noise(22) - 0.12 * (noise(34) > 0.75)
    elif material == "cotton":
        dark = 0.93 + 0.07 * noise(40)
    elif material == "denim":
        dark = 0.8 + 0.2 * np.sign(np.sin(2 * np.pi * 22 * (x - y))) * (0.4 + 0.6 * noise(30))
    elif material == "knit":
        dark = 0.84 + 0.16 * np.sign(np.sin(2 * np.pi * (18 * y + 1.2 * np.abs(np.mod(12 * x, 1.0) - 0.5))))
    else:  # canvas
        dark = 0.88 + 0.12 * np.sign(np.sin(2 * np.pi * 16 * x) * np.sin(2 * np.pi * 16 * y))
    dark = dark * (1.04 - 0.34 * np.abs(x - 0.44) - 0.16 * y)  # light from the upper left on everything
    multiply, screen = (
        Image.fromarray((np.clip(m, 0, 1) * 255).astype(np.uint8)).convert("RGB") for m in (dark, light)
    )
    return multiply, screen


def _polygon(corners: int, turn: float = -0.5, radius: float = 1.0) -> list[Point]:
    turns = [math.pi * (turn + 2 * i / corners) for i in range(corners)]
    return [(radius * math.cos(t), radius * math.sin(t)) for t in turns]


def _bars(*centres: float) -> list[list[Point]]:
    return [[(c - 0.17, -0.8), (c + 0.17, -0.8), (c + 0.17, 0.8), (c - 0.17, 0.8)] for c in centres]


_HEART = [(0.0, 0.9), (-0.9, 0.0), (-0.9, -0.5), (-0.5, -0.85), (0.0, -0.45), (0.5, -0.85), (0.9, -0.5), (0.9, 0.0)]
_CROSS = [(-0.28, -0.9), (0.28, -0.9), (0.28, -0.28), (0.9, -0.28), (0.9, 0.28), (0.28, 0.28), (0.28, 0.9),
          (-0.28, 0.9), (-0.28, 0.28), (-0.9, 0.28), (-0.9, -0.28), (-0.28, -0.28)]  # fmt: skip
_MOON = [(math.cos(t), math.sin(t)) for t in np.linspace(0.9, 2 * math.pi - 0.9, 14)]
_MOON += [(0.35 + 0.75 * math.cos(t), 0.75 * math.sin(t)) for t in np.linspace(2 * math.pi - 1.3, 1.3, 10)]
# Per brand: outlines within the unit circle.
SIGNS: dict[str, list[list[Point]]] = {
    "Lumo": [_polygon(20, radius=0.62)],
    "Hexa": [_polygon(6)],
    "Nordika": [_polygon(3)],
    "Pixio": [_polygon(4, turn=-0.25)],
    "Velora": [[(-0.95, -0.7), (-0.4, -0.7), (0.0, 0.2), (0.4, -0.7), (0.95, -0.7), (0.25, 0.9), (-0.25, 0.9)]],
    "Castor": [[(-0.9, 0.0), (0.0, -0.95), (0.9, 0.0), (0.6, 0.0), (0.6, 0.8), (-0.6, 0.8), (-0.6, 0.0)]],
    "Moonrise": [_MOON],
    "Tridenta": _bars(-0.62, 0.0, 0.62),
    "Solano": [_star(0.0, 0.0, 1.0, tips=9, inner=0.6)],
    "Kiteworks": [_polygon(4)],
    "Amora": [_HEART],
    "Crossley": [_CROSS],
    "Zagato Lane": [[(0.3, -1.0), (-0.65, 0.15), (-0.08, 0.15), (-0.3, 1.0), (0.65, -0.2), (0.08, -0.2)]],
    "Orbit": [_polygon(20), _polygon(20, radius=0.5)],
    "Twinbar": _bars(-0.4, 0.4),
    "Starling": [_star(0.0, 0.0, 1.0)],
}


def draw_sign(draw: ImageDraw.ImageDraw, brand: str, x: float, y: float, radius: float, dark: bool) -> None:
    """Draws the brand's sign on a round badge, light on dark or dark on light."""
    paper, ink = ((30, 32, 40), (250, 250, 246)) if dark else ((250, 250, 246), (30, 32, 40))
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=paper)
    hole = brand == "Orbit"
    for i, outline in enumerate(SIGNS[brand]):
        points = [(x + px * radius * 0.72, y + py * radius * 0.72) for px, py in outline]
        draw.polygon(points, fill=paper if hole and i else ink)
