"""Attention heat maps: the PNG files of a folder, made smaller and put into the page with their captions."""

import base64
import io
import json
import pathlib

from PIL import Image

from moon_jax.evaluation.heat.folder import INDEX
from moon_jax.evaluation.page.html import Html, el
from moon_jax.evaluation.page.methods import short

SIDE_PX, QUALITY = 1320, 82


def attention(folder: pathlib.Path, budget: int) -> tuple[Html | None, int]:
    """Returns the section's inside (None without pictures) and how many had no room.

    Args:
        folder: that `python -m moon_jax.heatmap` wrote; the ids of its records stand in heatmaps.json.
        budget: of bytes as base64.

    Raises:
        ValueError: a picture cannot be read.
    """
    figures, left_out, titles = [], 0, _titles(folder / INDEX)
    for path in sorted(folder.glob("*.png")):
        url, (wide, high) = _picture(path)
        if len(url) > budget:
            left_out += 1
            continue
        budget -= len(url)
        number, _, view = path.stem.partition("_")
        title = " · ".join(filter(None, (titles.get(number, number), view)))
        said = f"Attention map: {short(title, 160)}"
        image = el("img", src=url, alt=said, width=wide, height=high, loading="lazy")  # its place is kept until then
        figures.append(el("figure", image, class_="chart"))  # the sheets have the id as their heading
    return (el("div", *figures, class_="sheets") if figures else None), left_out


def _titles(path: pathlib.Path) -> dict[str, str]:
    """Returns the id of each record by the number in its file name."""
    if not path.exists():
        return {}
    try:
        records = json.loads(path.read_text(encoding="utf-8"))["records"]
        return {pathlib.Path(record["png"]).stem: str(record["id"]) for record in records}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not an index of heat maps ({type(error).__name__}: {error})") from None


def _picture(path: pathlib.Path) -> tuple[str, tuple[int, int]]:
    """Returns a picture as the URL of a JPEG, and its width and height in pixels."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            image = image.convert("RGB")
    except OSError as error:
        raise ValueError(f"{path} cannot be read as a PNG: {error}") from None
    image.thumbnail((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode(), image.size
