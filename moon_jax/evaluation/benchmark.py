"""What an evaluation asks: which document is put to which candidates, and which of them are right; no vectors yet.

Five tasks, zero-shot (paper 5.1): retrieval of listings by picture, by text and by both; classification of a listing at
every level of its category; prediction of every attribute that it has. A document that is classified shows neither its
category nor its attributes, which would be the answer.
"""

import collections
import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Int

from moon_jax.config import Config, EvalConfig, Role
from moon_jax.data.documents import (
    Document,
    aspect_document,
    attribute_text,
    category_text,
    has_modality,
    item_document,
    query_document,
)
from moon_jax.data.records import DataError, Dataset, Product, Query, Triplet, gallery

MODALITIES = {"image": "image", "text": "text", "item": "both"}  # name in the results -> how a query is asked
SETS = ("seen", "unseen")
TASKS = RETRIEVAL, CLASSIFICATION, ATTRIBUTES = "retrieval", "classification", "attributes"
DEEPEST = "deepest"  # the level of a category that a product is filed under, however deep: the answer of `by: {}`
_LEVELS = ("industry", "1", "2", "3", "4")  # names of the first, second, ... entry of a category


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """One question: a document, and which candidates are right.

    Attributes:
        document: its number in the benchmark.
        truth: numbers of the right candidates, the preferred one first.
        triplet: id of the record that it comes from.
        product: number of the product that is looked for or classified: its questions are resampled together.
        kind: how the query's picture was taken.
        industry: of the product; "" = not known.
    """

    document: int
    truth: tuple[int, ...]
    triplet: str
    product: int
    kind: str = ""
    industry: str = ""


@dataclasses.dataclass(frozen=True)
class Candidates:
    """What a question chooses from.

    Attributes:
        documents: their numbers in the benchmark.
        names: product ids, or the texts of classes.
    """

    documents: Int[np.ndarray, " n"]
    names: tuple[str, ...]

    def __post_init__(self):
        if len(set(self.names)) < len(self.names):
            name = next(name for name, count in collections.Counter(self.names).items() if count > 1)
            raise DataError(f"the candidate {name!r} is listed twice, so that a prediction of it would be ambiguous")


@dataclasses.dataclass(frozen=True)
class Trial:
    """Questions of one kind that are put to the same candidates.

    Attributes:
        task: RETRIEVAL, CLASSIFICATION or ATTRIBUTES.
        set: "seen" or "unseen".
        part: of the data.
        modality: what the documents show: "image", "text" or "item" (both).
        subject: "query" = what a customer asked with; "positive" = the listing itself.
        about: ("level", "2"), ("attribute", "color"), or ("", "") in retrieval.
        asked: in the order of a hash of their ids.
        candidates: of all of them.
        lacking: queries or listings left out: without such a picture or text, level or attribute.
    """

    task: str
    set: str
    part: str
    modality: str
    subject: str
    about: tuple[str, str]
    asked: tuple[Asked, ...]
    candidates: Candidates
    lacking: int


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """All questions about a data set.

    Attributes:
        documents: all that must be embedded, each once; the listings of a gallery stand together.
        trials: what is asked.
        sets: the queries, cut to `max_queries`, in the order of a hash of their ids.
        galleries: listings of every part, by id.
        items: product id -> its document, as a listing in the gallery.
        queries: (query, modality) -> its document.
    """

    documents: tuple[Document, ...]
    trials: tuple[Trial, ...]
    sets: dict[str, tuple[Triplet, ...]]
    galleries: dict[str, tuple[Product, ...]]
    items: dict[str, int]
    queries: dict[tuple[Query, str], int]

    def __post_init__(self):
        for trial in self.trials:
            for asked in trial.asked if trial.task != RETRIEVAL else ():
                roles = {segment.role for segment in self.documents[asked.document].segments}
                if roles & {Role.CATEGORY, Role.ATTRIBUTE}:
                    raise ValueError(
                        f"{trial.task}: the document of {asked.triplet!r} shows its category or attributes, which are "
                        "the answer (make it with aspects=False)"
                    )


