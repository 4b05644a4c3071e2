"""Silhouettes of things to wear and to carry."""

from moon_jax.data.catalogue.sketch import Point, Sketch, Vary


def _mirrored(right: list[Point]) -> list[Point]:
    return right + [(1 - x, y) for x, y in reversed(right)]


def t_shirt(s: Sketch, v: Vary) -> None:
    """A shirt with short sleeves."""
    sleeve, w = v(0.36, 0.46), v(0.22, 0.26)
    s.poly("body", _mirrored([(0.6, 0.12), (0.74, 0.16), (0.96, sleeve), (0.83, sleeve + 0.1), (0.5 + w, 0.36),
                              (0.5 + w, v(0.82, 0.92))]))  # fmt: skip
    s.poly("inside", [(0.4, 0.12), (0.6, 0.12), (0.5, v(0.2, 0.3))], curved=False)
    s.line("accent", [(0.4, 0.12), (0.5, 0.22), (0.6, 0.12)], 0.03)
    s.place_mark(0.5, 0.44, 0.1)


def long_sleeve(s: Sketch, v: Vary) -> None:
    """A buttoned shirt with long sleeves and a collar."""
    hem = v(0.84, 0.92)
    s.poly("body", _mirrored([(0.58, 0.1), (0.72, 0.14), (0.95, v(0.68, 0.78)), (0.85, 0.8), (0.72, 0.4), (0.72, hem)]))
    for x in (0.9, 0.1):
        s.line("accent", [(x - 0.05, 0.78), (x + 0.05, 0.75 if x > 0.5 else 0.8)], 0.04)
    s.line("accent", [(0.5, 0.14), (0.5, hem)], 0.035)
    s.poly("accent", [(0.5, 0.24), (0.4, 0.08), (0.46, 0.06), (0.5, 0.14), (0.54, 0.06), (0.6, 0.08)])
    s.place_mark(0.61, 0.4, 0.07)


def hoodie(s: Sketch, v: Vary) -> None:
    """A hooded sweater with a pouch."""
    s.poly(
        "body", _mirrored([(0.62, 0.2), (0.76, 0.26), (0.93, v(0.72, 0.8)), (0.82, 0.84), (0.72, 0.5), (0.72, 0.92)])
    )
    s.oval("body", 0.5, 0.2, v(0.15, 0.2), 0.15)
    s.oval("inside", 0.5, 0.22, 0.1, 0.1)
    s.profile("accent", [(0.11, 0.68), (v(0.15, 0.2), 0.84)])
    s.line("light", [(0.46, 0.32), (0.45, v(0.44, 0.52))], 0.02)
    s.line("light", [(0.54, 0.32), (0.55, 0.48)], 0.02)
    s.place_mark(0.5, 0.56, 0.08)


def tank_top(s: Sketch, v: Vary) -> None:
    """A top without sleeves."""
    w = v(0.22, 0.28)
    s.poly("body", _mirrored([(0.6, 0.28), (0.61, 0.08), (0.68, 0.08), (0.5 + w, 0.4), (0.5 + w, v(0.84, 0.92))]))
    s.line("accent", [(0.39, 0.08), (0.42, 0.28), (0.5, 0.31), (0.58, 0.28), (0.61, 0.08)], 0.03)
    s.place_mark(0.5, 0.5, 0.1)


def trousers(s: Sketch, v: Vary) -> None:
    """Long trousers."""
    hem, cuff = v(0.12, 0.2), v(0.02, 0.06)
    s.poly("body", _mirrored([(0.68, 0.06), (0.72 + cuff, 0.94), (0.72 + cuff - hem, 0.94), (0.5, 0.34)]))
    s.box("accent", 0.31, 0.05, 0.69, 0.12)
    s.line("inside", [(0.5, 0.12), (0.5, 0.34)], 0.015)
    s.place_mark(0.61, 0.24, 0.06)


def shorts(s: Sketch, v: Vary) -> None:
    """Short trousers."""
    low = v(0.66, 0.78)
    s.poly("body", _mirrored([(0.74, 0.2), (0.88, low), (v(0.54, 0.6), low + 0.04), (0.5, 0.48)]))
    s.box("accent", 0.25, 0.18, 0.75, 0.26, 0.02)
    s.line("light", [(0.48, 0.24), (0.46, 0.38)], 0.02)
    s.place_mark(0.7, 0.58, 0.08)


def skirt(s: Sketch, v: Vary) -> None:
    """A flared skirt."""
    hem, low = v(0.3, 0.43), v(0.72, 0.88)
    waves = [(0.5 + hem * (1 - i / 4), low + (0.03 if i % 2 else 0.0)) for i in range(9)]
    s.poly("body", [(0.33, 0.18), (0.67, 0.18), *waves])
    for x in (-0.5, 0.0, 0.5):
        s.line("inside", [(0.5 + 0.12 * x, 0.3), (0.5 + hem * x, low)], 0.012)
    s.box("accent", 0.32, 0.14, 0.68, 0.22)
    s.place_mark(0.42, 0.5, 0.08)


