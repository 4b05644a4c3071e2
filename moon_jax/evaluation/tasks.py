"""Retrieval over a data set: Recall@k of every set, part, modality and kind of query, and the validation loss.

Zero-shot, as in the paper (5.1): the gallery of a part is every listing of it, embedded with title, category and
attributes; a query is a picture, a text or both, and never has its product's category or attributes.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from moon_jax.config import Config, to_dict
from moon_jax.data.documents import Document, has_modality, item_document, query_document
from moon_jax.data.records import Dataset, Product, Query, Triplet, gallery
from moon_jax.evaluation import metrics
from moon_jax.evaluation.baselines.color_histogram import embed_pictures
from moon_jax.evaluation.retrieval import top_k

TASKS = {"image": "image", "text": "text", "item": "both"}  # name in the results -> modality of the query
SETS = ("seen", "unseen")
MODEL = "model"

Embed = Callable[[Sequence[Document]], np.ndarray]


def evaluate(
    dataset: Dataset, embed: Embed, config: Config, *, max_queries: int = 0, about: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Returns the results as a nested dict of plain numbers, lists and strings.

    `rows` has one entry for each set x part x modality (x kind of query, where there are several) x method;
    `metrics` the same numbers under flat names: "grocery/unseen/image/R@1", "luma/seen/image/R@1[kind=back_view]",
    "luma/seen/image/R@1[method=color_histogram]", and over all parts (the mean over queries) "unseen/image/R@1";
    "unseen/loss" is the contrastive loss. Every distinct document is embedded once. With several processes each one
    calls this with the same arguments and gets the same results.

    Args:
        dataset: its test sets and listings.
        embed: unit vectors [documents, d] for a list of documents.
        config: of the run; `eval.ks`, `eval.color_histogram`, the loss and the batch size are used here.
        max_queries: per set; a larger set is cut to the first ones in the order of a hash. 0 = all.
        about: what else belongs in the file: the step, the checkpoint's digest, the catalogue's hash.

    Raises:
        ValueError: no test queries, or embeddings of the wrong shape or with NaN.
    """
    sets = {name: _first_by_hash(getattr(dataset, name), max_queries) for name in SETS}
    galleries = {part: gallery(dataset, part) for part in sorted({t.part for ts in sets.values() for t in ts})}
    if not galleries:
        raise ValueError("there are no test queries: both `seen` and `unseen` are empty (see config.data.unseen_share)")
    vectors = _Vectors(sets, galleries, embed, config)
    histograms = _Histograms(sets, galleries) if config.eval.color_histogram else None
    rows, losses = [], {}
    for name, triplets in sets.items():
        for task in TASKS:
            rows += _retrieval_rows(_Task(name, task, MODEL), triplets, galleries, vectors, dataset, config)
        if histograms:
            task = _Task(name, "image", "color_histogram")
            rows += _retrieval_rows(task, triplets, galleries, histograms, dataset, config)
        if triplets:
            losses[name] = _validation_loss(triplets, vectors, dataset, config)
    results = {
        "about": dict(about or {}),
        "config": to_dict(config),
        "data": {"fingerprint": dataset.fingerprint, "report": dataset.report},
        "protocol": {
            "gallery": "all listings of the part: pictures, title, category, attributes",
            "query": "its picture, its text or both; never category or attributes",
            "ties": "score, then gallery index",
            "max_queries": max_queries,
        },
        "counts": {
            **{name: len(triplets) for name, triplets in sets.items()},
            "listings": {part: len(products) for part, products in galleries.items()},
            "documents": vectors.documents,
            "embedding_size": vectors.size,
        },
        "rows": rows,
        "loss": losses,
        "metrics": _flat(rows, losses),
    }
    return json.loads(json.dumps(results))  # tuples as lists: what a reader of the file gets


