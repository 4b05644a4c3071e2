"""Vectors that another system made: what it must embed, and what it gave back.

The documents of a benchmark are written as records that `moon_jax.embed` reads, each with an id that tells it from any
other. What comes back is a folder as `moon_jax.embed` writes it, or one with several of them: `embeddings.npy`, a
vector a row, and `ids.json`, the id of every row.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from moon_jax.config import Role
from moon_jax.data import whole_file
from moon_jax.data.documents import Document
from moon_jax.data.picture_files import ImageError
from moon_jax.data.records import DataError
from moon_jax.data.vector_file import IDS, VECTORS
from moon_jax.evaluation.vectors import digest

_FIELDS = {Role.TITLE: "title", Role.CATEGORY: "category", Role.ATTRIBUTE: "attributes"}


def write_documents(documents: Sequence[Document], folder: str | os.PathLike[str]) -> dict[str, int]:
    """Writes `item.jsonl` (listings and class texts) and `query.jsonl`; returns how many records each has.

    Raises:
        DataError: a picture is no file of its own.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    by_kind: dict[str, list[Document]] = {}
    for document in documents:
        by_kind.setdefault(document.kind, []).append(document)
    for kind, those in by_kind.items():
        with whole_file.writing(folder / f"{kind}.jsonl") as file:
            file.writelines(json.dumps(_record(document)).encode() + b"\n" for document in those)
    return {f"{kind}.jsonl": len(those) for kind, those in by_kind.items()}


def _record(document: Document) -> dict[str, Any]:
    said: dict[str, Any] = {"id": digest(document)}
    said |= {_FIELDS[segment.role]: segment.text for segment in document.segments}
    for image in document.images:
        if not isinstance(image.path, str):
            raise DataError(f"{image.path} is no file that another system could open; unpack the pictures first")
    if document.images:
        said |= {"images": [image.path for image in document.images], "boxes": [image.box for image in document.images]}
    return said


class GivenVectors:
    """The vectors in a folder, as a `Baseline`: `fingerprint` covers the files."""

    def __init__(self, name: str, folder: str | os.PathLike[str]):
        """Opens all files; the vectors stay on the disk.

        Raises:
            DataError: no vectors, ids that do not fit them or are repeated, or vectors of several widths.
        """
        self.name, self.counts = name, {}
        self.folder = pathlib.Path(folder)
        places = [self.folder, *sorted(self.folder.glob("*/"))] if self.folder.is_dir() else []
        self._files = [_open(place / VECTORS) for place in places if (place / VECTORS).exists()]
        if not self._files:
            raise DataError(f"there is no {VECTORS} in {self.folder} or in a folder of it")
        self._places: dict[str, tuple[int, int]] = {}  # id -> (file, row)
        told = hashlib.sha256()
        for number, vectors in enumerate(self._files):
            path = pathlib.Path(vectors.filename)
            if vectors.shape[1] != self._files[0].shape[1]:
                raise DataError(
                    f"{path} has vectors of width {vectors.shape[1]}, {self._files[0].filename} of "
                    f"{self._files[0].shape[1]}: queries and listings are compared number by number"
                )
            for row, name in enumerate(_ids(path.with_name(IDS), len(vectors))):
                if name in self._places:
                    raise DataError(f"{path.with_name(IDS)}: the id {name!r} is there twice, or in another file too")
                self._places[name] = number, row
            for file in (path, path.with_name(IDS)):
                with file.open("rb") as opened:
                    told.update(hashlib.file_digest(opened, "sha256").digest())
        self.fingerprint = told.hexdigest()
        self.about = {"given": self.folder.name, "rows": len(self._places)}

    def find(self, documents: Sequence[Document]) -> list[tuple[int, int]]:
        """Returns the file and the row of every document.

        Raises:
            DataError: a document has none.
        """
        names = [digest(document) for document in documents]
        if lost := [name for name in names if name not in self._places]:
            raise DataError(
                f"{self.folder} lacks the vectors of {len(lost)} of {len(names)} documents, the first with the id "
                f"{lost[0]}. Write the documents anew (--documents): an id changes with a text, and with the place, "
                "size and time of a picture"
            )
        return [self._places[name] for name in names]

    def embed(self, documents: Sequence[Document]) -> Float32[np.ndarray, "n d"]:
        """Returns the vectors of documents, made unit vectors.

        Raises:
            ImageError: a vector has NaN: another system too may have found a picture that cannot be read.
            DataError: a document has no row, or a vector is zero or infinite.
        """
        found = np.array([self._files[file][row] for file, row in self.find(documents)], np.float32)
        norms = np.linalg.norm(found.astype(np.float64), axis=1, keepdims=True)
        for error, bad, said in (
            (ImageError, np.isnan(norms), "has NaN"),
            (DataError, np.isinf(norms) | (norms == 0), "is zero or infinite"),
        ):
            if bad.any():
                raise error(f"{self.folder}: the vector of id {digest(documents[int(bad.argmax())])} {said}")
        return np.where(np.abs(norms - 1) < 1e-5, found, found / norms).astype(np.float32)  # unit ones stay to the bit


def _open(path: pathlib.Path) -> np.memmap:
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read ({error})") from None
    if not isinstance(found, np.memmap) or found.ndim != 2 or found.dtype.kind != "f":
        raise DataError(f"{path} must hold a table of floating-point numbers, one vector a row")
    return found


def _ids(path: pathlib.Path, count: int) -> list[str]:
    try:
        ids = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise DataError(f"{path} cannot be read ({error})") from None
    if not isinstance(ids, list) or not all(isinstance(one, str) for one in ids):
        raise DataError(f"{path} must be a list of ids, as the documents have them")
    if len(ids) != count:
        raise DataError(f"{path} has {len(ids)} ids for {count} vectors")
    return ids
