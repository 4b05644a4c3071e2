"""Silhouettes of things for the home. `v(low, high)` draws a proportion that belongs to the product family."""

from moon_jax.data.catalogue.sketch import Sketch, Vary


def tea_mug(s: Sketch, v: Vary) -> None:
    """A wide round cup with an ear."""
    w, low = v(0.26, 0.33), v(0.72, 0.8)
    s.arc("accent", 0.42 + w, 0.5, v(0.1, 0.16), v(0.1, 0.15), (-100, 100), v(0.04, 0.06))
    s.profile("body", [(w, 0.32), (w * 0.98, 0.5), (w * 0.75, low - 0.08), (w * 0.45, low)], curved=True, x=0.42)
    s.oval("inside", 0.42, 0.32, w, v(0.05, 0.08))
    s.profile("accent", [(w * 0.45, low), (w * 0.5, low + 0.04)], x=0.42)
    s.place_mark(0.42, 0.53, 0.1)


def coffee_mug(s: Sketch, v: Vary) -> None:
    """A straight mug with an ear."""
    w, top, low = v(0.2, 0.27), v(0.18, 0.28), v(0.78, 0.88)
    s.arc("body", 0.4 + w, (top + low) / 2, v(0.13, 0.2), v(0.15, 0.22), (-90, 90), v(0.05, 0.08))
    s.box("body", 0.4 - w, top, 0.4 + w, low, 0.05)
    s.oval("inside", 0.4, top + 0.02, w, v(0.04, 0.06))
    s.box("accent", 0.4 - w, low - v(0.05, 0.12), 0.4 + w, low, 0.03)
    s.place_mark(0.4, 0.5, 0.11)


def travel_mug(s: Sketch, v: Vary) -> None:
    """A tall tapered mug with a lid and a grip."""
    w, taper = v(0.16, 0.22), v(0.68, 0.85)
    s.profile("body", [(w, 0.18), (w * taper, 0.93)])
    s.box("accent", 0.46 - w, 0.1, 0.54 + w, 0.2, 0.03)
    s.box("dark", 0.5, 0.04, 0.5 + w * 0.6, 0.1, 0.02)
    grip = v(0.36, 0.5)
    s.box("accent", 0.5 - w, grip, 0.5 + w, grip + v(0.06, 0.14), 0.01)
    s.place_mark(0.5, 0.76, 0.09)


def wine_glass(s: Sketch, v: Vary) -> None:
    """A bowl on a stem and a foot."""
    w, low = v(0.17, 0.25), v(0.48, 0.58)
    s.profile("body", [(w * 0.8, 0.08), (w, 0.28), (w * 0.75, low - 0.06), (0.02, low)], curved=True)
    s.oval("inside", 0.5, 0.09, w * 0.78, 0.035)
    s.box("accent", 0.485, low - 0.01, 0.515, 0.9)
    s.oval("accent", 0.5, 0.91, v(0.13, 0.2), 0.03)
    s.place_mark(0.5, 0.31, 0.08)


def tumbler(s: Sketch, v: Vary) -> None:
    """A conical glass with a straw."""
    w, top = v(0.22, 0.28), v(0.28, 0.36)
    s.line("accent", [(0.52, 0.6), (v(0.6, 0.66), 0.08), (0.76, 0.05)], 0.035)
    s.profile("body", [(w, top), (w * v(0.6, 0.8), 0.94)])
    s.oval("inside", 0.5, top, w, 0.05)
    s.place_mark(0.5, 0.6, 0.1)


def kettle(s: Sketch, v: Vary) -> None:
    """A stove kettle: dome, spout to the right, handle above."""
    w = v(0.27, 0.33)
    s.arc("dark", 0.46, 0.4, w * 0.75, v(0.24, 0.32), (180, 360), 0.05)
    s.poly("body", [(0.46 + w * 0.7, 0.7), (0.46 + w * 0.8, 0.55), (0.93, v(0.3, 0.4)), (0.97, 0.44), (0.84, 0.68)])
    s.profile("body", [(w * 0.25, 0.36), (w * 0.75, 0.48), (w, 0.7), (w * 0.92, 0.88)], curved=True, x=0.46)
    s.oval("accent", 0.46, 0.35, 0.05, 0.04)
    s.box("accent", 0.46 - w, 0.86, 0.46 + w, 0.91, 0.02)
    s.place_mark(0.46, 0.66, 0.1)


