"""Records of things to embed, as `Encoder.encode` and `python -m moon_jax.embed` take them: one dict each -> Document.

    {"id": "sku-1", "title": "Warm coat", "description": "Made of wool.", "category": ["Apparel", "Men", "Coats"],
     "attributes": {"color": ["red", "blue"]}, "images": ["front.jpg", "back.jpg"], "boxes": [[10, 20, 200, 300], null]}

Every key may be missing or null, but something to embed must be there. "text" is another name of "title". A category
is a text or a list of levels; attributes are a text, a list of texts, or a dict whose values are texts, numbers or
lists of them. Images are one or a list of paths; in Python also Pillow images and the bytes of a picture file. A box is
the place of the product in the picture, x1, y1, x2, y2 in pixels of the upright picture. With an image store a path or
a URL is looked up there first; a box is in pixels of the picture that was packed, whatever its size in the store.
"""

import collections
import dataclasses
import difflib
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from PIL import Image

from moon_jax.config import DataConfig, Role
from moon_jax.data import store_refs
from moon_jax.data.documents import KINDS, Document, attribute_text, category_text, segments
from moon_jax.data.policy import is_number
from moon_jax.data.records import DataError, ImageRef
from moon_jax.data.sources import lines
from moon_jax.data.sources.lines import RecordError
from moon_jax.data.store import Store

KEYS = ("id", "text", "title", "description", "category", "attributes", "images", "boxes")
NAMED_RECORDS = 10  # bad records that an error names


@dataclasses.dataclass(frozen=True)
class Reader:
    """Turns records into documents of one kind."""

    kind: str  # documents.KINDS
    data: DataConfig  # what a listing shows: images_per_item, description
    folder: pathlib.Path  # relative paths of pictures start here, and so do the keys of the store
    store: Store | None = None  # has pictures by path or URL
    unread: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)  # items that have more
    looked_up: collections.Counter[bool] = dataclasses.field(default_factory=collections.Counter)  # is it in the store?

    def __post_init__(self):
        """Raises ValueError for an unknown kind."""
        if self.kind not in KINDS:
            raise ValueError(f"the kind is one of {', '.join(KINDS)}, not {self.kind!r}")

    def documents(self, records: Iterable[Any], first: int = 0) -> list[Document]:
        """Returns the documents of records, in order.

        Args:
            records: dicts, or plain texts.
            first: number of the first one, for errors.

        Raises:
            DataError: names every record that cannot be used (the first ten of many), and all that is wrong with it.
        """
        documents, problems = [], []
        for number, record in enumerate(records, first):
            try:
                documents.append(self.document(record, f"record {number}"))
            except DataError as error:
                problems.append(f"{name_of(record, f'record {number}')}: {error}")
        if problems:
            raise DataError(listed(problems))
        return documents

    def document(self, record: Any, name: str = "") -> Document:
        """Returns the document of one record.

        A plain document and a query have all that the record holds. An item has what the model saw of listings in
        training: the first `data.images_per_item` pictures, and the description only with `data.description`.

        Args:
            record: a dict, or a text, which is short for {"text": it}.
            name: what errors about its pictures call it; its id is added.

        Raises:
            DataError: names every field that cannot be used.
        """
        if isinstance(record, str):
            record = {"text": record}
        if not isinstance(record, Mapping):
            raise DataError(f"a record must be a dict or a text, this is {lines.short(record)}")
        found = _Fields(record, self)
        item = self.kind == "item"
        title, description = found.title(), found.get(lines.text, "description")
        if not item or self.data.description:
            title = f"{title}\n{description}".strip()
        category, attributes, images = found.category(), found.attributes(), found.images()
        found.check_id()
        found.raise_problems()
        if item:
            self._count_unread(description, len(images))
            images = images[: self.data.images_per_item]
        document = Document(
            images,
            segments((Role.TITLE, title), (Role.CATEGORY, category), (Role.ATTRIBUTE, attributes)),
            self.kind,
            name_of(record, name),
        )
        if not document.images and not document.segments:
            unread = " (this model reads no descriptions of items)" if description else ""
            raise DataError(f"there is nothing to embed in it{unread}")
        return document

    def _count_unread(self, description: str, images: int) -> None:
        self.unread.update(
            name
            for name, unread in (
                (f"pictures beyond the first {self.data.images_per_item}", images > self.data.images_per_item),
                ("a description", bool(description) and not self.data.description),
            )
            if unread
        )


def name_of(record: Any, place: str) -> str:
    """Returns how errors call a record: "record 7 (id 'sku-1')"."""
    given = record.get("id") if isinstance(record, Mapping) else None
    return place if given is None else f"{place} (id {lines.short(given)})".strip()


def listed(problems: Sequence[str]) -> str:
    """Returns one message of many problems."""
    more = f"\n  - and {len(problems) - NAMED_RECORDS} more" if len(problems) > NAMED_RECORDS else ""
    count = f"{len(problems)} records cannot be used" if len(problems) > 1 else "a record cannot be used"
    return f"{count}:" + "".join(f"\n  - {problem}" for problem in problems[:NAMED_RECORDS]) + more