def dress(s: Sketch, v: Vary) -> None:
    """A dress with straps and a belt."""
    waist, hem = v(0.4, 0.5), v(0.26, 0.38)
    for x in (0.4, 0.6):
        s.line("body", [(x, 0.04), (x, 0.2)], 0.035)
    s.profile("body", [(0.15, 0.16), (0.11, waist), (hem * 0.8, 0.75), (hem, 0.94)])
    s.profile("accent", [(0.118, waist - 0.03), (0.118, waist + 0.03)])
    s.place_mark(0.5, 0.29, 0.07)


def cap(s: Sketch, v: Vary) -> None:
    """A baseball cap, peak to the right."""
    top = v(0.24, 0.34)
    s.poly("body", [(0.12, 0.66), (0.14, 0.42), (0.4, top), (0.62, 0.42), (0.66, 0.66)], curved=True)
    s.poly("accent", [(0.6, 0.6), (0.8, 0.6), (v(0.92, 0.98), 0.7), (0.9, 0.74), (0.6, 0.7)], curved=True)
    s.line("inside", [(0.39, top), (0.45, 0.66)], 0.015)
    s.oval("accent", 0.39, top, 0.035, 0.025)
    s.place_mark(0.52, 0.5, 0.09)


def beanie(s: Sketch, v: Vary) -> None:
    """A knitted hat with a bobble."""
    brim = v(0.14, 0.22)
    s.oval("light", 0.5, 0.16, v(0.07, 0.12), 0.09)
    s.profile("body", [(0.06, 0.22), (0.28, 0.36), (0.34, 0.76)], curved=True)
    s.box("accent", 0.13, 0.84 - brim, 0.87, 0.84, 0.05)
    s.place_mark(0.5, 0.48, 0.09)


def sun_hat(s: Sketch, v: Vary) -> None:
    """A crown on a wide brim."""
    s.oval("body", 0.5, 0.66, 0.46, v(0.12, 0.18))
    s.profile("body", [(0.12, v(0.26, 0.34)), (0.22, 0.4), (0.25, 0.66)], curved=True)
    s.profile("accent", [(0.235, 0.52), (0.25, v(0.6, 0.66))])
    s.place_mark(0.5, 0.44, 0.07)


def sock(s: Sketch, v: Vary) -> None:
    """One sock, toe to the left."""
    w = v(0.12, 0.16)
    s.poly("body", [(0.6 - w, 0.08), (0.6 + w, 0.08), (0.62 + w, 0.7), (0.6, 0.84), (0.2, 0.92), (0.1, 0.8),
                    (0.2, 0.7), (0.58 - w, 0.56)])  # fmt: skip
    s.box("accent", 0.59 - w, 0.06, 0.61 + w, v(0.16, 0.24), 0.02)
    s.poly("accent", [(0.24, 0.69), (0.27, 0.91), (0.2, 0.92), (0.1, 0.8), (0.2, 0.7)])
    s.place_mark(0.61, 0.42, 0.08)


def tie(s: Sketch, v: Vary) -> None:
    """A neck tie."""
    w, low = v(0.1, 0.16), v(0.76, 0.84)
    s.poly("body", [(0.46, 0.2), (0.54, 0.2), (0.5 + w, low), (0.5, 0.96), (0.5 - w, low)])
    s.poly("accent", [(0.4, 0.05), (0.6, 0.05), (0.55, 0.22), (0.45, 0.22)])
    s.place_mark(0.5, 0.66, 0.06)


def sneaker(s: Sketch, v: Vary) -> None:
    """A sports shoe, toe to the right."""
    top, sole = v(0.3, 0.4), v(0.08, 0.13)
    s.poly("body", [(0.07, 0.7), (0.08, top), (0.2, top + 0.05), (0.34, top - 0.02), (0.58, 0.54), (0.88, 0.62),
                    (0.95, 0.74), (0.06, 0.74)])  # fmt: skip
    s.poly("accent", [(0.08, top), (0.16, top + 0.04), (0.17, 0.72), (0.07, 0.72)])
    for i in range(3):
        x, y = 0.38 + 0.08 * i, top + 0.04 + 0.05 * i
        s.line("light", [(x, y), (x + 0.09, y - 0.02 + 0.04)], 0.025)
    s.box("light", 0.04, 0.72, 0.97, 0.72 + sole, 0.04)
    s.place_mark(0.33, 0.6, 0.08)


