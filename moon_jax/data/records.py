"""What a record says, as plain frozen dataclasses: pictures, listings, queries, triplets and the data set they form."""

import dataclasses
import functools
import hashlib
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

from PIL import Image

Box = tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels of the upright source picture


@runtime_checkable
class StoredImage(Protocol):
    """A picture inside a larger file, read when it is needed: a cell of a table, a record of a store.

    It is hashable and can be pickled, and as a text it says where the picture is, for errors.
    """

    def read(self) -> bytes:
        """Returns the picture as the bytes of a file; any exception means that it cannot be read."""
        ...


# A path, or a place in a larger file; what an encoder is given may also be in memory, encoded or not.
ImageSource = str | bytes | Image.Image | StoredImage


class DataError(ValueError):
    """Data that cannot be used; the message names the file and line, and what to change."""

    reason = "record that cannot be used"  # in reports, the same for all errors of a kind


@dataclasses.dataclass(frozen=True, slots=True)
class ImageRef:
    """A picture and, where it is known, the box of the product in it (the core crop, paper 3.1)."""

    path: ImageSource  # of a file, absolute, or a place in one: whether it is there is not checked before it is loaded
    box: Box | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Product:
    """A listing. Fields that the source does not give are empty."""

    id: str
    title: str = ""
    description: str = ""
    images: tuple[ImageRef, ...] = ()
    category: tuple[str, ...] = ()  # industry, level 1, ... level 4, without the empty ones
    attributes: tuple[tuple[str, tuple[str, ...]], ...] = ()  # (key, values) in the order of the source
    part: str = ""  # the set within the folder that lists it ("grocery")


@dataclasses.dataclass(frozen=True, slots=True)
class Query:
    """What a customer looked for: a text, a picture or both, never neither."""

    text: str
    image: ImageRef | None
    kind: str = ""  # how the picture was taken ("back_view"); results are also reported by it


class Labelled(NamedTuple):
    """A listing of a benchmark and what it is, as the ground truth says; the labels are never shown to a model."""

    product: Product
    labels: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Triplet:
    """A query, the product bought after it, and a hard negative: another product of the same category."""

    id: str
    query: Query
    positive: Product
    negative: Product | None
    part: str
    relevant: frozenset[str] = frozenset()  # ids of all listings that answer it, where that is not the positive alone
    listing: Labelled | None = None  # the query's own, where it is one: what is classified instead of the positive


@dataclasses.dataclass(frozen=True)
class Dataset:
    """All that a run reads: the training triplets, two test sets, and every listing that is known.

    `seen` asks for products that training may have met, `unseen` for products it never did: neither as a positive nor
    as a negative.
    """

    train: tuple[Triplet, ...]
    seen: tuple[Triplet, ...]
    unseen: tuple[Triplet, ...]
    products: dict[str, Product]  # by id, in sorted order
    fingerprint: str  # sha256 of the bytes read and of the settings of the split
    report: dict[str, Any]  # counts; skipped records by reason and the first of them by name
    labels: tuple[str, ...] = ()  # all that the listings of a benchmark are labelled with: what a query may be

    @functools.cached_property
    def numbers(self) -> dict[str, int]:
        """The dense number of every product id, in sorted order of the ids: what the loss masks by (fits int32)."""
        return {product_id: number for number, product_id in enumerate(self.products)}


def gallery(dataset: Dataset, part: str) -> tuple[Product, ...]:
    """Returns all known listings of a part, sorted by id; a listing that several parts use is in each one's gallery.

    Raises:
        DataError: no listing belongs to `part`.
    """
    ids = {product.id for product in dataset.products.values() if product.part == part}
    for triplet in (t for split in (dataset.train, dataset.seen, dataset.unseen) for t in split if t.part == part):
        ids.add(triplet.positive.id)
        if triplet.negative is not None:
            ids.add(triplet.negative.id)
    if not ids:
        there = ", ".join(sorted({product.part for product in dataset.products.values()}))
        raise DataError(f"no listing belongs to the part {part!r}; there are: {there}")
    return tuple(dataset.products[product_id] for product_id in sorted(ids))


def replace_images(dataset: Dataset, new: Callable[[ImageRef, str], ImageRef]) -> Dataset:
    """Returns the data set with other references to its pictures.

    Args:
        dataset: as it is.
        new: gives the new reference for one of a listing and its title, or one of a query and its text; called for
            every listing once, for every query, and for the query's own listing where it is one.
    """
    products = {
        key: dataclasses.replace(product, images=tuple(new(image, product.title) for image in product.images))
        for key, product in dataset.products.items()
    }

    def moved(triplet: Triplet) -> Triplet:
        query, negative, listing = triplet.query, triplet.negative, triplet.listing
        if query.image is not None:
            query = dataclasses.replace(query, image=new(query.image, query.text))
        negative = None if negative is None else products[negative.id]
        if listing is not None:
            images = tuple(new(image, listing.product.title) for image in listing.product.images)
            listing = listing._replace(product=dataclasses.replace(listing.product, images=images))
        positive = products[triplet.positive.id]
        return dataclasses.replace(triplet, query=query, positive=positive, negative=negative, listing=listing)

    sets = {name: tuple(map(moved, getattr(dataset, name))) for name in ("train", "seen", "unseen")}
    return dataclasses.replace(dataset, products=products, **sets)


def training_texts(dataset: Dataset) -> Iterator[str]:
    """Yields every text of the training set, what a tokenizer may be trained on: test products are left out."""
    listings = {p.id: p for t in dataset.train for p in (t.positive, t.negative) if p is not None}
    for triplet in dataset.train:
        yield triplet.query.text
    for _, product in sorted(listings.items()):
        yield from (product.title, product.description, *product.category)
        yield from (f"{key}: {', '.join(values)}" for key, values in product.attributes)


def identity(title: str, image: str) -> str:
    """Returns the id of a product whose source gives none: a digest of its normalised title and image reference.

    Titles are compared as NFKC, case-folded, with runs of white space as one space. `image` is the reference as it
    stands in the record (not the absolute path), so the id is the same on every machine.
    """
    title = " ".join(unicodedata.normalize("NFKC", title).casefold().split())
    return hashlib.sha256(f"{title}\0{image}".encode()).hexdigest()[:32]


def fill(known: Product, other: Product) -> Product:
    """Returns `known` with its empty fields taken from `other`, another mention of the same product."""
    names = ("title", "description", "images", "category", "attributes", "part")
    missing = {name: getattr(other, name) for name in names if not getattr(known, name) and getattr(other, name)}
    return dataclasses.replace(known, **missing) if missing else known
