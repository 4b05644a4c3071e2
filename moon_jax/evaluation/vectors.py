"""Embeddings on the disk: what was embedded once is never embedded again, and a killed evaluation goes on.

A folder belongs to one model. `vectors.f32` has a row of float32 for every document; `index.jsonl` says which:

    {"documents": [digest, ...], "plan": "..."}    a window begins: its rows follow those of the windows before
    {"rows": [...], "left_out": {row: reason}}     these rows of the window are written
    {"end": true}                                  and the window is whole

A line is written after the numbers that it speaks of. Documents are embedded window by window; the batches of a window
depend on its documents alone, so that a run that was killed and goes on gives the same bits as one that was not.
"""

import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float32, Int
from tqdm import tqdm

from moon_jax.data import whole_file
from moon_jax.data.documents import Document
from moon_jax.data.identity import differences
from moon_jax.data.records import DataError, ImageSource

VECTORS, INDEX, ABOUT = "vectors.f32", "index.jsonl", "about.json"
WINDOW = 8192  # documents of a window, whatever the number of devices

# (rows of the window, their vectors, row -> why it has none), for each batch
Batch = tuple[Int[np.ndarray, " n"], Float32[np.ndarray, "n d"], Mapping[int, str]]
# (documents of a window, its first batch that is wanted) -> the batches from there
Batches = Callable[[Sequence[Document], int], Iterator[Batch]]


class VectorsError(DataError):
    """Saved embeddings that cannot be used; the message names the folder and says what to do."""


def digest(document: Document) -> str:
    """Returns what tells a document from any other: a digest of its texts with their roles, its pictures and boxes.

    A picture is told by where it is, and a file also by its size and time: one that was drawn anew is embedded anew.
    """
    images = [(str(image.path), _state(image.path), image.box) for image in document.images]
    texts = [(int(segment.role), segment.text) for segment in document.segments]
    said = json.dumps([document.kind, images, texts], ensure_ascii=True)
    return hashlib.sha256(said.encode()).hexdigest()[:32]


def _state(path: ImageSource) -> tuple[int, int]:
    try:
        found = os.stat(path) if isinstance(path, str) else None
    except (OSError, ValueError):
        found = None
    return (found.st_size, found.st_mtime_ns) if found else (0, 0)


@dataclasses.dataclass
class _Window:
    """The last window: `batches` of it are written; it is `begun` when the index knows of it."""

    first: int
    digests: list[str]
    plan: str
    written: set[int]
    begun: bool = False
    batches: int = 0
    whole: bool = False