def build(dataset: Dataset, config: Config, max_queries: int = 0) -> Benchmark:
    """Returns the questions of a data set.

    Args:
        dataset: its test sets and listings.
        config: `eval` says which tasks and which gallery, `data` what a listing shows.
        max_queries: per set; a larger set is cut to the first ones in the order of a hash. 0 = all.

    Raises:
        DataError: no test queries or another number than expected, or a gallery lacks what a query looks for.
    """
    there = sum(len(getattr(dataset, name)) for name in SETS)
    if not there:
        raise DataError("there are no test queries: both `seen` and `unseen` are empty (see config.data.unseen_share)")
    if config.eval.expected_queries not in (0, there):
        raise DataError(
            f"the data has {there} test queries, config.eval.expected_queries says {config.eval.expected_queries}: "
            "is the file whole, and is config.data.unseen_share as it was (it moves training queries to the test)? "
            "0 takes any number"
        )
    sets = {name: first_by_hash(getattr(dataset, name), max_queries) for name in SETS}
    parts = sorted({triplet.part for triplets in sets.values() for triplet in triplets})
    galleries = {part: _gallery(dataset, part, config.eval) for part in parts}
    return _Builder(dataset, sets, galleries, config).build()


def first_by_hash(triplets: Iterable[Triplet], count: int = 0) -> tuple[Triplet, ...]:
    """Returns the triplets in the order of the hash of their ids, `count` of them (0 = all)."""
    ordered = tuple(sorted(triplets, key=lambda t: (stable_hash(f"{t.part}\0{t.id}"), t.id)))
    return ordered[:count] if count else ordered


def stable_hash(text: str) -> int:
    """Returns 64 bits that depend on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def levels(category: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yields (name of the level, the category down to it): "industry", "1", ... and "deepest" for all of it."""
    for depth in range(len(category)):
        yield _LEVELS[depth] if depth < len(_LEVELS) else str(depth), tuple(category[: depth + 1])
    if category:
        yield DEEPEST, tuple(category)


def _gallery(dataset: Dataset, part: str, config: EvalConfig) -> tuple[Product, ...]:
    if config.gallery == "listings":
        return gallery(dataset, part)
    ids = {
        product.id
        for name in SETS
        for triplet in getattr(dataset, name)
        if triplet.part == part
        for product in (triplet.positive, triplet.negative)
        if product is not None
    }
    ids |= {i for name in SETS for t in getattr(dataset, name) if t.part == part for i in t.relevant}
    return tuple(dataset.products[product_id] for product_id in sorted(ids & dataset.products.keys()))