def teapot(s: Sketch, v: Vary) -> None:
    """A round pot: spout left, ear right, lid on top."""
    rx, ry = v(0.24, 0.3), v(0.2, 0.27)
    s.arc("accent", 0.5 + rx, 0.58, 0.15, v(0.13, 0.18), (-100, 100), 0.05)
    s.poly("body", [(0.3, 0.72), (0.16, 0.58), (0.04, v(0.32, 0.4)), (0.12, 0.36), (0.24, 0.5), (0.34, 0.54)])
    s.oval("body", 0.5, 0.6, rx, ry)
    s.oval("accent", 0.5, 0.6 - ry + 0.01, rx * 0.6, 0.045)
    s.oval("accent", 0.5, 0.6 - ry - 0.06, 0.04, 0.04)
    s.place_mark(0.5, 0.62, 0.1)


def saucepan(s: Sketch, v: Vary) -> None:
    """A low pan with one long handle."""
    top, w = v(0.38, 0.46), v(0.48, 0.56)
    s.line("dark", [(w, top + 0.08), (0.97, top + v(-0.02, 0.08))], v(0.05, 0.08))
    s.box("body", 0.06, top, 0.06 + w, v(0.72, 0.82), 0.06)
    s.box("accent", 0.03, top - 0.03, 0.09 + w, top + 0.04, 0.03)
    s.poly("body", [(0.08, top - 0.03), (0.06 + w / 2, top - v(0.1, 0.16)), (0.04 + w, top - 0.03)])
    s.oval("dark", 0.06 + w / 2, top - 0.15, 0.045, 0.03)
    s.place_mark(0.06 + w / 2, top + 0.19, 0.09)


def dining_chair(s: Sketch, v: Vary) -> None:
    """A chair seen from the front side: back, seat, four legs."""
    seat, w = v(0.5, 0.58), v(0.24, 0.3)
    for x in (0.5 - w, 0.5 + w):
        s.line("accent", [(x * 0.9 + 0.07, seat), (x * 0.9 + 0.07, 0.84)], 0.035)
    s.box("body", 0.5 - w * 0.9, 0.06, 0.5 + w * 0.9, seat - v(0.06, 0.14), v(0.02, 0.12))
    for x in (0.52 - w, 0.48 + w):
        s.line("accent", [(x, 0.3), (x, seat + 0.02)], 0.04)
    s.poly("body", [(0.53 - w, seat - 0.03), (0.47 + w, seat - 0.03), (0.52 + w, seat + 0.09), (0.48 - w, seat + 0.09)])
    for x in (0.51 - w, 0.49 + w):
        s.line("accent", [(x, seat + 0.09), (x, 0.95)], 0.045)
    s.place_mark(0.5, 0.25, 0.09)


def armchair(s: Sketch, v: Vary) -> None:
    """A soft chair with arms."""
    arm, top = v(0.42, 0.5), v(0.1, 0.2)
    for x in (0.2, 0.8):
        s.line("accent", [(x, 0.85), (x, 0.95)], 0.05)
    s.box("body", 0.2, top, 0.8, 0.8, v(0.06, 0.18))
    s.box("inside", 0.22, 0.56, 0.78, 0.7, 0.04)
    s.box("body", 0.06, arm, 0.25, 0.88, v(0.04, 0.09))
    s.box("body", 0.75, arm, 0.94, 0.88, 0.06)
    s.box("body", 0.24, 0.68, 0.76, 0.88, 0.04)
    s.place_mark(0.5, 0.36, 0.1)


def stool(s: Sketch, v: Vary) -> None:
    """A round seat on three legs."""
    w, y = v(0.22, 0.32), v(0.2, 0.34)
    spread = v(0.2, 0.34)
    for x in (-spread, 0.02, spread):
        s.line("accent", [(0.5 + x * 0.6, y), (0.5 + x, 0.94)], 0.05)
    s.line("accent", [(0.5 - spread * 0.85, 0.72), (0.5 + spread * 0.85, 0.72)], 0.03)
    s.box("body", 0.5 - w, y - 0.02, 0.5 + w, y + v(0.1, 0.18), 0.05)
    s.oval("body", 0.5, y, w, 0.08)
    s.place_mark(0.5, y + 0.07, 0.06)


