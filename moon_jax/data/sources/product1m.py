"""Product1M: lines `id#####title#####url#####url2#####label#;#label` in product1m_{train,dev,gallery,test}_*.txt.

Pictures are where the first reference points; one that is an address stands for the file `{id}.jpg` where
config.data.image_folder is set: else the address stays, for an image store. Lines of the training file may end before
the labels.

The lines of dev and test become test queries (picture and title), those of the gallery the
listings that are searched, and relevant is what shares a label. Training lines are listings without queries: the part
"catalogue".
"""

import pathlib
import re

from moon_jax.config import DataConfig
from moon_jax.data.records import DataError, Dataset, Labelled, Product
from moon_jax.data.sources import by_label, files, lines
from moon_jax.data.sources.lines import Reading, RecordError

BETWEEN = "#####"
_ROLE = re.compile(r"(?:^|[^a-z])(train|dev|gallery|test)(?:[^a-z]|$)")


def read(config: DataConfig, reading: Reading) -> Dataset:
    """Returns the data set of a folder of Product1M's text files.

    Raises:
        DataError: see `moon_jax.data.sources.read`.
    """
    folder, found = files.matching(config, "*.txt", "text files of Product1M")
    roles = {path: role for path in found if (role := role_of(path.name))}
    if not roles:
        there = ", ".join(path.name for path in found[:20])
        raise DataError(f"{folder}: no train, dev, gallery or test in the names of the text files ({there})")
    pictures = files.image_folder(config, folder) if config.image_folder else None
    items: dict[str, list[Labelled]] = {"train": [], "dev": [], "gallery": [], "test": []}
    for path, role in roles.items():
        items[role] += reading.apply(path, reading.lines(path), _Lines(folder, pictures, role))
    queries = items["dev"] + items["test"]
    if queries and not items["gallery"]:
        queries, items["train"] = [], items["train"] + queries  # nothing to search: all is a catalogue
    others = [item.product for item in items["train"]]
    return by_label.dataset(queries, items["gallery"], others, files.only_part(config, folder), config, reading)


def role_of(name: str) -> str:
    """Returns "train", "dev", "gallery" or "test" by the name of a file, "" without one of these words."""
    match = _ROLE.search(name.lower())
    return match[1] if match else ""


class _Lines:
    """Reads the lines of one file."""

    def __init__(self, folder: pathlib.Path, pictures: pathlib.Path | None, role: str):
        self._folder, self._pictures, self._role = folder, pictures, role
        self._here: set[str] = set()

    def __call__(self, _: int, line: bytes) -> Labelled:
        fields = [lines.text(field, "line") for field in lines.decode(line).split(BETWEEN)]
        needed = 4 if self._role == "train" else 5
        if not needed <= len(fields) <= 5:
            raise RecordError(
                "line", f"{len(fields)} fields between {BETWEEN}, must be {needed}: {lines.short(fields)}"
            )
        item_id, title, reference = fields[:3]
        if not item_id:
            raise RecordError("id", "is empty")
        if item_id in self._here:
            raise RecordError("id", f"{item_id!r} is listed twice")
        if lines.is_url(reference) and self._pictures is not None:
            reference = f"{item_id}.jpg"
        image = lines.image(reference, None, self._pictures or self._folder, "url")
        labels = tuple(label.strip() for label in (fields[4] if len(fields) == 5 else "").split("#;#") if label.strip())
        if not labels and self._role != "train":
            raise RecordError("label", f"of {item_id!r} is empty")
        if not title and image is None:
            raise RecordError("line", "has neither a title nor a picture")
        self._here.add(item_id)
        return Labelled(Product(item_id, title, images=(image,) if image else ()), labels)
