"""Writes the benchmark in our own layout: train.jsonl, test.jsonl, items.jsonl (see moon_jax/data/sources/jsonl.py)."""

import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from tqdm import tqdm

from moon_jax.data.records import DataError, ImageRef, Product
from moon_jax.data.sources import lines
from moon_jax.data.sources.jsonl import LEVELS

NO_LEVEL = "none"  # in a report, where a hard negative shares no level


class Writer:
    """Puts records together; pictures are written relative to the folder where the benchmark will lie."""

    def __init__(self, products: Mapping[str, Product], home: pathlib.Path, query_pictures: pathlib.Path):
        """Takes the listings, the later folder of the files, and where relative paths of query pictures start."""
        self._products, self._home, self._query_pictures = products, home, query_pictures
        self.used: dict[bool, set[str]] = {False: set(), True: set()}  # products of training, of the test set

    def write(self, folder: pathlib.Path, rows: Iterable[Mapping[str, Any]], total: int) -> dict[bool, int]:
        """Writes train.jsonl, test.jsonl and items.jsonl; returns the records of (False) training and (True) test.

        Args:
            folder: to write to.
            rows: id, test, text, image, product, negative, depth in the order of their ids.
            total: rows there will be, for the bar.
        """
        counts, last = {False: 0, True: 0}, ""
        with (
            (folder / "train.jsonl").open("w", encoding="utf-8", newline="\n") as train,
            (folder / "test.jsonl").open("w", encoding="utf-8", newline="\n") as test,
        ):
            for row in tqdm(rows, "writing", total, unit="row", unit_scale=True, leave=False):
                if row["id"] <= last:
                    raise DataError(f"the engine gave row {row['id']} after {last}: rows must come in order, each once")
                last = row["id"]
                (test if row["test"] else train).write(_line(self._record(row)))
                counts[row["test"]] += 1
        with (folder / "items.jsonl").open("w", encoding="utf-8", newline="\n") as items:
            for product in sorted(self.used[False] | self.used[True]):
                items.write(_line(self._listing(self._products[product])))
        return counts

    def _record(self, row: Mapping[str, Any]) -> dict[str, Any]:
        positive = self._products[row["product"]]
        query: dict[str, Any] = {"text": row["text"]} if row["text"] else {}
        if row["image"]:
            picture = row["image"]
            query["image"] = picture if lines.is_url(picture) else self._path(self._query_pictures / picture)
        negative = None
        if row["negative"] is not None:
            negative = self._short(row["negative"], row["test"]) | {"shares": level(row["depth"])}
        return {
            "id": row["id"],
            "query": query,
            "positive": self._short(row["product"], row["test"]),
            "negative": negative,
            "category": _category(positive),
            "attributes": {key: list(values) for key, values in positive.attributes},
        }

    def _short(self, product: str, test: bool) -> dict[str, Any]:
        self.used[test].add(product)
        found = self._products[product]
        return {"item_id": product, "title": found.title, "images": [self._reference(i) for i in found.images]}

    def _listing(self, product: Product) -> dict[str, Any]:
        boxes = [image.box for image in product.images]
        return {
            "item_id": product.id,
            "title": product.title,
            "description": product.description,
            "category": _category(product),
            "attributes": {key: list(values) for key, values in product.attributes},
            "images": [self._reference(image) for image in product.images],
        } | ({"image_bboxes": boxes} if any(boxes) else {})

    def _reference(self, image: ImageRef) -> str:
        return image.path if lines.is_url(image.path) else self._path(pathlib.Path(image.path))

    def _path(self, path: pathlib.Path) -> str:
        return os.path.relpath(path, self._home)


def level(depth: int) -> str:
    """Returns the name of the deepest of `depth` shared levels."""
    return LEVELS[min(depth, len(LEVELS)) - 1] if depth else NO_LEVEL


def _category(product: Product) -> dict[str, str]:
    """Returns the levels by name; those beyond the last name are joined to it."""
    found = list(product.category[: len(LEVELS) - 1])
    if rest := product.category[len(LEVELS) - 1 :]:
        found.append(" > ".join(rest))
    return dict(zip(LEVELS, found + [""] * (len(LEVELS) - len(found)), strict=True))


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n"