def side_table(s: Sketch, v: Vary) -> None:
    """A round top on one foot."""
    w, y = v(0.32, 0.42), v(0.24, 0.36)
    s.box("accent", 0.46, y, 0.54, 0.88)
    s.profile("accent", [(0.05, 0.82), (v(0.18, 0.28), 0.92), (0.2, 0.94)])
    s.box("body", 0.5 - w, y - 0.01, 0.5 + w, y + v(0.14, 0.24), 0.05)
    s.oval("body", 0.5, y, w, 0.09)
    s.place_mark(0.5, y + 0.12, 0.06)


def desk(s: Sketch, v: Vary) -> None:
    """A table top with legs and a block of drawers."""
    top, block = v(0.28, 0.38), v(0.24, 0.36)
    s.line("accent", [(0.1, top), (0.1, 0.88)], 0.05)
    s.box("body", 0.94 - block, top, 0.94, v(0.76, 0.86))
    for i in range(2):
        s.box("accent", 0.98 - block, top + 0.14 + 0.17 * i, 0.9, top + 0.18 + 0.17 * i)
    s.line("accent", [(0.9, 0.76), (0.9, 0.88)], 0.05)
    s.box("body", 0.03, top - 0.06, 0.97, top + 0.06, 0.01)
    s.place_mark(0.35, top, 0.055)


def table_lamp(s: Sketch, v: Vary) -> None:
    """A shade on a bellied foot."""
    low = v(0.44, 0.52)
    s.profile("body", [(v(0.12, 0.2), 0.08), (v(0.26, 0.34), low)])
    s.box("dark", 0.485, low, 0.515, 0.62)
    s.profile("accent", [(0.03, 0.58), (v(0.1, 0.2), 0.74), (0.06, 0.86)], curved=True)
    s.box("accent", 0.36, 0.86, 0.64, 0.93, 0.02)
    s.place_mark(0.5, 0.3, 0.09)


def floor_lamp(s: Sketch, v: Vary) -> None:
    """A bent pole on a flat foot, the shade to one side."""
    reach = v(0.66, 0.76)
    s.line("accent", [(0.3, 0.92), (0.3, 0.4), (0.36, 0.12), (reach, 0.1)], 0.03, curved=True)
    s.oval("accent", 0.3, 0.93, v(0.14, 0.2), 0.035)
    s.profile("body", [(0.05, 0.1), (v(0.14, 0.22), v(0.34, 0.42))], x=reach)
    s.oval("light", reach, 0.4, 0.05, 0.04)
    s.place_mark(reach, 0.26, 0.06)


def pendant_lamp(s: Sketch, v: Vary) -> None:
    """A dome that hangs from a wire."""
    y, w = v(0.3, 0.4), v(0.34, 0.44)
    s.line("dark", [(0.5, 0.02), (0.5, y)], 0.02)
    s.oval("light", 0.5, y + 0.34, 0.1, 0.09)
    s.profile("body", [(0.05, y), (w * 0.7, y + 0.1), (w * 0.95, y + 0.24), (w, y + 0.32)], curved=True)
    s.box("accent", 0.44, y - 0.06, 0.56, y + 0.02, 0.02)
    s.place_mark(0.5, y + 0.19, 0.09)


def vase(s: Sketch, v: Vary) -> None:
    """A bellied vase with a neck."""
    neck, belly = v(0.07, 0.12), v(0.2, 0.3)
    s.profile("body", [(neck * 1.6, 0.08), (neck, 0.2), (belly, v(0.46, 0.62)), (0.13, 0.92)], curved=True)
    s.oval("inside", 0.5, 0.08, neck * 1.6, 0.03)
    s.profile("accent", [(0.13, 0.9), (0.15, 0.95)])
    s.place_mark(0.5, 0.55, 0.1)