class _Builder:
    def __init__(
        self,
        dataset: Dataset,
        sets: dict[str, tuple[Triplet, ...]],
        galleries: dict[str, tuple[Product, ...]],
        config: Config,
    ):
        self._dataset, self._sets, self._galleries, self._config = dataset, sets, galleries, config
        self._documents: dict[Document, int] = {}

    def build(self) -> Benchmark:
        items = {
            product.id: self._number(item_document(product, self._config.data))
            for products in self._galleries.values()
            for product in products
        }
        queries = {
            (triplet.query, name): self._number(query_document(triplet.query, modality))
            for name, modality in MODALITIES.items()
            for triplets in self._sets.values()
            for triplet in triplets
            if has_modality(triplet.query, modality)
        }
        trials = []
        for part, products in self._galleries.items():
            listed = Candidates(np.array([items[p.id] for p in products]), tuple(p.id for p in products))
            choices = list(self._choices(products))
            for name, triplets in self._sets.items():
                triplets = [triplet for triplet in triplets if triplet.part == part]
                for modality in MODALITIES:
                    if RETRIEVAL in self._config.eval.tasks:
                        trials.append(self._retrieval(name, part, modality, triplets, listed, queries))
                    trials += self._choosing(name, part, modality, triplets, choices, queries)
        trials = tuple(trial for trial in trials if trial.asked)
        return Benchmark(tuple(self._documents), trials, self._sets, self._galleries, items, queries)

    def _number(self, document: Document) -> int:
        return self._documents.setdefault(document, len(self._documents))

    def _retrieval(
        self,
        name: str,
        part: str,
        modality: str,
        triplets: Sequence[Triplet],
        listed: Candidates,
        queries: dict[tuple[Query, str], int],
    ) -> Trial:
        places = {product_id: place for place, product_id in enumerate(listed.names)}
        relevant: dict[frozenset[str], tuple[int, ...]] = {}

        def answers(triplet: Triplet) -> tuple[int, ...]:
            missing = ({triplet.positive.id} | triplet.relevant) - places.keys()
            if missing:
                raise DataError(
                    f"the gallery of {part!r} lacks {sorted(missing)[0]!r}, which the query {triplet.id!r} looks for"
                )
            if triplet.relevant not in relevant:
                relevant[triplet.relevant] = tuple(sorted(places[product_id] for product_id in triplet.relevant))
            own, others = places[triplet.positive.id], relevant[triplet.relevant]
            return (own, *(place for place in others if place != own)) if others else (own,)

        asked = tuple(
            self._asked(triplet, queries[triplet.query, modality], answers(triplet), triplet.query.kind)
            for triplet in triplets
            if (triplet.query, modality) in queries
        )
        return Trial(RETRIEVAL, name, part, modality, "query", ("", ""), asked, listed, len(triplets) - len(asked))

    def _asked(self, triplet: Triplet, document: int, truth: tuple[int, ...], kind: str = "") -> Asked:
        category = triplet.positive.category
        number = self._dataset.numbers[triplet.positive.id]
        return Asked(document, truth, triplet.id, number, kind, category[0] if category else "")

    def _choices(self, products: Sequence[Product]) -> Iterator[tuple[str, str, Candidates]]:
        """Yields (task, level or key, classes): of the listings of a part; a choice of one is none."""
        texts: dict[str, set[str]] = {}
        attributes: dict[str, set[str]] = {}
        for product in products:
            for level, path in levels(product.category):
                texts.setdefault(level, set()).add(category_text(path))
            for key, values in product.attributes:
                attributes.setdefault(key, set()).update(values)
        if CLASSIFICATION in self._config.eval.tasks:
            for level in sorted(texts, key=lambda level: (level == DEEPEST, level != _LEVELS[0], level)):
                names = sorted(texts[level])
                yield from self._classes(CLASSIFICATION, level, names, names, Role.CATEGORY)
        if ATTRIBUTES in self._config.eval.tasks:
            for key, values in sorted(attributes.items()):
                names = sorted(values)
                shown = [attribute_text([(key, [value])]) for value in names]
                yield from self._classes(ATTRIBUTES, key, names, shown, Role.ATTRIBUTE)

    def _classes(
        self, task: str, about: str, names: Sequence[str], texts: Sequence[str], role: Role
    ) -> Iterator[tuple[str, str, Candidates]]:
        if len(names) > 1:
            role = role if self._config.eval.candidates == "aspect" else Role.TITLE
            numbers = [self._number(aspect_document(text, role)) for text in texts]
            yield task, about, Candidates(np.array(numbers), tuple(names))

    def _choosing(
        self,
        name: str,
        part: str,
        modality: str,
        triplets: Sequence[Triplet],
        choices: Sequence[tuple[str, str, Candidates]],
        queries: dict[tuple[Query, str], int],
    ) -> Iterator[Trial]:
        """Yields classification and attributes: of the distinct positives, and of the queries that have a photo."""
        if not choices:
            return
        first = {triplet.positive.id: triplet for triplet in reversed(triplets)}  # of each product, the first triplet
        shown = {}
        for triplet in first.values():
            if (document := self._closed(triplet.positive, modality)) is not None:
                shown[triplet.id, triplet.positive.id] = document
        listings = [triplet for triplet in triplets if first[triplet.positive.id] is triplet]
        photos = [triplet for triplet in triplets if triplet.query.image is not None and modality != "text"]
        for task, about, classes in choices:
            places = {text: place for place, text in enumerate(classes.names)}
            for subject, those in (("positive", listings), ("query", photos)):
                asked = []
                for triplet in those:
                    if subject == "positive":
                        document = shown.get((triplet.id, triplet.positive.id))
                    else:
                        document = queries.get((triplet.query, modality))
                    truth = tuple(places[answer] for answer in _answers(triplet.positive, task, about))
                    if document is not None and truth:
                        kind = triplet.query.kind if subject == "query" else ""
                        asked.append(self._asked(triplet, document, truth, kind))
                key = "level" if task == CLASSIFICATION else "attribute"
                yield Trial(
                    task, name, part, modality, subject, (key, about), tuple(asked), classes, len(those) - len(asked)
                )

    def _closed(self, product: Product, modality: str) -> int | None:
        """Returns the document of a listing without its category and attributes; None where nothing is left."""
        image, title = modality != "text", modality != "image"
        if (image and not product.images) or (title and not product.title):
            return None
        return self._number(item_document(product, self._config.data, aspects=False, title=title, images=image))


def _answers(product: Product, task: str, about: str) -> tuple[str, ...]:
    """Returns the names of the right classes, the preferred one first; () where the product has none."""
    if task == CLASSIFICATION:
        return tuple(category_text(path) for level, path in levels(product.category) if level == about)
    return tuple(dict.fromkeys(value for key, values in product.attributes if key == about for value in values))