class SavedVectors:
    """The embeddings of one model in one folder. Process 0 writes; the others read the same disk.

    Attributes:
        folder: of the files.
        width: numbers in an embedding; 0 as long as there is none.
        left_out: digest -> why the document has no vector.
        windows: in which the documents were embedded; batches are formed within one.
    """

    def __init__(self, folder: pathlib.Path, identity: Mapping[str, Any]):
        """Reads what an earlier run has left; an incomplete line or row at the end is dropped.

        Args:
            folder: made if it is not there.
            identity: all that decides the vectors, as JSON; the folder must have been begun with the same.

        Raises:
            VectorsError: the folder has embeddings of another model, or is damaged.
        """
        self.folder, self.width, self.left_out, self.windows = folder, 0, {}, 0
        self._identity = json.loads(json.dumps(identity))
        self._rows: dict[str, int] = {}
        self._known: dict[Document, str] = {}  # digests: each file is looked at once
        self._window = _Window(0, [], "", set(), whole=True)
        self._length = 0  # of the index that holds
        if (folder / ABOUT).exists():
            self._check_identity()
            self._read()
        elif (folder / INDEX).exists() and (folder / INDEX).stat().st_size:
            raise VectorsError(f"{folder} has embeddings, and no {ABOUT} that says of which model: remove the folder")

    def missing(self, documents: Sequence[Document]) -> list[Document]:
        """Returns the documents that have no vector here yet, each once."""
        there = dict(zip(self._digests(documents), documents, strict=True))
        return [document for name, document in there.items() if name not in self._rows and name not in self.left_out]

    def _digests(self, documents: Sequence[Document]) -> list[str]:
        for document in documents:
            if document not in self._known:
                self._known[document] = digest(document)
        return [self._known[document] for document in documents]

    def fill(
        self, documents: Sequence[Document], batches: Batches, name: str, *, plan: str = "", window: int = WINDOW
    ) -> None:
        """Embeds the documents that are missing. Every process calls it alike.

        Args:
            documents: what is wanted.
            batches: embeds a window.
            name: of the model, for the bar.
            plan: what decides which documents of a window share a batch. A run that goes on under another plan embeds
                the window that was interrupted from its beginning.
            window: documents of a window.

        Raises:
            VectorsError: another process is writing here, or a vector is not finite or not as wide as the others.
        """
        todo = self.missing(documents)
        if not todo:
            return
        main = jax.process_index() == 0
        if jax.process_count() > 1:  # all have read what is there, before one of them writes
            multihost_utils.sync_global_devices(f"embedding {name}")
        files = _Files(self.folder, self._length) if main else None
        try:
            with tqdm(total=len(todo), unit="document", desc=f"embedding ({name})", disable=not main) as bar:
                self._go_on(documents, batches, plan, files, bar)
                todo = self.missing(documents)
                for start in range(0, len(todo), window):
                    part = todo[start : start + window]
                    self._window = _Window(self._end, self._digests(part), plan, set())
                    self._embed(part, batches, files, bar)
        finally:
            if files is not None:
                files.close()
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"embedded {name}")

    def rows(self, documents: Sequence[Document]) -> Int[np.ndarray, " n"]:
        """Returns the row of every document in `vectors`, -1 where it was left out.

        Raises:
            VectorsError: a document was never embedded.
        """
        names = self._digests(documents)
        if lost := [n for n in names if n not in self._rows and n not in self.left_out]:
            raise VectorsError(f"{self.folder} lacks the embeddings of {len(lost)} of {len(names)} documents")
        return np.array([-1 if n in self.left_out else self._rows[n] for n in names], np.int64)

    @property
    def vectors(self) -> Float32[np.ndarray, "rows d"]:
        """All rows, mapped from the file."""
        count = max(self._rows.values(), default=-1) + 1
        if not count:
            return np.zeros((0, self.width), np.float32)
        return np.memmap(self.folder / VECTORS, "<f4", "r", shape=(count, self.width))

    @property
    def _end(self) -> int:
        return self._window.first + len(self._window.digests)

    def _go_on(
        self, documents: Sequence[Document], batches: Batches, plan: str, files: "_Files | None", bar: tqdm
    ) -> None:
        """Embeds the rest of a window that was interrupted, if all of it is still wanted."""
        if self._window.whole:
            return
        if plan != self._window.plan:  # from its beginning, in rows of its own
            self._window = _Window(self._end, self._window.digests, plan, set())
        wanted = dict(zip(self._digests(documents), documents, strict=True))
        if all(name in wanted for name in self._window.digests):
            self._embed([wanted[name] for name in self._window.digests], batches, files, bar)

    def _embed(self, part: Sequence[Document], batches: Batches, files: "_Files | None", bar: tqdm) -> None:
        window = self._window
        for rows, vectors, left_out in batches(part, window.batches):
            self._check(vectors)
            if files is not None and not window.begun:
                files.write_about({"identity": self._identity, "width": self.width})
                files.write({"documents": window.digests, "plan": window.plan})
            self.windows += not window.begun
            window.begun = True
            if files is not None:
                files.put(window.first + rows, vectors)
                files.write({"rows": rows.tolist(), "left_out": {str(row): why for row, why in left_out.items()}})
            self._note(rows.tolist(), {int(row): why for row, why in left_out.items()})
            bar.update(len(rows))
        if len(window.written) < len(window.digests):
            raise VectorsError(
                f"{len(window.digests) - len(window.written)} of {len(part)} documents were not embedded"
            )
        window.whole = True
        if files is not None:
            files.write({"end": True})

    def _check(self, vectors: Float32[np.ndarray, "n d"]) -> None:
        self.width = self.width or vectors.shape[1]
        if vectors.shape[1] != self.width:
            raise VectorsError(
                f"the model gives vectors of width {vectors.shape[1]}, those in {self.folder} have {self.width}"
            )
        if not np.isfinite(vectors).all():
            bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
            raise VectorsError(
                f"{len(bad)} of {len(vectors)} embeddings of a batch are not finite: is the model whole?"
            )

    def _note(self, rows: Sequence[int], left_out: Mapping[int, str]) -> None:
        window = self._window
        for row in rows:
            if row in left_out:
                self.left_out[window.digests[row]] = left_out[row]
            else:
                self._rows[window.digests[row]] = window.first + row
        window.written |= set(rows)
        window.batches += 1

    def _check_identity(self) -> None:
        about = _json(self.folder / ABOUT)
        before, self.width = about["identity"], about["width"]
        if said := differences(before, self._identity):
            raise VectorsError(f"{self.folder} has embeddings of another model; remove the folder:\n{said}")

    def _read(self) -> None:
        path = self.folder / INDEX
        data = path.read_bytes() if path.exists() else b""
        for number, line in enumerate(data.splitlines(keepends=True), start=1):
            if not line.endswith(b"\n"):
                break  # cut short by a kill
            try:
                said = json.loads(line)
                self._apply(said)
            except (ValueError, KeyError, IndexError, TypeError):
                raise VectorsError(f"{path}:{number} is damaged; remove the folder to embed anew") from None
            self._length += len(line)
        count = self._window.first + max(self._window.written, default=-1) + 1
        size = (self.folder / VECTORS).stat().st_size if (self.folder / VECTORS).exists() else 0
        if size < 4 * self.width * count:
            raise VectorsError(
                f"{self.folder / VECTORS} has {size} bytes, its index speaks of {count} rows of {self.width} numbers; "
                "remove the folder to embed anew"
            )

    def _apply(self, said: Mapping[str, Any]) -> None:
        if "documents" in said:
            self._window = _Window(self._end, list(said["documents"]), said["plan"], set(), begun=True)
            self.windows += 1
        elif "rows" in said:
            self._note(said["rows"], {int(row): why for row, why in said["left_out"].items()})
        elif said["end"]:
            self._window.whole = True


