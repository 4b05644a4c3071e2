"""Writes the benchmark in our own layout: train.jsonl, test.jsonl, items.jsonl (see moon_jax/data/sources/jsonl.py)."""

import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from tqdm import tqdm

from moon_jax.data.benchmark.listings import written
from moon_jax.data.records import DataError, Product
from moon_jax.data.sources import lines
from moon_jax.data.sources.jsonl import LEVELS

NO_LEVEL = "none"  # in a report, where a hard negative shares no level


class Writer:
    """Puts records together; pictures are written relative to the folder where the benchmark will lie."""

    def __init__(self, products: Mapping[str, Product], home: pathlib.Path, query_pictures: pathlib.Path):
        """Takes the listings, the later folder of the files, and where relative paths of query pictures start."""
        self._products, self._home = products, home
        self._query_pictures = os.path.relpath(query_pictures, home)
        self._pieces: dict[str, tuple[str, str]] = {}
        self.used: dict[bool, set[str]] = {False: set(), True: set()}  # products of training, of the test set

    def write(self, folder: pathlib.Path, rows: Iterable[Mapping[str, Any]], total: int) -> dict[bool, int]:
        """Writes train.jsonl, test.jsonl and items.jsonl; returns the records of (False) training and (True) test.

        Args:
            folder: to write to.
            rows: id, test, text, image (of `functions.reference`), product, negative, depth in the order of their ids.
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
                (test if row["test"] else train).write(self._record(row))
                counts[row["test"]] += 1
        with (folder / "items.jsonl").open("w", encoding="utf-8", newline="\n") as items:
            for product in sorted(self.used[False] | self.used[True]):
                items.write(_json(self._listing(self._products[product])) + "\n")
        return counts

    def _record(self, row: Mapping[str, Any]) -> str:
        """Returns a line. What it says of products is put into JSON once per product: that is most of the work."""
        query: dict[str, Any] = {"text": row["text"]} if row["text"] else {}
        if row["image"]:
            query["image"] = row["image"] if lines.is_url(row["image"]) else self._query_path(row["image"])
        positive, aspects = self._said(row["product"], row["test"])
        negative = "null"
        if row["negative"] is not None:
            negative = f'{self._said(row["negative"], row["test"])[0]},"shares":"{level(row["depth"])}"}}'
        return (
            f'{{"id":"{row["id"]}","query":{_json(query)},"positive":{positive}}},"negative":{negative},{aspects}}}\n'
        )

    def _said(self, product: str, test: bool) -> tuple[str, str]:
        """Returns two pieces of JSON: the product, its brace still open, and its category and attributes."""
        self.used[test].add(product)
        if product not in self._pieces:
            listing = self._listing(self._products[product])
            short = _json({name: listing[name] for name in ("item_id", "title", "images")})
            aspects = _json({name: listing[name] for name in ("category", "attributes")})
            self._pieces[product] = short[:-1], aspects[1:-1]
        return self._pieces[product]

    def _listing(self, product: Product) -> dict[str, Any]:
        boxes = [image.box for image in product.images]
        return {
            "item_id": product.id,
            "title": product.title,
            "description": product.description,
            "category": _category(product),
            "attributes": {key: list(values) for key, values in product.attributes},
            "images": [written(image.path, self._home) for image in product.images],
        } | ({"image_bboxes": boxes} if any(boxes) else {})

    def _query_path(self, path: str) -> str:
        return os.path.normpath(os.path.join(self._query_pictures, path))


def level(depth: int) -> str:
    """Returns the name of the deepest of `depth` shared levels."""
    return LEVELS[min(depth, len(LEVELS)) - 1] if depth else NO_LEVEL


def _category(product: Product) -> dict[str, str]:
    """Returns the levels by name; those beyond the last name are joined to it."""
    found = list(product.category[: len(LEVELS) - 1])
    if rest := product.category[len(LEVELS) - 1 :]:
        found.append(" > ".join(rest))
    return dict(zip(LEVELS, found + [""] * (len(LEVELS) - len(found)), strict=True))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
