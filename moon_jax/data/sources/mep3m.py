"""MEP-3M: a JSON array of products {class_id, class_name, sub_class_*, subsub_class_*, img_path, title, OCR}.

A catalogue: products without queries. The class names are the category, "FALSE" meaning none; OCR, the text that was
read off the picture, is the description. Written from the published description, no sample of it was at hand: what
differs is refused with the field's name.
"""

import pathlib

from moon_jax.config import DataConfig
from moon_jax.data.records import Dataset, Product, identity
from moon_jax.data.sources import files, lines
from moon_jax.data.sources.json_entries import Entry, entries
from moon_jax.data.sources.lines import Reading, RecordError
from moon_jax.data.split import assemble

LEVELS = ("class_name", "sub_class_name", "subsub_class_name")
NONE = "FALSE"


def read(config: DataConfig, reading: Reading) -> Dataset:
    """Returns the products of MEP-3M's JSON files; it has no triplets.

    Raises:
        DataError: see `moon_jax.data.sources.read`.
    """
    folder, found = files.matching(config, "*.json", "JSON files of MEP-3M")
    read_one = _Entries(files.image_folder(config, folder), files.only_part(config, folder), reading)
    products: dict[str, Product] = {}
    for path in found:
        for product in reading.apply(path, entries(reading, path), read_one):
            reading.counts["repeated_products"] += product.id in products
            products.setdefault(product.id, product)
    return assemble([], products, config, reading.fingerprint(), reading.report())


class _Entries:
    """Reads one product."""

    def __init__(self, pictures: pathlib.Path, part: str, reading: Reading):
        self._pictures, self._part, self._reading = pictures, part, reading

    def __call__(self, _: int, entry: Entry) -> Product:
        said = lines.group(entry.checked(), "entry")
        title, path = lines.text(said.get("title"), "title"), lines.text(said.get("img_path"), "img_path")
        image = lines.image(path, None, self._pictures, "img_path")
        if not title and image is None:
            raise RecordError("entry", f"has neither title nor img_path; it has {', '.join(said) or 'nothing'}")
        levels = [said.get(level) for level in LEVELS]
        named = (lines.text(level, key) for key, level in zip(LEVELS, levels, strict=True) if level is not False)
        read_off = (lines.text(line, "OCR") for line in lines.several(said.get("OCR")))
        return Product(
            identity(title, path),
            title,
            " ".join(line for line in read_off if line),
            (image,) if image else (),
            self._reading.same(tuple(level for level in named if level and level.upper() != NONE)),
            part=self._part,
        )
