"""Takes pictures of a cut-out product: the seller's clean ones, the shopper's cluttered ones, with the true box."""

import dataclasses
import functools
import math
import random

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from moon_jax.data.catalogue import clutter

Quad = list[tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class Shot:
    """How one kind of picture is taken; pairs are the bounds of uniform draws."""

    fill: tuple[float, float]  # the product's longer side as a share of the picture
    turn: float  # largest rotation, degrees
    yaw: tuple[float, float]  # turn about the vertical axis, degrees
    studio: float  # share with a plain backdrop; the others stand in a room
    things: tuple[int, int]  # how many things in the room are not for sale
    occluded: float  # share with a hand or a leaf before the product
    tint: float  # how far the light's colour strays: each channel's gain lies in 1 -+ tint
    light: tuple[float, float]  # brightness
    mirrored: float = 0.0  # share seen from the other side
    blurred: float = 0.0


SHOTS = {
    "main": Shot((0.62, 0.84), 6.0, (-8.0, 8.0), 0.85, (1, 2), 0.0, 0.1, (0.84, 1.14)),
    "sku": Shot((0.55, 0.85), 25.0, (-35.0, 35.0), 0.5, (1, 4), 0.0, 0.1, (0.85, 1.12)),
    "user_photo": Shot((0.56, 0.8), 22.0, (-30.0, 30.0), 0.0, (3, 7), 0.4, 0.36, (0.55, 1.35), blurred=0.25),
    "alt_view": Shot((0.52, 0.78), 15.0, (25.0, 48.0), 0.1, (2, 5), 0.1, 0.32, (0.6, 1.3), mirrored=0.5),
}


def take(product: Image.Image, kind: str, size: int, rng: random.Random) -> tuple[Image.Image, list[int]]:
    """Returns a square RGB picture of the RGBA cut-out and the product's true box [x1, y1, x2, y2] in it."""
    shot = SHOTS[kind]
    background = Image.new("RGB", (2 * size, 2 * size))
    draw = ImageDraw.Draw(background)
    if rng.random() < shot.studio:
        clutter.studio(draw, 2 * size, rng)
    else:
        clutter.room(draw, 2 * size, rng)
        for _ in range(rng.randint(*shot.things)):
            clutter.thing(draw, 2 * size, rng)
    picture = background.reduce(2)
    quad = _camera(product, shot, size, rng)
    if rng.random() < shot.mirrored:
        product = product.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    cut, left, top = _warp(product, quad, size)
    alpha = cut.getchannel("A")
    x1, y1, x2, y2 = alpha.point(_PRESENT).getbbox() or (0, 0, cut.width, cut.height)
    box = [left + x1, top + y1, left + x2, top + y2]

    shift = rng.randint(1, max(1, size // 28))
    picture.paste((20, 20, 24), (left + shift, top + shift), alpha.point(_SHADOW))
    picture.paste(cut, (left, top), alpha)
    if rng.random() < shot.occluded:
        clutter.occlude(picture, box, rng)
    return _develop(picture, shot, rng), box


_PRESENT = [0] * 64 + [255] * 192
_SHADOW = [int(i * 0.35) for i in range(256)]


def _camera(product: Image.Image, shot: Shot, size: int, rng: random.Random) -> Quad:
    """Returns where the cut-out's corners (from the upper left, clockwise) land in the picture, all within it."""
    yaw = math.radians(rng.uniform(*shot.yaw)) * rng.choice((-1, 1))
    turn = math.radians(rng.uniform(-shot.turn, shot.turn))
    width, height = product.width * math.cos(yaw) / 2, product.height / 2
    near = 1 + 0.3 * math.sin(yaw)  # the side that comes closer looks taller
    corners = [
        (-width, -height * near),
        (width, -height * (2 - near)),
        (width, height * (2 - near)),
        (-width, height * near),
    ]
    corners = [(x * math.cos(turn) - y * math.sin(turn), x * math.sin(turn) + y * math.cos(turn)) for x, y in corners]
    reach_x, reach_y = max(abs(x) for x, _ in corners), max(abs(y) for _, y in corners)
    scale = size * rng.uniform(*shot.fill) / 2 / max(reach_x, reach_y)
    free_x, free_y = (max(0.0, size / 2 - scale * reach - 1) for reach in (reach_x, reach_y))
    cx, cy = size / 2 + rng.uniform(-free_x, free_x) * 0.8, size / 2 + rng.uniform(-free_y, free_y) * 0.8
    return [(cx + scale * x, cy + scale * y) for x, y in corners]


def _warp(product: Image.Image, quad: Quad, size: int) -> tuple[Image.Image, int, int]:
    """Returns the cut-out seen in perspective, cropped to where it lands, and that crop's left and top."""
    left, top = (max(0, math.floor(min(p[axis] for p in quad))) for axis in (0, 1))
    right, bottom = (min(size, math.ceil(max(p[axis] for p in quad)) + 1) for axis in (0, 1))
    longest = max(math.dist(quad[i], quad[(i + 1) % 4]) for i in range(4)) / max(product.size)
    if longest < 0.9:  # reduce with averaging first: the warp itself only interpolates
        product = product.resize([max(2, round(longest * side)) for side in product.size], Image.Resampling.BOX)
    source = [(0, 0), (product.width, 0), (product.width, product.height), (0, product.height)]
    rows, values = [], []
    for (x, y), (u, v) in zip(quad, source, strict=True):
        x, y = x - left, y - top
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    coefficients = np.linalg.solve(np.array(rows, np.float64), np.array(values, np.float64))
    cut = product.transform(
        (right - left, bottom - top), Image.Transform.PERSPECTIVE, coefficients.tolist(), Image.Resampling.BICUBIC
    )
    return cut, left, top


@functools.cache
def _falloff(size: int) -> tuple[Image.Image, ...]:
    """Returns pictures to multiply by: light that falls off towards one side, from twelve directions."""
    y, x = np.mgrid[0:size, 0:size] / size - 0.5
    ramps = [np.cos(t) * x + np.sin(t) * y for t in np.arange(12) * np.pi / 6]
    return tuple(Image.fromarray(np.uint8(np.clip(220 + 90 * r, 0, 255))).convert("RGB") for r in ramps)


def _develop(picture: Image.Image, shot: Shot, rng: random.Random) -> Image.Image:
    """Returns the picture under its light: white balance, brightness, fall-off, now and then out of focus."""
    light = rng.uniform(*shot.light)
    table: list[int] = []
    for _ in range(3):
        gain = light * rng.uniform(1 - shot.tint, 1 + shot.tint)
        table += [min(255, int(gain * i)) for i in range(256)]
    picture = picture.point(table)
    if rng.random() < 2 * shot.tint:
        picture = ImageChops.multiply(picture, rng.choice(_falloff(picture.width)))
    if rng.random() < shot.blurred:
        picture = picture.filter(ImageFilter.GaussianBlur(picture.width * rng.uniform(0.004, 0.009)))
    return picture
