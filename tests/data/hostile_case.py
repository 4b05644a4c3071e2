"""One hostile input in the place of a sound listing, and what must become of it."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
from image_kinds import noise

HEIGHT, WIDTH = 70, 90
PIXELS = noise(HEIGHT, WIDTH)  # what a sound listing shows
TITLE = "a sound title"


@dataclasses.dataclass(frozen=True)
class Case:
    """One hostile input.

    Attributes:
        group, what: as the table names it.
        make: writes files into a folder; returns the line of the record.
        becomes: "used", "used without its crop", "skipped while reading", "skipped while loading" or "left out".
        note: how it is used.
        text, shown, core: what must arrive of it: the title (None: its beginning, cut), pixels, pixels of the crop.
    """

    group: str
    what: str
    make: Callable[[Any], bytes]
    becomes: str = "used"
    note: str = ""
    text: str | None = TITLE
    shown: np.ndarray | None = dataclasses.field(default_factory=lambda: PIXELS)
    core: np.ndarray | None = None


def record(image: Any = "sound.png", title: Any = TITLE, box: Any = None, **changes: Any) -> dict[str, Any]:
    positive = {"item_id": "hostile", "title": title, "image": image, "image_bbox": box}
    query = {"text": "what a customer asks", "image": None}
    negative = {"item_id": "sound 0", "title": "sound title 0", "images": ["sound.png"]}
    return {"id": "t-hostile", "query": query, "positive": positive, "negative": negative} | changes


def line(*args: Any, **changes: Any) -> bytes:
    return json.dumps(record(*args, **changes)).encode()


def raw(place: str, content: bytes, **changes: Any) -> bytes:
    """A record with bytes in it that json.dumps would not write."""
    fields = {"title": {"title": "@"}, "box": {"box": "@"}, "image": {"image": "@"}}[place]
    said = json.dumps(record(**fields, **changes)).encode()
    assert said.count(b'"@"') == 1
    return said.replace(b'"@"', content)