class _Vectors:
    """The embeddings of all queries (in each modality that they have) and listings, each document embedded once."""

    def __init__(
        self,
        sets: Mapping[str, Sequence[Triplet]],
        galleries: Mapping[str, Sequence[Product]],
        embed: Embed,
        config: Config,
    ):
        self._rows: dict[Document, int] = {}
        self._items = {
            product.id: self._add(item_document(product, config.data))
            for products in galleries.values()
            for product in products
        }
        self._queries = {
            (triplet.query, task): self._add(query_document(triplet.query, modality))
            for triplets in sets.values()
            for triplet in triplets
            for task, modality in TASKS.items()
            if has_modality(triplet.query, modality)
        }
        self.documents = len(self._rows)
        self._vectors = np.asarray(embed(list(self._rows)))
        if self._vectors.ndim != 2 or len(self._vectors) != self.documents:
            raise ValueError(f"embed gave shape {self._vectors.shape} for {self.documents} documents")
        self.size = self._vectors.shape[1]

    def _add(self, document: Document) -> int:
        return self._rows.setdefault(document, len(self._rows))

    def query(self, queries: Sequence[Query], task: str) -> Float[np.ndarray, "q d"]:
        return self._vectors[[self._queries[query, task] for query in queries]]

    def item(self, products: Sequence[Product]) -> Float[np.ndarray, "n d"]:
        return self._vectors[[self._items[product.id] for product in products]]


class _Histograms:
    """The baseline: the histogram of a query's whole photo and of a listing's first picture (zeros without one)."""

    def __init__(self, sets: Mapping[str, Sequence[Triplet]], galleries: Mapping[str, Sequence[Product]]):
        pictures = {t.query.image.path for triplets in sets.values() for t in triplets if t.query.image is not None}
        pictures |= {p.images[0].path for products in galleries.values() for p in products if p.images}
        self._rows = {path: row for row, path in enumerate(sorted(pictures, key=str))}
        self._vectors = embed_pictures(list(self._rows))

    def query(self, queries: Sequence[Query], task: str) -> Float[np.ndarray, "q d"]:
        assert task == "image", task
        return self._vectors[[self._rows[query.image.path] for query in queries]]

    def item(self, products: Sequence[Product]) -> Float[np.ndarray, "n d"]:
        at = np.array([self._rows[p.images[0].path] if p.images else -1 for p in products])
        return np.where(at[:, None] >= 0, self._vectors[at], 0.0)


class _Task(NamedTuple):
    """What a row of the results is about, but for the part and the kind of query."""

    set: str
    modality: str
    method: str


class _Ranked(NamedTuple):
    """The ranked lists of some queries."""

    relevant: Bool[np.ndarray, "q k"]
    listings: Int[np.ndarray, " q"]  # the size of the gallery that each query was put to
    lacking: int  # queries left out, as they have no such picture or text


def _retrieval_rows(
    task: _Task,
    triplets: Sequence[Triplet],
    galleries: Mapping[str, Sequence[Product]],
    vectors: "_Vectors | _Histograms",
    dataset: Dataset,
    config: Config,
) -> list[dict[str, Any]]:
    """Returns the rows of one set, task and method: every part, its kinds of query, and all parts together."""
    ks = config.eval.ks
    rows, parts = [], []
    for part, products in galleries.items():
        of_part = [t for t in triplets if t.part == part]
        asked = [t for t in of_part if has_modality(t.query, TASKS[task.modality])]
        if not asked:
            continue
        queries = vectors.query([t.query for t in asked], task.modality)
        _, indices = top_k(queries, vectors.item(products), min(max(ks), len(products)))
        labels = np.array([dataset.numbers[p.id] for p in products])
        truth = np.array([dataset.numbers[t.positive.id] for t in asked])
        relevant = metrics.relevance(indices, labels, truth) | _further_answers(indices, asked, products)
        relevant = np.pad(relevant, ((0, 0), (0, max(ks) - relevant.shape[1])))  # a gallery smaller than the largest k
        ranked = _Ranked(relevant, np.full(len(asked), len(products)), len(of_part) - len(asked))
        parts.append(ranked)
        rows.append(_row(task, ranked, ks, part=part))
        kinds = np.array([t.query.kind for t in asked])
        for kind in np.unique(kinds) if len(set(kinds)) > 1 else ():
            at = kinds == kind
            rows.append(_row(task, _Ranked(relevant[at], ranked.listings[at], 0), ks, part=part, kind=str(kind)))
    if parts:
        relevant, listings = (np.concatenate(columns) for columns in zip(*((r[0], r[1]) for r in parts), strict=True))
        lacking = sum(not has_modality(t.query, TASKS[task.modality]) for t in triplets)
        rows.append(_row(task, _Ranked(relevant, listings, lacking), ks, part=None))
    return rows