class _Files:
    """The open files of a folder, locked."""

    def __init__(self, folder: pathlib.Path, length: int):
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however it ends
        except BlockingIOError:
            os.close(self._lock)
            raise VectorsError(f"another process is writing {folder}") from None
        except OSError:  # a file system without locks
            pass
        self._vectors = os.open(folder / VECTORS, os.O_RDWR | os.O_CREAT, 0o644)
        self._index = os.open(folder / INDEX, os.O_RDWR | os.O_CREAT, 0o644)
        os.ftruncate(self._index, length)
        os.lseek(self._index, length, os.SEEK_SET)

    def write_about(self, said: Mapping[str, Any]) -> None:
        if not (self._folder / ABOUT).exists():
            whole_file.write_json(self._folder / ABOUT, said)

    def put(self, rows: Int[np.ndarray, " n"], vectors: Float32[np.ndarray, "n d"]) -> None:
        for row, vector in zip(rows.tolist(), np.ascontiguousarray(vectors, "<f4"), strict=True):
            if os.pwrite(self._vectors, vector.tobytes(), row * vector.nbytes) != vector.nbytes:
                raise OSError("the disk took only part of a vector: is it full?")
        os.fsync(self._vectors)

    def write(self, said: Mapping[str, Any]) -> None:
        line = (json.dumps(said) + "\n").encode()
        if os.write(self._index, line) != len(line):
            raise OSError("the disk took only part of a line: is it full?")
        os.fsync(self._index)

    def close(self) -> None:
        for descriptor in (self._vectors, self._index, self._lock):
            os.close(descriptor)


def _json(path: pathlib.Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise VectorsError(f"{path} cannot be read ({error}); remove the folder to embed anew") from None
