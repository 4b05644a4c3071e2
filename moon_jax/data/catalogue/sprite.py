"""One product as a cut-out picture: its silhouette, painted with its attributes."""

import random

from PIL import Image, ImageChops, ImageDraw

from moon_jax.data.catalogue import paint
from moon_jax.data.catalogue.products import Product
from moon_jax.data.catalogue.sketch import Sketch

WIDTHS = {"slim": 0.76, "regular": 1.0, "wide": 1.3}  # what a size specification does to the proportions


def _palette(product: Product, look: dict[str, str], rng: random.Random) -> tuple[dict[str, paint.Rgb], paint.Rgb]:
    """Returns the flat paints by name, and the colour of the pattern."""
    r, g, b = (max(0, min(255, c + rng.randint(-12, 12))) for c in paint.COLORS[look["color"]])
    body = (r, g, b)
    second = paint.against(body, paint.COLORS[product.second_color])
    neutral = paint.shade(body, 0.62 if paint.luminance(body) > 90 else 1.9)
    style = look["fashion_style"] if "fashion_style" in product.listed else "minimalist"
    accent = second if style == "sporty" else paint.STYLE_ACCENTS.get(style, neutral)
    paints = {
        "body": body, "accent": accent, "inside": paint.shade(body, 0.55), "dark": (48, 48, 54),
        "light": (240, 240, 236), "leaf": (74, 140, 66),
    }  # fmt: skip
    return paints, second


def _body(look: dict[str, str], body: paint.Rgb, second: paint.Rgb, side: int, scale: float) -> Image.Image:
    """Returns the body's surface: colour, pattern, material."""
    surface = Image.new("RGB", (side, side), body)
    paint.draw_pattern(ImageDraw.Draw(surface), look["style_elements"], second, side, scale)
    multiply, screen = paint.material_maps(look["material"], side)
    return ImageChops.screen(ImageChops.multiply(surface, multiply), screen)


def cut_out(product: Product, side: int) -> Image.Image:
    """Returns the product as an RGBA picture, cropped to it, drawn at twice the size and reduced.

    The family's random numbers give the proportions, so variants differ by their attributes alone.
    """
    rng = random.Random(f"look/{product.family}/{product.series}")
    look = dict(product.look)
    sketch = Sketch()
    product.leaf.shape(sketch, rng.uniform)
    paints, second = _palette(product, look, rng)
    scale = rng.uniform(0.11, 0.17)
    dark_badge = rng.random() < 0.5

    side = 2 * side
    surface = _body(look, paints["body"], second, side, scale)
    canvas, alpha = Image.new("RGB", (side, side), paints["body"]), Image.new("L", (side, side))
    draw, cover = ImageDraw.Draw(canvas), ImageDraw.Draw(alpha)
    opacity = 175 if look["material"] == "glass" else 255
    edge = max(1, side // 90)
    for part in sketch.parts:
        points = [(x * side, y * side) for x, y in part.points]
        color, body = paints[part.paint], part.paint == "body"
        if body:
            mask = Image.new("L", (side, side))
            _fill(ImageDraw.Draw(mask), points, part.width * side, 255)
            canvas.paste(surface, mask=mask)
        else:
            _fill(draw, points, part.width * side, color)
        _fill(cover, points, part.width * side, opacity if body else 255)
        if not part.width:
            draw.line([*points, points[0]], fill=paint.shade(color, 0.5), width=edge)
            cover.line([*points, points[0]], fill=255, width=edge)
    if "brand" in product.listed:
        mark, radius = sketch.mark, sketch.mark.radius * side
        x, y = mark.x * side, mark.y * side
        paint.draw_sign(draw, look["brand"], x, y, radius, dark_badge)
        cover.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    canvas.putalpha(alpha)
    picture = canvas.reduce(2)
    picture = picture.crop(picture.getchannel("A").getbbox())
    width = (
        max(1, round(picture.width * WIDTHS[look["size_specification"]]))
        if "size_specification" in product.listed
        else 0
    )
    return picture.resize((width, picture.height)) if width else picture


def _fill(draw: ImageDraw.ImageDraw, points: list[tuple[float, float]], width: float, color: paint.Rgb | int) -> None:
    """Fills an outline, or draws a line of this width with round ends."""
    if not width:
        draw.polygon(points, fill=color)
        return
    draw.line(points, fill=color, width=max(1, round(width)), joint="curve")
    for x, y in (points[0], points[-1]):
        draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=color)