class _Fields:
    """Reads the fields of one record and collects what is wrong with them."""

    def __init__(self, record: Mapping[str, Any], reader: Reader):
        self._record, self._reader = record, reader
        self._problems: list[str] = []
        for key in record:
            if key not in KEYS:
                close = difflib.get_close_matches(str(key), KEYS, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"the keys are {', '.join(KEYS)}"
                self._problems.append(f"unknown key {key!r}; {hint}")

    def get(self, read: Any, key: str, *args: Any) -> Any:
        """Returns `read(value, key)`, or "" with the problem noted."""
        try:
            return read(self._record.get(key), key, *args)
        except RecordError as error:
            self._problems.append(str(error))
            return ""

    def raise_problems(self) -> None:
        """Raises DataError if anything was wrong."""
        if self._problems:
            raise DataError("; ".join(self._problems))

    def check_id(self) -> None:
        """Notes an id that is neither a text nor a whole number."""
        given = self._record.get("id")
        if given is not None and (isinstance(given, bool) or not isinstance(given, (str, int))):
            self._problems.append(f"id: must be a text or a whole number, is {lines.short(given)}")

    def title(self) -> str:
        """Returns the title, by either name."""
        title, text = (self.get(lines.text, key) for key in ("title", "text"))
        if title and text and title != text:
            self._problems.append("title and text: two names of the same field, with different texts")
        return title or text

    def category(self) -> str:
        """Returns the category as one text."""
        return self.get(_category, "category")

    def attributes(self) -> str:
        """Returns the attributes as one text."""
        return self.get(_attributes, "attributes")

    def images(self) -> tuple[ImageRef, ...]:
        """Returns the pictures with their boxes, from the store where it has them."""
        images, boxes = _several(self._record.get("images")), self._record.get("boxes")
        refs = [self.get(self._image, "images", image, number) for number, image in enumerate(images)]
        if boxes is None:
            boxes = [None] * len(images)
        if not isinstance(boxes, (list, tuple)) or len(boxes) != len(images):
            self._problems.append(f"boxes: must be a list with one box or null for each of the {len(images)} images")
            return ()
        out = []
        for number, (ref, box) in enumerate(zip(refs, boxes, strict=True)):
            found = self.get(lambda _, key, box=box: lines.box(_plain(box), key), f"boxes[{number}]")
            if ref:
                boxed = dataclasses.replace(ref, box=found or None)
                out.append(self.get(lambda _, key, ref=boxed: self._stored(ref, key), f"images[{number}]"))
        return tuple(filter(None, out))

    def _stored(self, ref: ImageRef, field: str) -> ImageRef:
        store = self._reader.store
        if store is None or not isinstance(ref.path, str):
            return ref
        found = store_refs.attach_one(ref, store, self._reader.folder)
        if found is None and lines.is_url(ref.path):
            raise RecordError(field, f"the image store {store.folder} does not hold {lines.short(ref.path)}")
        self._reader.looked_up[found is not None] += 1
        return found or ref

    def _image(self, _: Any, key: str, image: Any, number: int) -> ImageRef | None:
        if isinstance(image, (bytes, Image.Image)):
            return ImageRef(image)
        field, path = f"{key}[{number}]", os.fspath(image) if isinstance(image, os.PathLike) else image
        if not isinstance(path, str) or not path.strip():
            raise RecordError(field, f"must be a path, a Pillow image or the bytes of a file, is {lines.short(image)}")
        if lines.is_url(path.strip()) and self._reader.store is None:
            hint = "download the picture and name the file here, or name an image store that holds it"
            raise RecordError(field, f"is a URL ({lines.short(path)}); {hint}")
        return lines.image(path, None, self._reader.folder, field)


def _several(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]


def _plain(box: Any) -> Any:
    """Returns a box as JSON would have it: tuples and arrays as lists of Python numbers."""
    if hasattr(box, "tolist"):
        return box.tolist()
    return [x.item() if hasattr(x, "item") else x for x in box] if isinstance(box, (list, tuple)) else box


def _category(value: Any, key: str) -> str:
    if isinstance(value, (list, tuple)):
        return category_text([level for level in (lines.text(v, key) for v in value) if level])
    return lines.text(value, key)


def _attributes(value: Any, key: str) -> str:
    if isinstance(value, Mapping):
        pairs = [(lines.text(name, key), _values(given, f"{key}.{name}")) for name, given in value.items()]
        return attribute_text((name, values) for name, values in pairs if name and values)
    if isinstance(value, (list, tuple)):
        return "; ".join(text for text in (lines.text(v, key) for v in value) if text)
    return lines.text(value, key)


def _values(given: Any, key: str) -> list[str]:
    texts = (str(v) if is_number(v) else lines.text(v, key) for v in _several(given))
    return [text for text in texts if text]
