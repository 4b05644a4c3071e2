"""Silhouettes of electronics, sports gear and toys."""

from moon_jax.data.catalogue.sketch import Sketch, Vary


def smartphone(s: Sketch, v: Vary) -> None:
    """The back of a phone with its lenses."""
    w, bump = v(0.2, 0.25), v(0.14, 0.2)
    s.box("dark", 0.49 - w, 0.05, 0.51 + w, 0.95, 0.06)
    s.box("body", 0.51 - w, 0.07, 0.49 + w, 0.93, 0.05)
    s.box("accent", 0.54 - w, 0.1, 0.54 - w + bump, 0.12 + bump * v(1.0, 1.5), 0.03)
    for i in range(2):
        s.oval("dark", 0.54 - w + bump / 2, 0.16 + 0.1 * i, 0.04, 0.04)
    s.place_mark(0.5, 0.62, 0.1)


def laptop(s: Sketch, v: Vary) -> None:
    """An open laptop seen from the back: the lid carries the sign."""
    top, w = v(0.18, 0.28), v(0.32, 0.38)
    s.poly("accent", [(0.5 - w, 0.7), (0.5 + w, 0.7), (0.97, 0.82), (0.03, 0.82)])
    s.box("dark", 0.03, 0.81, 0.97, 0.86, 0.02)
    s.box("body", 0.5 - w, top, 0.5 + w, 0.72, v(0.01, 0.05))
    s.place_mark(0.5, 0.46, 0.11)


def headphones(s: Sketch, v: Vary) -> None:
    """A band with two cups."""
    rx, ry = v(0.1, 0.14), v(0.16, 0.22)
    s.arc("accent", 0.5, 0.5, 0.34, v(0.34, 0.42), (180, 360), v(0.05, 0.09))
    for x in (0.18, 0.82):
        s.oval("dark", x + (0.05 if x < 0.5 else -0.05), 0.64, rx, ry)
        s.oval("body", x, 0.64, rx, ry)
    s.place_mark(0.18, 0.64, 0.075)


def camera(s: Sketch, v: Vary) -> None:
    """A camera with its lens."""
    r, x = v(0.17, 0.23), v(0.48, 0.6)
    s.box("accent", 0.34, v(0.16, 0.24), 0.66, 0.36, 0.03)
    s.box("body", 0.06, 0.3, 0.94, 0.84, v(0.03, 0.08))
    s.box("accent", 0.06, 0.3, 0.94, 0.38, 0.03)
    s.oval("dark", x, 0.6, r, r)
    s.oval("light", x, 0.6, r * 0.7, r * 0.7)
    s.oval("dark", x, 0.6, r * 0.55, r * 0.55)
    s.place_mark(0.2, 0.54, 0.075)


def smart_watch(s: Sketch, v: Vary) -> None:
    """A watch with a strap above and below."""
    w, r = v(0.13, 0.17), v(0.03, 0.16)
    s.profile("body", [(w * 0.8, 0.03), (w, 0.34)])
    s.profile("body", [(w, 0.66), (w * 0.8, 0.97)])
    s.box("accent", 0.28, 0.3, 0.72, 0.7, r)
    s.box("dark", 0.32, 0.34, 0.68, 0.66, r * 0.8)
    s.line("light", [(0.5, 0.5), (0.5, 0.4)], 0.02)
    s.line("light", [(0.5, 0.5), (0.5 + v(0.03, 0.1), 0.54)], 0.02)
    s.place_mark(0.5, 0.19, 0.07)


def speaker(s: Sketch, v: Vary) -> None:
    """A box with two cones."""
    r, w = v(0.16, 0.21), v(0.25, 0.31)
    s.box("body", 0.5 - w, 0.06, 0.5 + w, 0.94, v(0.02, 0.12))
    for y, radius in ((0.3, r * 0.6), (0.64, r)):
        s.oval("accent", 0.5, y, radius, radius)
        s.oval("dark", 0.5, y, radius * 0.75, radius * 0.75)
        s.oval("accent", 0.5, y, radius * 0.3, radius * 0.3)
    s.place_mark(0.5, 0.13, 0.05)


