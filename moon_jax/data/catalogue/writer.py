"""Writes the catalogue to a folder: records, pictures, and a note of what made them."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import multiprocessing
import os
import pathlib
import random
import shutil
import tempfile
from typing import Any

from tqdm import tqdm

from moon_jax.data.catalogue import scene, texts
from moon_jax.data.catalogue.products import Product, invent
from moon_jax.data.catalogue.sprite import cut_out

VERSION = 1  # of the generator: a folder made by another one is made anew
_NOTE = "catalogue.json"
_CHUNK = 64  # products drawn by one call of a process
_POOL_FROM = 600  # products from which starting processes pays
_TEST_SHARE = 0.4  # share of the products that have a test query


def write(
    folder: str | os.PathLike, products: int, seed: int = 0, *, size_px: int = 112, processes: int | None = None
) -> dict[str, Any]:
    """Returns the summary of the catalogue in `folder`, which it draws unless exactly this one is there already.

    The folder gets train.jsonl, test.jsonl, items.jsonl, images/ and catalogue.json, the summary (version,
    arguments, counts, and the sha256 over records and pictures). It appears complete or not at all. Records and
    pictures depend on the arguments alone, not on the number of processes.

    Args:
        folder: where to write. It may be missing, empty, or hold an earlier catalogue, which is then replaced.
        products: how many, 2 at least (every product has a sibling as its hard negative).
        seed: another seed is another catalogue.
        size_px: side of the square pictures.
        processes: that draw; None takes the cores this process may use for large catalogues and 1 for small ones.
            More than 1 starts fresh interpreters, so a script needs its `if __name__ == "__main__":` guard (and code
            that is piped into Python, which has no file to start from, needs processes=1).

    Raises:
        ValueError: for arguments that cannot work.
        FileExistsError: if the folder holds something that is not a catalogue.
    """
    if products < 2:
        raise ValueError(f"a catalogue needs at least 2 products (each has a sibling as hard negative), got {products}")
    if size_px < 32:
        raise ValueError(f"size_px is {size_px}; at least 32 is needed to tell the products apart")
    folder = pathlib.Path(folder).absolute()
    arguments = {"products": products, "seed": seed, "size_px": size_px}
    found = _summary(folder)
    if found and found.get("version") == VERSION and found.get("arguments") == arguments:
        return found
    if folder.exists() and not found and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(
            f"{folder} holds something that is not a drawn catalogue; name another or an empty folder"
        )

    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        summary = _draw_all(fresh, invent(products, seed), seed, size_px, processes)
        summary = {"version": VERSION, "arguments": arguments} | summary
        (fresh / _NOTE).write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        fresh.chmod(0o755)  # mkdtemp's folders are private
        _replace(folder, fresh)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return summary


def stamp(folder: str | os.PathLike) -> dict[str, Any] | None:
    """Returns the generator's version and the content's sha256, which results carry; None for other data."""
    summary = _summary(pathlib.Path(folder))
    return summary and {name: summary[name] for name in ("version", "sha256")}


def _summary(folder: pathlib.Path) -> dict[str, Any] | None:
    """Returns what a finished catalogue in the folder says of itself, or None."""
    try:
        summary = json.loads((folder / _NOTE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return summary if isinstance(summary, dict) and "sha256" in summary else None


def _replace(folder: pathlib.Path, fresh: pathlib.Path) -> None:
    """Puts `fresh` in the place of `folder`, unless somebody else has just put the same catalogue there."""
    if _summary(folder) == _summary(fresh):
        return
    with (
        tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as old,
        contextlib.suppress(FileNotFoundError),
    ):
        folder.rename(pathlib.Path(old, "old"))
    try:
        fresh.rename(folder)
    except OSError:
        if _summary(folder) != _summary(fresh):
            raise


def _draw_all(
    folder: pathlib.Path, products: list[Product], seed: int, size_px: int, processes: int | None
) -> dict[str, Any]:
    """Returns counts and the content's hash after writing the records and pictures of all products."""
    (folder / "images").mkdir()
    chunks = [products[i : i + _CHUNK] for i in range(0, len(products), _CHUNK)]
    draw = functools.partial(_draw, folder=folder, seed=seed, size_px=size_px)
    drawn: list[_Drawn] = []
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(
            tqdm(total=len(products), desc="drawing the catalogue", unit="product", disable=len(products) < 200)
        )
        mapped = map(draw, chunks)
        workers = min(processes or (_cores() if len(products) >= _POOL_FROM else 1), len(chunks))
        if workers > 1:
            # Spawned, not forked: the caller may have threads (JAX has), and a forked child could inherit a held lock.
            context = multiprocessing.get_context("spawn")
            mapped = stack.enter_context(concurrent.futures.ProcessPoolExecutor(workers, context)).map(draw, chunks)
        for result in mapped:
            drawn += result
            bar.update(len(result))

    items = [d.item for d in drawn]
    records: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    for product, d in zip(products, drawn, strict=True):
        for split, query in d.queries:
            records[split].append(_record(split, len(records[split]), query, d.item, items[product.negative]))
    records["items"] = items

    digest = hashlib.sha256("".join(name for d in drawn for name in d.pictures).encode())
    for name, rows in records.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8", newline="\n")
        digest.update(text.encode())
    counts = {name: len(rows) for name, rows in records.items()} | {"pictures": sum(len(d.pictures) for d in drawn)}
    return {"counts": counts, "sha256": digest.hexdigest()}