def plant_pot(s: Sketch, v: Vary) -> None:
    """A pot with a rim and leaves."""
    w, top = v(0.22, 0.28), v(0.48, 0.56)
    for dx, y in ((-0.22, 0.22), (0.22, 0.2), (-0.1, 0.08), (0.11, 0.06)):
        tip = (0.5 + dx * v(0.8, 1.3), y)
        bend = (0.5 + dx * 0.9 - 0.08, (y + top) / 2)
        s.poly("leaf", [(0.5, top), bend, tip, (0.5 + dx * 0.9 + 0.08, (y + top) / 2)], curved=True)
    s.profile("body", [(w, top + 0.06), (w * v(0.6, 0.8), 0.94)])
    s.box("accent", 0.48 - w, top - 0.02, 0.52 + w, top + 0.08, 0.02)
    s.place_mark(0.5, 0.76, 0.09)


def cushion(s: Sketch, v: Vary) -> None:
    """A pillow with pinched corners."""
    pinch = v(0.05, 0.1)
    for paint, a, b in (("accent", 0.07, 0.93), ("body", 0.1, 0.9)):
        low, high = a + pinch, b - pinch
        s.poly(paint, [(a, a), (0.5, low), (b, a), (high, 0.5), (b, b), (0.5, high), (a, b), (low, 0.5)])
    s.place_mark(0.5, 0.5, 0.12)


def wall_clock(s: Sketch, v: Vary) -> None:
    """A round clock."""
    face = v(0.27, 0.35)
    s.oval("body", 0.5, 0.5, 0.44, 0.44)
    s.oval("light", 0.5, 0.5, face, face)
    for dx, dy in ((0, -1), (1, 0), (0, 1), (-1, 0)):
        s.line("dark", [(0.5 + dx * face * 0.8, 0.5 + dy * face * 0.8), (0.5 + dx * face, 0.5 + dy * face)], 0.025)
    s.line("accent", [(0.5, 0.5), (0.5 + v(-0.14, 0.14), 0.34)], 0.035)
    s.line("accent", [(0.5, 0.5), (0.5 + v(0.1, 0.2), 0.5 + v(-0.1, 0.1))], 0.03)
    s.place_mark(0.5, 0.62, 0.06)


def perfume(s: Sketch, v: Vary) -> None:
    """A square flacon with a cap."""
    top, w = v(0.36, 0.46), v(0.22, 0.32)
    s.box("accent", 0.4, 0.1, 0.6, top - 0.06, v(0.01, 0.06))
    s.box("dark", 0.44, top - 0.08, 0.56, top + 0.02)
    s.box("body", 0.5 - w, top, 0.5 + w, 0.92, v(0.02, 0.12))
    s.place_mark(0.5, 0.67, 0.11)


def lipstick(s: Sketch, v: Vary) -> None:
    """A slanted stick in a case."""
    top = v(0.08, 0.16)
    s.poly("body", [(0.4, 0.5), (0.4, top + v(0.06, 0.14)), (0.6, top), (0.6, 0.5)])
    s.box("light", 0.37, 0.42, 0.63, 0.58)
    s.box("body", 0.33, 0.56, 0.67, 0.94, 0.02)
    s.box("accent", 0.33, 0.56, 0.67, v(0.61, 0.66))
    s.place_mark(0.5, 0.79, 0.08)


def cream_jar(s: Sketch, v: Vary) -> None:
    """A low jar with a wide lid."""
    lid, w = v(0.44, 0.54), v(0.32, 0.4)
    s.box("body", 0.5 - w, lid - 0.02, 0.5 + w, v(0.78, 0.88), v(0.06, 0.14))
    s.box("accent", 0.47 - w, v(0.26, 0.34), 0.53 + w, lid, 0.03)
    s.place_mark(0.5, 0.66, 0.09)


def pump_bottle(s: Sketch, v: Vary) -> None:
    """A lotion bottle with a pump."""
    w, top = v(0.17, 0.24), v(0.34, 0.42)
    s.line("accent", [(0.5, 0.3), (0.5, 0.1), (v(0.66, 0.76), 0.12)], 0.05)
    s.box("accent", 0.42, top - 0.12, 0.58, top)
    s.box("body", 0.5 - w, top - 0.02, 0.5 + w, 0.94, v(0.04, 0.14))
    s.box("light", 0.53 - w, 0.7, 0.47 + w, 0.86)
    s.place_mark(0.5, 0.57, 0.09)
