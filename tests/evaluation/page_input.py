"""A work folder of an evaluation for the report page: real results of drawn products with made-up embeddings."""

import dataclasses
import hashlib
import io
import pathlib

import numpy as np
from PIL import Image

from moon_jax.config import Config, EvalConfig
from moon_jax.data import whole_file
from moon_jax.data.records import Dataset, ImageRef, Product, Query, Triplet
from moon_jax.evaluation import predictions, tasks
from moon_jax.evaluation.benchmark import build
from moon_jax.evaluation.page import Embedded

CATEGORIES = [("Home", "Kitchen", "Pots"), ("Home", "Kitchen", "Cups"), ("Home", "Lamps"), ("Shoes", "Boots")]
CONFIG = Config(
    name="drawn", eval=EvalConfig(ks=(1, 5), tasks=("retrieval", "classification", "attributes"), bootstrap_samples=20)
)


def dataset(folder: pathlib.Path, products: int = 24, title: str = "") -> Dataset:
    """Returns listings with one plain picture each and a query for each; a third is seen, the rest unseen.

    Args:
        folder: where the pictures are written.
        products: how many.
        title: put before every title and query text.
    """
    folder.mkdir(parents=True, exist_ok=True)
    listings, triplets = {}, []
    for number in range(products):
        picture = folder / f"{number}.png"
        color = tuple(int(x) for x in np.random.default_rng(number).integers(0, 255, 3))
        picture.write_bytes(_png(color))
        listings[f"p{number:02d}"] = Product(
            id=f"p{number:02d}",
            title=f"{title}product {number}",
            images=(ImageRef(str(picture)),),
            category=CATEGORIES[number % len(CATEGORIES)],
            attributes=(("color", (("red", "blue")[number % 2],)),),
            part="shop",
        )
    names = list(listings)
    for number, name in enumerate(names):
        query = Query(f"{title}find {number}", listings[name].images[0], ("front", "back")[number % 2])
        negative = listings[names[(number + len(CATEGORIES)) % products]]
        triplets.append(Triplet(f"t{number}", query, listings[name], negative, "shop"))
    third = products // 3
    return Dataset((), tuple(triplets[:third]), tuple(triplets[third:]), listings, "f1ngerprint", {})


def write(workdir: pathlib.Path, data: Dataset, methods: tuple[str, ...] = ("model", "clip")) -> Embedded:
    """Writes results.json and predictions.jsonl; returns the model's embeddings of the listings."""
    workdir.mkdir(parents=True, exist_ok=True)
    benchmark = build(data, CONFIG)
    rows = np.arange(len(benchmark.documents))
    found = {}
    for place, name in enumerate(methods):
        vectors = np.stack([_vector(document, data, 0.5 + place) for document in benchmark.documents])
        found[name] = tasks.Method(vectors, rows, {"fingerprint": hashlib.sha256(name.encode()).hexdigest()})
    with predictions.writer(workdir / "predictions.jsonl") as line:
        results = tasks.score(benchmark, found, data, CONFIG, write=line)
    whole_file.write_json(workdir / "results.json", results)
    own = found[methods[0]].vectors
    return Embedded(list(benchmark.items), lambda ids: own[[benchmark.items[name] for name in ids]])


def _vector(document, data: Dataset, noise: float) -> np.ndarray:
    """Returns the sum of random vectors, one for each picture and each word, and noise."""
    names = [str(image.path) for image in document.images]
    names += [word for segment in document.segments for word in segment.text.split()]
    said = f"{names}{noise}"
    out = sum(map(_random, names), start=np.zeros(16)) + noise * _random(said)
    return (out / np.linalg.norm(out)).astype(np.float32)


def _random(text: str) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")
    return np.random.default_rng(seed).standard_normal(16)


def _png(color: tuple[int, int, int]) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (40, 30), color).save(out, "PNG")
    return out.getvalue()


def with_product(data: Dataset, **changes) -> Dataset:
    """Returns the data set with its first listing changed, in the triplets too."""
    name = next(iter(data.products))
    new = dataclasses.replace(data.products[name], **changes)
    swap = lambda p: new if p is not None and p.id == name else p  # noqa: E731
    moved = lambda ts: tuple(  # noqa: E731
        dataclasses.replace(t, positive=swap(t.positive), negative=swap(t.negative)) for t in ts
    )
    return dataclasses.replace(
        data, products={**data.products, name: new}, seen=moved(data.seen), unseen=moved(data.unseen)
    )
