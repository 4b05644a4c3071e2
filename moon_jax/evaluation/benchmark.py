"""What an evaluation asks: which document is put to which candidates, and which of them are right; no vectors yet.

Five tasks, zero-shot (paper 5.1): retrieval of listings by picture, by text and by both; classification of a listing at
every level of its category; prediction of every attribute that it has. A document that is classified shows neither its
category nor its attributes, which would be the answer. Where the queries are listings themselves (M5Product), they are
classified, by their labels.
"""

import collections
import dataclasses
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from moon_jax.config import Config, EvalConfig, Role
from moon_jax.data.documents import (
    Document,
    aspect_document,
    has_modality,
    item_document,
    query_document,
)
from moon_jax.data.records import DataError, Dataset, Labelled, Product, Query, Triplet, gallery
from moon_jax.evaluation.choices import CLASSIFICATION, RETRIEVAL, Choice, Truth, choices, truths_of

MODALITIES = {"image": "image", "text": "text", "item": "both"}  # name in the results -> how a query is asked
SETS = ("seen", "unseen")


class Asked(NamedTuple):  # tens of millions of them for the whole of MBE
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
        subject: "query" = what a customer asked with; "positive" = the listing itself, or the query's own listing.
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
        open_ones = [
            any(segment.role in (Role.CATEGORY, Role.ATTRIBUTE) for segment in document.segments)
            for document in self.documents
        ]
        for trial in self.trials:
            for asked in trial.asked if trial.task != RETRIEVAL else ():
                if open_ones[asked.document]:
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
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")


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
        self._others: dict[str, int] = {}

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
            options = self._choices(part, products)
            for name, triplets in self._sets.items():
                triplets = [triplet for triplet in triplets if triplet.part == part]
                truths = truths_of(map(_listing, triplets), [choice for choice, _ in options])
                for modality in MODALITIES:
                    if RETRIEVAL in self._config.eval.tasks:
                        trials.append(self._retrieval(name, part, modality, triplets, listed, queries))
                    trials += self._choosing(name, part, modality, triplets, options, truths, queries)
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

        def truth_of(triplet: Triplet) -> tuple[int, ...]:
            missing = [name for name in {triplet.positive.id} | triplet.relevant if name not in places]
            if missing:
                raise DataError(
                    f"the gallery of {part!r} lacks {sorted(missing)[0]!r}, which the query {triplet.id!r} looks for"
                )
            if triplet.relevant not in relevant:
                relevant[triplet.relevant] = tuple(sorted(places[product_id] for product_id in triplet.relevant))
            own, others = places[triplet.positive.id], relevant[triplet.relevant]
            return (own, *(place for place in others if place != own)) if others else (own,)

        asked = tuple(
            Asked(
                document,
                truth_of(triplet),
                triplet.id,
                self._dataset.numbers[triplet.positive.id],
                triplet.query.kind,
                _industry(triplet.positive),
            )
            for triplet in triplets
            if (document := queries.get((triplet.query, modality))) is not None
        )
        return Trial(RETRIEVAL, name, part, modality, "query", ("", ""), asked, listed, len(triplets) - len(asked))

    def _choices(self, part: str, products: Sequence[Product]) -> list[tuple[Choice, Candidates]]:
        """Returns the classes of the listings of a part, and of the queries that are listings themselves."""
        asking = [t.listing for name in SETS for t in getattr(self._dataset, name) if t.listing and t.part == part]
        listings = itertools.chain((Labelled(product, ()) for product in products), asking)
        found = []
        for choice in choices(listings, self._dataset.labels if asking else (), self._config.eval.tasks):
            role = choice.role if self._config.eval.candidates == "aspect" else Role.TITLE
            numbers = [self._number(aspect_document(text, role)) for text in choice.texts]
            found.append((choice, Candidates(np.array(numbers), choice.names)))
        return found

    def _choosing(
        self,
        name: str,
        part: str,
        modality: str,
        triplets: Sequence[Triplet],
        options: Sequence[tuple[Choice, Candidates]],
        truths: Mapping[str, Sequence[Truth]],
        queries: dict[tuple[Query, str], int],
    ) -> Iterator[Trial]:
        """Yields classification and attributes: of the distinct listings, and of the queries that have a photo.

        The listing is the query's own where it has one, else the positive.
        """
        first: dict[str, Triplet] = {}
        for triplet in triplets:
            first.setdefault(_listing(triplet).product.id, triplet)
        photos = [t for t in triplets if t.listing is None and t.query.image is not None and modality != "text"]
        for subject, those in (("positive", list(first.values())), ("query", photos)):
            asked: list[list[Asked]] = [[] for _ in options]
            for triplet in those if options else ():
                product = _listing(triplet).product
                if subject == "positive":
                    document, kind = self._closed(product, modality), ""
                else:
                    document, kind = queries.get((triplet.query, modality)), triplet.query.kind
                if document is not None:
                    about = triplet.id, self._group(product), kind, _industry(product)
                    for place, truth in truths[product.id]:
                        asked[place].append(Asked(document, truth, *about))
            for (choice, classes), those_asked in zip(options, asked, strict=True):
                about = ("level" if choice.task == CLASSIFICATION else "attribute", choice.about)
                lacking = len(those) - len(those_asked)
                yield Trial(choice.task, name, part, modality, subject, about, tuple(those_asked), classes, lacking)

    def _group(self, product: Product) -> int:
        """Returns the number of a product; the queries' own listings are no products: theirs follow."""
        known = self._dataset.numbers.get(product.id)
        if known is None:
            known = self._others.setdefault(product.id, len(self._dataset.numbers) + len(self._others))
        return known

    def _closed(self, product: Product, modality: str) -> int | None:
        """Returns the document of a listing without its category and attributes; None where nothing is left."""
        image, title = modality != "text", modality != "image"
        if (image and not product.images) or (title and not product.title):
            return None
        return self._number(item_document(product, self._config.data, aspects=False, title=title, images=image))


def _listing(triplet: Triplet) -> Labelled:
    """Returns what is classified: the query's own listing where it is one, else the positive."""
    return triplet.listing or Labelled(triplet.positive, ())


def _industry(product: Product) -> str:
    return product.category[0] if product.category else ""
