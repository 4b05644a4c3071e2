"""Small pictures inside the page: each is encoded once, as a class of the style sheet, under a bound of bytes."""

import base64
import io
from collections.abc import Mapping

from PIL import Image

from moon_jax.data import picture_files
from moon_jax.data.picture_files import ImageError
from moon_jax.data.records import ImageSource

SIDE_PX, QUALITY = 144, 74


class Pictures:
    """Pictures that the page shows.

    Args:
        budget: of bytes as base64, for all together; what comes after is not shown.
        side_px: of a picture's longer side.
    """

    def __init__(self, budget: int, side_px: int = SIDE_PX):
        self._left, self._side = budget, side_px
        self._classes: dict[ImageSource, str | None] = {}
        self._urls: list[tuple[str, str]] = []
        self.unreadable: list[str] = []
        self.over_budget = 0

    def class_of(self, source: ImageSource) -> str | None:
        """Returns the class that shows the picture as background; None if it cannot be read or there is no room."""
        if source not in self._classes:
            self._classes[source] = self._add(source)
        return self._classes[source]

    def styles(self) -> str:
        """Returns the rules of the style sheet."""
        return "\n".join(f".{name}{{background-image:url({url})}}" for name, url in self._urls)

    def about(self) -> Mapping[str, int]:
        """Returns how many pictures are in, were left out for want of room, could not be read; and their bytes."""
        size = sum(len(url) for _, url in self._urls)
        counts = {"shown": len(self._urls), "left_out": self.over_budget, "unreadable": len(self.unreadable)}
        return counts | {"bytes": size}

    def _add(self, source: ImageSource) -> str | None:
        try:
            url = _data_url(source, self._side)
        except ImageError as error:
            self.unreadable.append(str(error))
            return None
        if len(url) > self._left:
            self.over_budget += 1
            return None
        self._left -= len(url)
        name = f"p{len(self._urls)}"
        self._urls.append((name, url))
        return name


def _data_url(source: ImageSource, side_px: int) -> str:
    image = picture_files.load(source)
    scale = side_px / max(image.size)
    image = image.resize(tuple(max(1, round(side * scale)) for side in image.size), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