def football(s: Sketch, v: Vary) -> None:
    """A ball with a pentagon and seams."""
    s.oval("body", 0.5, 0.5, 0.43, 0.43)
    r = v(0.13, 0.18)
    ring = [(0.0, -1.0), (0.95, -0.31), (0.59, 0.81), (-0.59, 0.81), (-0.95, -0.31)]
    for x, y in ring:
        s.line("accent", [(0.5 + x * r, 0.5 + y * r), (0.5 + x * 0.41, 0.5 + y * 0.41)], 0.02)
        s.oval("accent", 0.5 + x * 0.37, 0.5 + y * 0.37, 0.055, 0.055)
    s.poly("light", [(0.5 + x * r, 0.5 + y * r) for x, y in ring])
    s.place_mark(0.5, 0.5, r * 0.6)


def basketball(s: Sketch, v: Vary) -> None:
    """A ball with four bent seams."""
    s.oval("body", 0.5, 0.5, 0.43, 0.43)
    bend = v(0.16, 0.26)
    s.line("dark", [(0.07, 0.5), (0.93, 0.5)], 0.022)
    s.line("dark", [(0.5, 0.07), (0.5, 0.93)], 0.022)
    for side in (-1, 1):
        s.line(
            "dark", [(0.5 + side * 0.3, 0.19), (0.5 + side * bend * 0.6, 0.5), (0.5 + side * 0.3, 0.81)], 0.022, True
        )
    s.place_mark(0.5, 0.72, 0.09)


def racket(s: Sketch, v: Vary) -> None:
    """A tennis racket."""
    rx, ry = v(0.22, 0.28), v(0.27, 0.31)
    s.oval("light", 0.5, 0.34, rx, ry)
    for i in range(-2, 3):
        s.line("inside", [(0.5 + i * rx * 0.35, 0.34 - ry * 0.85), (0.5 + i * rx * 0.35, 0.34 + ry * 0.85)], 0.01)
        s.line("inside", [(0.5 - rx * 0.85, 0.34 + i * ry * 0.35), (0.5 + rx * 0.85, 0.34 + i * ry * 0.35)], 0.01)
    s.arc("body", 0.5, 0.34, rx, ry, (0, 360), v(0.05, 0.08))
    s.line("body", [(0.42, 0.61), (0.5, 0.72), (0.58, 0.61)], 0.04)
    s.box("accent", 0.465, 0.68, 0.535, 0.97, 0.02)
    s.place_mark(0.5, 0.34, 0.1)


def skateboard(s: Sketch, v: Vary) -> None:
    """A board from the side with two wheels."""
    lift = v(0.03, 0.1)
    s.line("body", [(0.05, 0.5 - lift), (0.17, 0.52), (0.83, 0.52), (0.95, 0.5 - lift)], v(0.1, 0.15), True)
    r = v(0.06, 0.09)
    for x in (0.25, 0.75):
        s.poly("dark", [(x - 0.08, 0.57), (x + 0.08, 0.57), (x, 0.66)])
        s.oval("accent", x, 0.66, r, r)
        s.oval("light", x, 0.66, r * 0.4, r * 0.4)
    s.place_mark(0.5, 0.52, 0.06)


def dumbbell(s: Sketch, v: Vary) -> None:
    """A bar with two weights."""
    h, w = v(0.2, 0.28), v(0.16, 0.22)
    s.line("accent", [(0.2, 0.5), (0.8, 0.5)], v(0.07, 0.11))
    for x in (0.05, 0.95 - w):
        s.box("body", x, 0.5 - h, x + w, 0.5 + h, v(0.02, 0.07))
    s.box("dark", 0.05 + w, 0.5 - h * 0.6, 0.09 + w, 0.5 + h * 0.6)
    s.box("dark", 0.91 - w, 0.5 - h * 0.6, 0.95 - w, 0.5 + h * 0.6)
    s.place_mark(0.05 + w / 2, 0.5, 0.08)


def water_bottle(s: Sketch, v: Vary) -> None:
    """A sports bottle with a shoulder and a cap."""
    w, shoulder = v(0.15, 0.2), v(0.3, 0.38)
    s.profile("body", [(0.08, 0.2), (w, shoulder), (w, 0.94)], curved=False)
    s.box("accent", 0.4, 0.08, 0.6, 0.22, v(0.01, 0.05))
    s.box("dark", 0.46, 0.03, 0.54, 0.09, 0.02)
    s.profile("accent", [(w, v(0.78, 0.84)), (w, 0.88)])
    s.place_mark(0.5, 0.56, 0.1)