def _cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclasses.dataclass(frozen=True)
class _Drawn:
    """A product's line of items.jsonl, its queries as (split, query), and the sha256 of each of its pictures."""

    item: dict[str, Any]
    queries: list[tuple[str, dict[str, Any]]]
    pictures: list[str]


def _draw(products: list[Product], folder: pathlib.Path, seed: int, size_px: int) -> list[_Drawn]:
    """Returns what was drawn for each product, after writing its pictures."""
    return [_draw_one(product, folder, seed, size_px) for product in products]


def _draw_one(product: Product, folder: pathlib.Path, seed: int, size_px: int) -> _Drawn:
    rng, voice = (random.Random(f"catalogue/{seed}/{use}/{product.number}") for use in ("pictures", "queries"))
    cut = cut_out(product, size_px)
    pictures: list[str] = []

    def shoot(kind: str, name: str) -> tuple[str, list[int]]:
        picture, box = scene.take(cut, kind, size_px, rng)
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=88)
        path = f"images/{product.number:06d}_{name}.jpg"
        (folder / path).write_bytes(buffer.getvalue())
        pictures.append(hashlib.sha256(buffer.getvalue()).hexdigest())
        return path, box

    listing = [shoot("sku" if i else "main", str(i)) for i in range(rng.choice((2, 2, 2, 3, 4)))]
    shots = [("train", "user_photo"), ("train", "alt_view")]
    if rng.random() < _TEST_SHARE:
        shots.append(("test", rng.choice(("user_photo", "alt_view"))))
    queries = []
    for i, (split, kind) in enumerate(shots):
        path, box = shoot(kind, f"q{i}")
        text = texts.query(product, voice)
        queries.append((split, {"image": path, "text": text, "text_source": "paraphrase", "kind": kind, "bbox": box}))
    item = {
        "item_id": product.item_id, "title": texts.title(product), "description": texts.description(product),
        "attributes": product.attributes, "category": product.category, "image": listing[0][0],
        "image_bbox": listing[0][1], "images": [path for path, _ in listing],
        "image_bboxes": [box for _, box in listing],
    }  # fmt: skip
    return _Drawn(item, queries, pictures)


def _record(
    split: str, number: int, query: dict[str, Any], item: dict[str, Any], negative: dict[str, Any]
) -> dict[str, Any]:
    """Returns one line of train.jsonl or test.jsonl."""
    return {
        "id": f"c-{split}-{number:05d}", "dataset": "catalogue", "split": split, "query": query,
        "positive": {key: item[key] for key in ("item_id", "images", "title", "description")},
        "negative": {key: negative[key] for key in ("item_id", "images", "title")} | {"shares": "cate4"},
        "category": item["category"], "attributes": item["attributes"],
    }  # fmt: skip