def boot(s: Sketch, v: Vary) -> None:
    """An ankle boot, toe to the right."""
    top = v(0.1, 0.26)
    s.poly("body", [(0.2, top), (0.54, top), (0.54, 0.52), (0.82, 0.6), (0.92, 0.7), (0.92, 0.82), (0.17, 0.82)])
    s.box("dark", 0.15, 0.8, 0.94, 0.87, 0.02)
    s.box("dark", 0.15, 0.84, 0.36, v(0.92, 0.96))
    s.box("accent", 0.19, top - 0.02, 0.56, top + v(0.05, 0.12), 0.02)
    s.place_mark(0.37, 0.55, 0.09)


def high_heel(s: Sketch, v: Vary) -> None:
    """A pump on a high heel, toe to the right."""
    top = v(0.26, 0.36)
    s.poly("accent", [(0.1, 0.5), (0.22, 0.54), (0.16, 0.9), (v(0.1, 0.13), 0.9)])
    s.poly("body", [(0.08, top), (0.18, top + 0.1), (0.42, 0.62), (0.64, 0.66), (0.74, 0.64), (0.96, 0.84),
                    (0.94, 0.89), (0.62, 0.88), (0.38, 0.74), (0.18, 0.6), (0.08, 0.54)], curved=True)  # fmt: skip
    s.place_mark(0.74, 0.76, 0.055)


def slipper(s: Sketch, v: Vary) -> None:
    """A slide with one broad strap."""
    s.poly("accent", [(0.06, 0.62), (0.5, 0.62), (0.92, 0.66), (0.95, 0.76), (0.5, 0.78), (0.06, 0.76)], curved=True)
    x = v(0.44, 0.5)
    s.poly("body", [(x, 0.68), (x + 0.04, v(0.32, 0.4)), (0.74, 0.42), (0.88, 0.68)], curved=True)
    s.place_mark(0.67, 0.54, 0.08)


def backpack(s: Sketch, v: Vary) -> None:
    """A rucksack with a front pocket."""
    w, pocket = v(0.25, 0.31), v(0.54, 0.62)
    s.arc("dark", 0.5, 0.12, 0.09, 0.08, (180, 360), 0.03)
    for side in (-1, 1):
        s.line("accent", [(0.5 + side * w, 0.3), (0.5 + side * (w + 0.1), 0.5), (0.5 + side * w, 0.8)], 0.045, True)
    s.box("body", 0.5 - w, 0.1, 0.5 + w, 0.93, v(0.08, 0.18))
    s.box("accent", 0.54 - w, pocket, 0.46 + w, 0.87, 0.05)
    s.line("light", [(0.56 - w, pocket + 0.06), (0.44 + w, pocket + 0.06)], 0.015)
    s.place_mark(0.5, 0.35, 0.1)


def tote(s: Sketch, v: Vary) -> None:
    """An open shopping bag with two long handles."""
    top, w = v(0.38, 0.46), v(0.3, 0.38)
    s.arc("accent", 0.5, top + 0.02, w * v(0.45, 0.65), top - 0.05, (180, 360), 0.04)
    s.profile("body", [(w, top), (w * v(0.82, 1.05), 0.93)])
    s.box("inside", 0.5 - w, top, 0.5 + w, top + 0.04)
    s.place_mark(0.5, 0.67, 0.12)


def handbag(s: Sketch, v: Vary) -> None:
    """A bag with a flap and a short handle."""
    top, flap = v(0.38, 0.46), v(0.58, 0.68)
    s.arc("accent", 0.5, top + 0.02, v(0.18, 0.28), v(0.22, 0.3), (180, 360), 0.045)
    s.profile("body", [(0.32, top), (v(0.36, 0.44), 0.86)])
    s.poly("inside", [(0.18, top), (0.82, top), (0.72, flap), (0.5, flap + 0.06), (0.28, flap)])
    s.oval("accent", 0.5, flap + 0.05, 0.045, 0.035)
    s.place_mark(0.5, (top + flap) / 2 + 0.01, 0.075)


def suitcase(s: Sketch, v: Vary) -> None:
    """A trolley case with wheels."""
    w = v(0.24, 0.3)
    s.line("dark", [(0.42, 0.3), (0.42, 0.06), (0.58, 0.06), (0.58, 0.3)], 0.03)
    for x in (0.55 - w, 0.45 + w):
        s.oval("dark", x, 0.93, 0.04, 0.04)
    s.box("body", 0.5 - w, v(0.2, 0.28), 0.5 + w, 0.91, v(0.03, 0.1))
    for x in (-0.55, 0.55):
        s.line("accent", [(0.5 + x * w, 0.3), (0.5 + x * w, 0.86)], v(0.02, 0.05))
    s.place_mark(0.5, 0.56, 0.085)
