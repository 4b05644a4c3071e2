"""A product as parts in a unit square, before it has colour: what the silhouettes draw on."""

import dataclasses
import math
from collections.abc import Callable

Point = tuple[float, float]
Vary = Callable[[float, float], float]  # draws a proportion between two bounds


@dataclasses.dataclass(frozen=True)
class Part:
    """One filled outline (`width` 0) or one thick line through `points`, to be painted with the paint of that name."""

    paint: str
    points: tuple[Point, ...]
    width: float = 0.0


@dataclasses.dataclass(frozen=True)
class Mark:
    """Where the brand's sign sits: centre and radius."""

    x: float
    y: float
    radius: float


def smooth(points: list[Point], closed: bool = True, steps: int = 5) -> list[Point]:
    """Returns a Catmull-Rom curve through `points`, `steps` points per piece."""
    n = len(points)
    out: list[Point] = []
    for i in range(n if closed else n - 1):
        if closed:
            p0, p1, p2, p3 = (points[(i + k) % n] for k in (-1, 0, 1, 2))
        else:
            p0, p1, p2, p3 = (points[min(max(i + k, 0), n - 1)] for k in (-1, 0, 1, 2))
        for step in range(steps):
            t = step / steps
            a, b = -0.5 * t + t**2 - 0.5 * t**3, 1 - 2.5 * t**2 + 1.5 * t**3
            c, d = 0.5 * t + 2 * t**2 - 1.5 * t**3, -0.5 * t**2 + 0.5 * t**3
            out.append((a * p0[0] + b * p1[0] + c * p2[0] + d * p3[0], a * p0[1] + b * p1[1] + c * p2[1] + d * p3[1]))
    return out if closed else [*out, points[-1]]


class Sketch:
    """Collects the parts of one product, back to front.

    Paints: "body" (colour, pattern and material of the product), "accent" (its style), "inside" (the body in shadow),
    "dark", "light", "leaf".
    """

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.mark = Mark(0.5, 0.5, 0.09)

    def poly(self, paint: str, points: list[Point], curved: bool = False) -> None:
        """Adds a polygon, or the smooth closed curve through its points."""
        self.parts.append(Part(paint, tuple(smooth(points) if curved else points)))

    def line(self, paint: str, points: list[Point], width: float, curved: bool = False) -> None:
        """Adds a line of this width, or the smooth curve through its points."""
        self.parts.append(Part(paint, tuple(smooth(points, closed=False) if curved else points), width))

    def oval(self, paint: str, x: float, y: float, rx: float, ry: float) -> None:
        """Adds an ellipse by centre and radii."""
        turns = [2 * math.pi * i / 28 for i in range(28)]
        self.parts.append(Part(paint, tuple((x + rx * math.cos(t), y + ry * math.sin(t)) for t in turns)))

    def arc(self, paint: str, x: float, y: float, rx: float, ry: float, degrees: tuple[int, int], width: float) -> None:
        """Adds a piece of an ellipse's line, from and to these degrees (0 = right, 90 = down)."""
        first, last = degrees
        turns = [math.radians(first + (last - first) * i / 18) for i in range(19)]
        self.line(paint, [(x + rx * math.cos(t), y + ry * math.sin(t)) for t in turns], width)

    def box(self, paint: str, x0: float, y0: float, x1: float, y1: float, corner: float = 0.0) -> None:
        """Adds a rectangle, with rounded corners of radius `corner`."""
        if corner <= 0:
            self.poly(paint, [(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
            return
        points = []
        for x, y, start in (
            (x1 - corner, y0 + corner, -90),
            (x1 - corner, y1 - corner, 0),
            (x0 + corner, y1 - corner, 90),
            (x0 + corner, y0 + corner, 180),
        ):
            turns = [math.radians(start + 90 * i / 4) for i in range(5)]
            points += [(x + corner * math.cos(t), y + corner * math.sin(t)) for t in turns]
        self.poly(paint, points)

    def profile(self, paint: str, half: list[Point], curved: bool = False, x: float = 0.5) -> None:
        """Adds a shape that is mirrored about a vertical axis: (half width, y) pairs from top to bottom."""
        right = smooth([(w, y) for w, y in half], closed=False) if curved else half
        self.poly(paint, [(x + w, y) for w, y in right] + [(x - w, y) for w, y in reversed(right)])

    def place_mark(self, x: float, y: float, radius: float) -> None:
        """Says where the brand's sign goes."""
        self.mark = Mark(x, y, radius)
