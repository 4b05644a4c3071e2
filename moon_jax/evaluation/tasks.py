"""Results of an evaluation: every question of a benchmark ranked by every method, measured in rows.

A pure function of the embeddings: the same vectors give the same results, to the last bit.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from moon_jax.config import Config, to_dict
from moon_jax.data.documents import Document
from moon_jax.data.picture_files import ImageError
from moon_jax.data.records import Dataset
from moon_jax.evaluation.baselines.color_histogram import embed_pictures
from moon_jax.evaluation.benchmark import MODALITIES, SETS, Benchmark, Trial, build
from moon_jax.evaluation.choices import DEEPEST, RETRIEVAL, TASKS
from moon_jax.evaluation.predictions import KEPT, Write, write_trial
from moon_jax.evaluation.ranked import RELAXED, Ranked, rank
from moon_jax.evaluation.rows import Pool, rows_of
from moon_jax.evaluation.validation_loss import validation_loss

VERSION = 1  # of what the results hold
MODEL, COLOR_HISTOGRAM = "model", "color_histogram"

Embed = Callable[[Sequence[Document]], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to embed, with its vectors of a benchmark's documents.

    Attributes:
        vectors: float32 [rows, d], in memory or mapped from a file.
        rows: the row of each document, -1 where it has none.
        about: what the results say of it: its fingerprint, how it embeds.
        only: (task, modality) that it can do; () = all.
    """

    vectors: np.ndarray
    rows: Int[np.ndarray, " documents"]
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    only: tuple[tuple[str, str], ...] = ()

    def take(self, documents: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n d"]:
        """Returns the vectors of documents that have one; without a copy where their rows stand together."""
        rows = self.rows[documents]
        if len(rows) and rows[0] >= 0 and (np.diff(rows) == 1).all():
            return self.vectors[rows[0] : rows[0] + len(rows)]
        return self.vectors[rows]


def evaluate(
    dataset: Dataset, embed: Embed, config: Config, *, max_queries: int = 0, about: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Returns the results of a model that is in memory, as training asks for them; see `score`.

    With several processes each one calls this with the same arguments and gets the same results.

    Args:
        dataset: its test sets and listings.
        embed: unit vectors [documents, d] for a list of documents; each distinct one is asked for once.
        config: of the run; `eval`, the loss and the batch size are used here.
        max_queries: per set; a larger set is cut to the first ones in the order of a hash. 0 = all.
        about: what else belongs in the file: the step, the checkpoint's digest, the catalogue's hash.

    Raises:
        DataError: there is nothing to ask.
        ValueError: embeddings of the wrong shape or with NaN.
    """
    benchmark = build(dataset, config, max_queries)
    vectors = np.asarray(embed(benchmark.documents))
    if vectors.ndim != 2 or len(vectors) != len(benchmark.documents):
        raise ValueError(f"embed gave shape {vectors.shape} for {len(benchmark.documents)} documents")
    methods = {MODEL: Method(vectors, np.arange(len(vectors)))}
    if config.eval.color_histogram:
        methods[COLOR_HISTOGRAM] = color_histogram(benchmark, config.data.on_error)
    results = score(benchmark, methods, dataset, config, about=about, max_queries=max_queries)
    losses = {
        name: validation_loss(triplets, benchmark, methods[MODEL].take, dataset.numbers, config)
        for name, triplets in benchmark.sets.items()
        if triplets
    }
    results["loss"] = losses
    results["metrics"] |= {f"{name}/{key}": loss[key] for name, loss in losses.items() for key in ("loss", "negatives")}
    return results


def score(
    benchmark: Benchmark,
    methods: Mapping[str, Method],
    dataset: Dataset,
    config: Config,
    *,
    about: Mapping[str, Any] | None = None,
    max_queries: int = 0,
    write: Write | None = None,
) -> dict[str, Any]:
    """Returns the results as a nested dict of plain numbers, lists and strings: what results.json holds.

    `rows` has one entry for each task x set x part (and all parts together) x modality x method, and `by` kind of
    query, industry, level or attribute; docs/evaluation.md says what is in it. `metrics` has the same numbers under
    flat names: "grocery/unseen/image/R@1", "luma/seen/image/R@1[kind=back_view]", over all parts (the mean over
    queries) "unseen/image/R@1", "unseen/classification/item/accuracy[level=1]", and with the method where it is not the
    model: "luma/seen/image/R@1[method=color_histogram]".

    Args:
        benchmark: what is asked.
        methods: name -> vectors.
        dataset: for its fingerprint and report.
        config: what the results say of the settings; `eval` is used here.
        about: what else belongs in the file.
        max_queries: that the benchmark was cut to.
        write: receives every prediction, a line of predictions.jsonl.

    Raises:
        ValueError: a vector is not finite, or the number of vectors is not that of the documents.
    """
    rows: list[dict[str, Any]] = []
    for name, method in methods.items():
        if len(method.rows) != len(benchmark.documents):
            raise ValueError(f"{name} has {len(method.rows)} vectors for {len(benchmark.documents)} documents")
        found = [
            _ranked(trial, method, config)
            for trial in benchmark.trials
            if not method.only or (trial.task, trial.modality) in method.only
        ]
        for ranked in found if write is not None else ():
            write_trial(ranked, name, benchmark, write)
        rows += rows_of(_pools(found), name, config.eval)
    results = {
        "version": VERSION,
        "about": dict(about or {}),
        "config": {group: values for group, values in to_dict(config).items() if group != "mesh"},
        "data": {"fingerprint": dataset.fingerprint, "report": dataset.report},
        "protocol": _protocol(config, max_queries),
        "counts": {
            **{name: len(benchmark.sets[name]) for name in SETS},
            "listings": {part: len(products) for part, products in benchmark.galleries.items()},
            "documents": len(benchmark.documents),
            "repeated_query_ids": _repeated(benchmark),
        },
        "methods": {
            name: {
                "embedding_size": int(method.vectors.shape[1]),
                "documents_left_out": int((method.rows < 0).sum()),
                **method.about,
            }
            for name, method in methods.items()
        },
        "rows": rows,
        "loss": {},
        "metrics": _flat(rows),
    }
    return json.loads(json.dumps(results))  # tuples as lists: what a reader of the file gets


def color_histogram(benchmark: Benchmark, on_error: str = "raise") -> Method:
    """Returns the floor under retrieval by picture: histograms of a query's whole photo, a listing's first picture.

    A listing without a picture has a vector of zeros. One whose picture cannot be read has none with `on_error` "skip".

    Raises:
        ImageError: a picture is missing or broken, and `on_error` is "raise".
    """
    rows = np.full(len(benchmark.documents), -1)
    vectors = []  # row 0 will be that of what has no picture
    pictures: dict[Any, int] = {}  # -1 = cannot be read
    for trial in benchmark.trials:
        if (trial.task, trial.modality) == (RETRIEVAL, "image"):
            for number in (*(asked.document for asked in trial.asked), *trial.candidates.documents.tolist()):
                images = benchmark.documents[number].images
                if images and images[0].path not in pictures:
                    try:
                        vectors.append(embed_pictures([images[0].path]))
                        pictures[images[0].path] = len(vectors)
                    except ImageError:
                        if on_error != "skip":
                            raise
                        pictures[images[0].path] = -1
                rows[number] = pictures[images[0].path] if images else 0
    about = {"about": "histogram of the colours of the first picture"}
    about["unreadable_pictures"] = sum(row < 0 for row in pictures.values())
    nothing = np.zeros((1, (vectors[0] if vectors else embed_pictures([])).shape[1]), np.float32)
    return Method(np.concatenate([nothing, *vectors]), rows, about, ((RETRIEVAL, "image"),))


def _ranked(trial: Trial, method: Method, config: Config) -> Ranked:
    k = _kept(config) if trial.task == RETRIEVAL else max(RELAXED, KEPT)
    return rank(trial, method.rows >= 0, method.take, k)


def _kept(config: Config) -> int:
    return max(*config.eval.ks, KEPT)


def _pools(found: Iterable[Ranked]) -> list[Pool]:
    """Returns which trials are measured together: those of a part, then of all parts.

    All levels of a category, and all attributes, stand each by itself; without one, the deepest level stands for the
    category, and all attributes are taken together.
    """
    pools: dict[tuple[Any, ...], list[Ranked]] = {}
    for ranked in found:
        trial = ranked.trial
        headline = trial.task == RETRIEVAL or trial.about[0] == "attribute" or trial.about[1] == DEEPEST
        for part in (trial.part, None):
            key = (trial.task, trial.set, part, trial.modality, trial.subject)
            if headline:
                pools.setdefault((*key, None), []).append(ranked)
            if trial.task != RETRIEVAL:
                pools.setdefault((*key, trial.about), []).append(ranked)
    order = {name: place for names in (TASKS, SETS, MODALITIES) for place, name in enumerate(names)}
    keys = sorted(  # the rest, levels and attributes, as they come
        pools, key=lambda k: (order[k[0]], order[k[1]], k[2] is None, k[2] or "", order[k[3]], k[4], k[5] is not None)
    )
    return [Pool(*key, tuple(pools[key])) for key in keys]


def _protocol(config: Config, max_queries: int) -> dict[str, Any]:
    galleries = {
        "listings": "all listings of the part",
        "test": "the positives and hard negatives of the test queries of the part",
    }
    roles = {"aspect": "CATEGORY, ATTRIBUTE", "title": "TITLE"}
    return {
        "retrieval": {
            "gallery": galleries[config.eval.gallery] + ": pictures, title, category, attributes",
            "query": "its picture, its text or both; never category or attributes",
            "kept": _kept(config),  # MRR counts a right one beyond as not found
        },
        "classification": {
            "document": "the distinct positives, and beside them the queries with a photo; where queries are listings "
            "themselves, these alone; without category, attributes and label",
            "classes": "those of the gallery's listings, and of queries that are listings themselves, as texts of the "
            "role " + roles[config.eval.candidates],
            "measures": "of the first choice; with @10 of the true class where it is among the first ten, else of the "
            "first choice (from 100 classes; a part with fewer counts by its first choice among all parts)",
            "several": "where several values are right, each is; the chosen one counts as the truth, else the first",
        },
        "ties": "score, then place in the gallery",
        "intervals": f"bootstrap, 95%, {config.eval.bootstrap_samples} samples of products with all their queries",
        "max_queries": max_queries,
    }


def _repeated(benchmark: Benchmark) -> int:
    names = [(t.part, name, t.id) for name, triplets in benchmark.sets.items() for t in triplets]
    return len(names) - len(set(names))


def _flat(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    flat = {}
    for row in rows:
        task = None if row["task"] == RETRIEVAL else row["task"]
        path = "/".join(filter(None, (row["part"], row["set"], task, row["modality"])))
        notes = dict(row["by"]) | ({} if row["method"] == MODEL else {"method": row["method"]})
        suffix = "".join(f"[{key}={value}]" for key, value in notes.items())
        flat |= {f"{path}/{name}{suffix}": value for name, value in row["measures"].items()}
    return flat