def _further_answers(
    ranked: Int[np.ndarray, "q k"], asked: Sequence[Triplet], products: Sequence[Product]
) -> Bool[np.ndarray, "q k"]:
    """Returns which of the ranked listings answer the query although they are not its positive (Triplet.relevant)."""
    found = np.zeros(ranked.shape, bool)
    for row, (listings, triplet) in enumerate(zip(ranked, asked, strict=True)):
        if triplet.relevant:
            found[row] = [products[i].id in triplet.relevant for i in listings]
    return found


def _row(
    task: _Task, ranked: _Ranked, ks: Sequence[int], *, part: str | None, kind: str | None = None
) -> dict[str, Any]:
    sizes = np.unique(ranked.listings)
    return task._asdict() | {
        "part": part,
        "kind": kind,
        "recall": {str(k): metrics.recall_at(ranked.relevant, k) for k in ks},
        "chance": {str(k): float(np.minimum(k / ranked.listings, 1.0).mean()) for k in ks},
        "mrr": metrics.mean_reciprocal_rank(ranked.relevant),
        "queries": len(ranked.relevant),
        "lacking": ranked.lacking,
        "gallery": int(sizes[0]) if len(sizes) == 1 else None,
    }


def _validation_loss(
    triplets: Sequence[Triplet], vectors: _Vectors, dataset: Dataset, config: Config
) -> dict[str, Any]:
    """Returns the contrastive loss over blocks of the training batch size, in the order of a hash, without a ring.

    The parts are mixed as in training, and each query has the one modality that a hash draws from the training mix. A
    last block that is not full is left out, for fewer negatives mean a lower loss; it is used where it is the only one.
    """
    size = config.train.batch_size
    triplets = _first_by_hash(triplets, 0)
    whole = len(triplets) // size * size or len(triplets)
    losses, negatives = [], []
    for start in range(0, whole, size):
        block = triplets[start : start + size]
        queries = np.concatenate([vectors.query([t.query], _drawn_task(t, config.data.modality_mix)) for t in block])
        items = [t.positive for t in block] + [t.negative or t.positive for t in block]
        products = [dataset.numbers[t.positive.id] for t in block]
        products += [dataset.numbers[t.negative.id] if t.negative else metrics.NO_PRODUCT for t in block]
        loss, kept = metrics.info_nce(
            queries,
            vectors.item(items),
            np.array(products),
            config.loss.temperature,
            config.loss.mask_false_negatives,
        )
        losses.append(loss)
        negatives.append(kept)
    return {
        "loss": float(np.concatenate(losses).mean()),
        "negatives": float(np.concatenate(negatives).mean()),
        "triplets": whole,
        "batch_size": min(size, whole),
    }


def _drawn_task(triplet: Triplet, mix: tuple[int, int, int]) -> str:
    """Returns the task of a query for the loss: drawn from the training mix by a hash, among those that it can be."""
    tasks = [task for task in TASKS if has_modality(triplet.query, TASKS[task])]
    weights = np.array([dict(zip(TASKS, mix, strict=True))[task] for task in tasks], np.float64)
    bounds = np.cumsum(weights if weights.any() else weights + 1)
    draw = (_hash(f"modality\0{triplet.id}") >> 11) / 2**53  # in [0, 1), exactly
    return tasks[int(np.searchsorted(bounds, draw * bounds[-1], side="right"))]


def _first_by_hash(triplets: Iterable[Triplet], count: int) -> tuple[Triplet, ...]:
    """Returns the triplets in the order of the hash of their ids, `count` of them (0 = all)."""
    ordered = tuple(sorted(triplets, key=lambda t: (_hash(f"{t.part}\0{t.id}"), t.id)))
    return ordered[:count] if count else ordered


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _flat(rows: Sequence[Mapping[str, Any]], losses: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    flat = {f"{name}/{key}": loss[key] for name, loss in losses.items() for key in ("loss", "negatives")}
    for row in rows:
        path = "/".join(filter(None, (row["part"], row["set"], row["modality"])))
        notes = {"kind": row["kind"], "method": None if row["method"] == MODEL else row["method"]}
        suffix = "".join(f"[{key}={value}]" for key, value in notes.items() if value is not None)
        flat |= {f"{path}/R@{k}{suffix}": value for k, value in row["recall"].items()}
        flat[f"{path}/MRR{suffix}"] = row["mrr"]
    return flat
