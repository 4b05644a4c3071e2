"""MUGE, as Chinese-CLIP lays it out: `{split}_imgs.tsv` (id TAB base64) and `{split}_texts.jsonl`.

A line of texts: {"text_id", "text", "image_ids": [...]}. A listing is a picture and nothing else, a query a text. Every
split is a part, for its texts are put to its own pictures: "train" holds triplets to train on, one for each picture of
a text; in the others a text asks once and every picture it names is relevant. Texts without image_ids (the published
test set keeps them back) are counted as `queries_without_answer`. Pictures stay in the file and are read from there.
"""

import pathlib
from typing import Any, NamedTuple

from moon_jax.config import DataConfig
from moon_jax.data.policy import is_number
from moon_jax.data.records import DataError, Dataset, ImageRef, Product, Query
from moon_jax.data.sources import files, lines
from moon_jax.data.sources.embedded import Base64Image
from moon_jax.data.sources.lines import Reading, RecordError
from moon_jax.data.split import Row, assemble

IMAGES, TEXTS = "_imgs.tsv", "_texts.jsonl"


class Split(NamedTuple):
    """The two files of a split; `texts` may be missing."""

    name: str
    images: pathlib.Path
    texts: pathlib.Path


def read(config: DataConfig, reading: Reading) -> Dataset:
    """Returns the data set of a folder in MUGE's layout.

    Raises:
        DataError: see `moon_jax.data.sources.read`.
    """
    folder, found = files.matching(config, f"*{IMAGES}", f"{{split}}{IMAGES}")
    splits = [Split(p.name.removesuffix(IMAGES), p, p.with_name(p.name.removesuffix(IMAGES) + TEXTS)) for p in found]
    names = [split.name for split in splits]
    if unknown := set(config.parts) - set(names):
        raise DataError(f"config.data.parts: {folder} has no part {', '.join(sorted(unknown))}; it has {names}")
    products: dict[str, Product] = {}
    rows: list[Row] = []
    for split in splits:
        if config.parts and split.name not in config.parts:
            continue
        pictures = _Pictures(split, products)
        for _ in reading.apply(split.images, _with_offsets(reading, split.images), pictures):
            pass
        if split.texts.exists():
            texts = _Texts(split, products, reading)
            for answers in reading.parse(split.texts, texts):
                rows += answers
    return assemble(rows, products, config, reading.fingerprint(), reading.report())


def _with_offsets(reading: Reading, path: pathlib.Path) -> Any:
    """Yields (number, (offset, line))."""
    offset = 0
    with reading.open(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, (offset, line)
            offset = file.position


class _Pictures:
    """Reads a line of pictures."""

    def __init__(self, split: Split, products: dict[str, Product]):
        self._split, self._products = split, products
        self._path = str(split.images)

    def __call__(self, _: int, entry: tuple[int, bytes]) -> None:
        offset, line = entry
        lines.check_length(line)
        name, tab, picture = line.partition(b"\t")
        image_id, length = lines.text(lines.decode(name), "id"), len(picture.rstrip())
        if not tab or not image_id or not length:
            raise RecordError("line", f"must be an id, a tab and a picture in base64, is {lines.short(line[:60])}")
        product_id = _product_id(self._split, image_id)
        if product_id in self._products:
            raise RecordError("id", f"{image_id!r} is there twice")
        place = Base64Image(self._path, offset + len(name) + 1, length)
        self._products[product_id] = Product(product_id, images=(ImageRef(place),), part=self._split.name)


class _Texts:
    """Reads a line of texts."""

    def __init__(self, split: Split, products: dict[str, Product], reading: Reading):
        self._split, self._products, self._reading = split, products, reading

    def __call__(self, number: int, record: dict[str, Any]) -> list[Row]:
        text = lines.text(record.get("text"), "text")
        if not text:
            raise RecordError("text", "is empty")
        given = record.get("text_id")
        row_id = str(given) if is_number(given) else lines.text(given, "text_id") or str(number)
        ids = [_product_id(self._split, _image_id(value)) for value in lines.several(record.get("image_ids"))]
        there = list(dict.fromkeys(i for i in ids if i in self._products))
        if len(there) < len(set(ids)) and not self._reading.limit:
            lost = next(i for i in ids if i not in self._products)
            raise RecordError("image_ids", f"{lost.partition(':')[2]!r} is not in {self._split.images.name}")
        if not there:
            self._reading.counts["queries_without_answer"] += 1
            return []
        query, name = Query(text, None), self._split.name
        if name == "train":
            return [Row(f"{name}:{row_id}:{i}", True, name, query, item, None) for i, item in enumerate(there)]
        return [Row(f"{name}:{row_id}", False, name, query, there[0], None, frozenset(there))]


def _image_id(value: Any) -> str:
    return str(value) if is_number(value) else lines.text(value, "image_ids")


def _product_id(split: Split, image_id: str) -> str:
    return f"{split.name}:{image_id}"
