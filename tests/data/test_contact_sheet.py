"""What the sheets show, looked up in their pixels."""

import numpy as np
from PIL import Image

from moon_jax.data.contact_sheet import BAR_COLOR, BOX_COLOR, GAP_PX, THUMB_PX, Cell, _fit, chart, contact_sheet, font
from moon_jax.data.histogram import histogram
from moon_jax.data.records import ImageRef


def at(sheet, column, x, y):
    """The colour at a place of a thumbnail in the first row."""
    return sheet.getpixel((GAP_PX + column * (THUMB_PX + GAP_PX) + x, GAP_PX + y))


def test_pictures_boxes_and_broken_ones(tmp_path):
    Image.new("RGB", (2 * THUMB_PX, THUMB_PX), (10, 200, 30)).save(tmp_path / "wide.png")
    box = (40.0, 40.0, 240.0, 120.0)
    cells = [
        Cell(ImageRef(str(tmp_path / "wide.png"), box), "query", "a coat"),
        Cell(ImageRef(str(tmp_path / "wide.png")), "positive", ""),
        Cell(ImageRef(str(tmp_path / "lost.png")), "negative", "hat"),
        Cell(None, "no negative", ""),
        Cell(ImageRef(str(tmp_path / "wide.png")), "query", "next row"),
    ]
    sheet = contact_sheet(cells, 4)
    assert sheet.width == 4 * (THUMB_PX + GAP_PX) + GAP_PX
    top = THUMB_PX // 4  # of a picture twice as wide as high
    assert at(sheet, 0, 5, THUMB_PX // 2) == at(sheet, 1, 5, THUMB_PX // 2) == (10, 200, 30)
    assert at(sheet, 0, 5, top - 3) == (255, 255, 255)
    for x, y in ((20, top + 40), (120, top + 40), (60, top + 20), (60, top + 60)):  # the box, at half its size
        assert at(sheet, 0, x, y) == BOX_COLOR
        assert at(sheet, 1, x, y) != BOX_COLOR
    assert at(sheet, 2, THUMB_PX // 2, THUMB_PX // 2) == BOX_COLOR  # the cross
    rows = np.asarray(sheet)[:, GAP_PX + 5]
    assert (rows == (10, 200, 30)).all(axis=1).sum() > THUMB_PX // 2  # the second row has a picture, too


def test_captions_stay_within_their_column():
    long = "a very long title of a product that nobody can read on a sheet, with 红色 signs " * 5
    for text in (long, "x" * 500, "红" * 300, ""):
        found = _fit(text, 3)
        assert 1 <= len(found) <= 3
        assert all(font().getlength(line) <= THUMB_PX for line in found)
    assert " ".join(_fit("short words only here", 3)) == "short words only here"
    assert _fit("a\x00b\nc", 3) == ["a b c"]


def test_bars_are_as_high_as_their_counts():
    one = histogram("x", [0] * 10 + [1] * 5 + [2] * 0 + [3] * 10)
    pixels = np.asarray(chart([one], columns=1))
    blue = (pixels == BAR_COLOR).all(axis=2)
    step = (pixels.shape[1] - 2 * GAP_PX) / 4
    heights = [int(blue[:, int(GAP_PX + (i + 0.5) * step)].sum()) for i in range(4)]
    assert heights[0] == heights[3]
    assert abs(heights[1] - heights[0] / 2) <= 2
    assert heights[2] <= 1
