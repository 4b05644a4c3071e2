"""Boxes from a file, for pictures that came without: what `moon_jax.detect` writes, or another detector.

One JSON object a line: "image" (the path as in the records, relative to the folder where pictures start, or a URL),
"box" ([x1, y1, x2, y2] in pixels of the upright picture, null = none), "title" (what was looked for: the box is for the
listing of that title, or the query with that text) and "status". Without a "title" the box is for every use of the
picture, without a "status" it counts as "given". Other keys are not read.
"""

import collections
import dataclasses
import hashlib
import pathlib
from typing import Any

from moon_jax.config import DataConfig
from moon_jax.data import store_refs
from moon_jax.data.records import Box, DataError, Dataset, ImageRef, replace_images
from moon_jax.data.sources import lines
from moon_jax.data.sources.lines import Reading, RecordError
from moon_jax.data.whole_file import UNFINISHED


def fill(dataset: Dataset, config: DataConfig, folder: pathlib.Path) -> Dataset:
    """Returns the data set with the boxes of `config.boxes` where none was shipped; shipped ones stay as they are.

    The report counts the pictures that got a box by its status, and those that are still without. The fingerprint
    covers the file.

    Args:
        dataset: as its reader gives it, before an image store is attached.
        config: `boxes`, `on_error`, `max_skipped_share`.
        folder: that the paths in the file are relative to.

    Raises:
        DataError: there is no such file, or a line of it cannot be used and `config.on_error` is "raise".
    """
    path = pathlib.Path(config.boxes).expanduser().absolute()
    if not path.is_file():
        started = path.with_name(path.name + UNFINISHED).exists()
        hint = "; it is not finished yet: the same `python -m moon_jax.detect` again goes on" if started else ""
        raise DataError(f"config.data.boxes: there is no file {path}{hint}")
    reading, known = Reading(config), {}
    for key, box, status in reading.parse(path, lambda _, record: _line(record, folder)):
        known.setdefault(key, (box, reading.same(status)))
    counts: collections.Counter[str] = collections.Counter()

    def new(ref: ImageRef, title: str) -> ImageRef:
        if ref.box is not None:
            counts["pictures_with_shipped_box"] += 1
            return ref
        image = store_refs.key_of(ref.path, folder)
        box, status = known.get(_key(image, title)) or known.get(_key(image, None)) or (None, "")
        counts[f"boxes_{status}" if box is not None else "pictures_without_box"] += 1
        return ref if box is None else ImageRef(ref.path, box)

    dataset = replace_images(dataset, new)
    kept = {name: count for name, count in dataset.report.items() if not name.endswith("_pictures_without_box")}
    return dataclasses.replace(
        dataset,
        fingerprint=hashlib.sha256(f"{dataset.fingerprint}\0{reading.fingerprint()}".encode()).hexdigest(),
        report=kept | counts | {"box_lines": reading.report()["records"]},
    )


def _line(record: dict[str, Any], folder: pathlib.Path) -> tuple[bytes, Box | None, str]:
    """Returns the (key, box, status) of a line."""
    image = lines.text(record.get("image"), "image")
    if not image:
        raise RecordError("image", "a box needs one")
    title = record.get("title")
    title = None if title is None else lines.text(title, "title")
    image = image if lines.is_url(image) else store_refs.key_of(str(folder / image), folder)
    return (
        _key(image, title),
        lines.box(record.get("box"), "box"),
        lines.text(record.get("status"), "status") or "given",
    )


def _key(image: str, title: str | None) -> bytes:
    said = f"{image}\0" if title is None else f"{image}\0{title}\0"
    return hashlib.sha256(said.encode("utf-8", "surrogatepass")).digest()[:16]