def kite(s: Sketch, v: Vary) -> None:
    """A diamond kite with a tail."""
    y = v(0.26, 0.36)
    s.line("dark", [(0.5, 0.72), (0.42, 0.8), (0.56, 0.88), (0.48, 0.97)], 0.02, True)
    for x, tail in ((0.45, 0.81), (0.54, 0.9)):
        s.poly(
            "accent",
            [(x - 0.06, tail - 0.04), (x + 0.06, tail + 0.04), (x + 0.06, tail - 0.04), (x - 0.06, tail + 0.04)],
        )
    w = v(0.3, 0.4)
    s.poly("body", [(0.5, 0.03), (0.5 + w, y), (0.5, 0.74), (0.5 - w, y)])
    s.line("accent", [(0.5, 0.03), (0.5, 0.74)], 0.02)
    s.line("accent", [(0.5 - w, y), (0.5 + w, y)], 0.02)
    s.place_mark(0.5, y + 0.06, 0.09)


def teddy_bear(s: Sketch, v: Vary) -> None:
    """A sitting bear."""
    ear, belly = v(0.07, 0.11), v(0.2, 0.25)
    for side in (-1, 1):
        s.oval("body", 0.5 + side * 0.17, 0.13, ear, ear)
        s.oval("body", 0.5 + side * 0.26, 0.56, 0.09, 0.13)
        s.oval("body", 0.5 + side * 0.2, 0.86, 0.13, 0.1)
        s.oval("accent", 0.5 + side * 0.22, 0.87, 0.06, 0.05)
    s.oval("body", 0.5, 0.66, belly, 0.25)
    s.oval("body", 0.5, 0.28, v(0.2, 0.25), 0.2)
    s.oval("light", 0.5, 0.35, 0.1, 0.075)
    s.oval("dark", 0.5, 0.32, 0.035, 0.025)
    for x in (0.42, 0.58):
        s.oval("dark", x, 0.23, 0.025, 0.03)
    s.place_mark(0.5, 0.66, 0.1)


def toy_car(s: Sketch, v: Vary) -> None:
    """A car from the side."""
    roof, r = v(0.26, 0.36), v(0.09, 0.12)
    s.poly("body", [(0.24, 0.52), (0.34, roof), (v(0.6, 0.68), roof), (0.8, 0.52)])
    s.poly("light", [(0.32, 0.5), (0.38, roof + 0.05), (0.49, roof + 0.05), (0.49, 0.5)])
    s.poly("light", [(0.53, 0.5), (0.53, roof + 0.05), (0.6, roof + 0.05), (0.7, 0.5)])
    s.box("body", 0.04, 0.5, 0.96, 0.74, 0.07)
    s.box("accent", 0.04, 0.68, 0.96, 0.75, 0.02)
    for x in (0.25, 0.75):
        s.oval("dark", x, 0.75, r, r)
        s.oval("light", x, 0.75, r * 0.45, r * 0.45)
    s.place_mark(0.5, 0.59, 0.065)


def umbrella(s: Sketch, v: Vary) -> None:
    """An open umbrella."""
    top = v(0.1, 0.18)
    s.line("accent", [(0.5, 0.06), (0.5, 0.86), (0.56, 0.94), (0.64, 0.9), (0.64, 0.84)], 0.03)
    scallops = [(0.96 - 0.115 * i, 0.52 - (0.05 if i % 2 else 0.0)) for i in range(9)]
    s.poly(
        "body", [(0.04, 0.52), (0.12, 0.3), (0.32, top + 0.03), (0.5, top), (0.68, top + 0.03), (0.88, 0.3), *scallops]
    )
    bend = v(0.1, 0.18)
    for side in (-1, 1):
        s.line("inside", [(0.5, top), (0.5 + side * bend, 0.3), (0.5 + side * 0.19, 0.48)], 0.012, True)
    s.place_mark(0.5, 0.34, 0.085)
