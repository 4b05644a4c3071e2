"""The output folder of `embed`: vectors written as they come, in any order, so that a killed run can go on."""

import contextlib
import fcntl
import io
import json
import os
import pathlib
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float32, Int

from moon_jax.data import whole_file
from moon_jax.data.identity import differences
from moon_jax.data.records import DataError
from moon_jax.data.whole_file import UNFINISHED

VECTORS, IDS, SETTINGS, PROGRESS = "embeddings.npy", "ids.json", "settings.json", "progress.json"
COMMIT_SECONDS = 2.0  # at most so much work is lost (and the batch under way)


class OutputError(DataError):
    """An output folder that cannot be used; the message says what is in it."""


class VectorFile:
    """The vectors of one run, and how far it has come.

    `progress.json` names the first batch whose vectors are not yet safe on the disk; `settings.json` is written last,
    so that a folder with it is finished.

    Attributes:
        done: the folder is finished already.
        position: (window, batch) from which to go on.
        skipped: record -> reason, of the batches before that.
        counts: totals of the batches before that.
    """

    def __init__(self, folder: pathlib.Path, identity: Mapping[str, Any], records: int, width: int):
        """Reads what an earlier run has left, and writes nothing.

        Args:
            folder: of the output, made by `begin`.
            identity: all that decides the vectors, as JSON; a run goes on only where it is the same.
            records: rows.
            width: columns.

        Raises:
            OutputError: the folder has the output of another run.
        """
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"{folder} is a file; the output is a folder")
        self._folder, self._identity = folder, json.loads(json.dumps(identity))
        self._records, self._width = records, width
        self._file = self._lock = -1
        self._committed = 0.0
        self.position, self.skipped, self.counts = (0, 0), {}, {}
        finished, begun = self._load(SETTINGS), self._load(PROGRESS)
        self.done = finished is not None
        for left in (finished, begun):
            if left is not None:
                self._check_identity(left.get("identity", {}))
        if self.done:
            if not (folder / VECTORS).exists():
                raise OutputError(f"{folder} has a {SETTINGS} without {VECTORS}: remove it to start again")
            return
        there = [name for name in (VECTORS, VECTORS + UNFINISHED) if (folder / name).exists()]
        if begun is None:
            if VECTORS in there:
                raise OutputError(f"{folder} has an {VECTORS} of something else; choose another --output, or remove it")
            return
        if not there:
            raise OutputError(f"{folder} has a {PROGRESS} without vectors: remove it to start again")
        self.position = begun["window"], begun["batch"]
        self.skipped = {int(record): reason for record, reason in begun["skipped"].items()}
        self.counts = begun["counts"]

    def _load(self, name: str) -> dict[str, Any] | None:
        try:
            return json.loads((self._folder / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (ValueError, OSError) as error:
            raise OutputError(
                f"{self._folder / name} cannot be read ({error}); remove the folder to start again"
            ) from None

    def _check_identity(self, before: Mapping[str, Any]) -> None:
        if said := differences(before, self._identity):
            raise OutputError(
                f"{self._folder} has the output of another run (choose another --output, or remove it):\n{said}"
            )

    def begin(self) -> None:
        """Makes the folder and the file, or opens those that are there.

        Raises:
            OutputError: another process is writing them.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however it ends
        except BlockingIOError:
            raise OutputError(f"another process is writing {self._folder}") from None
        except OSError:  # a file system without locks
            pass
        path = self._folder / (VECTORS + UNFINISHED)
        if not path.exists() and (self._folder / VECTORS).exists():
            return  # it was killed after its last vector
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        os.pwrite(self._file, self._header, 0)
        os.ftruncate(self._file, len(self._header) + 4 * self._width * self._records)
        if not (self._folder / PROGRESS).exists():
            self._commit(self.position)
        self._committed = 0.0  # the first batch shows that all works: it is safe at once

    @property
    def _header(self) -> bytes:
        file = io.BytesIO()
        described = {"descr": "<f4", "fortran_order": False, "shape": (self._records, self._width)}
        np.lib.format.write_array_header_1_0(file, described)
        return file.getvalue()

    def write(
        self,
        rows: Int[np.ndarray, " n"],
        vectors: Float32[np.ndarray, "n d"],
        skipped: Mapping[int, str],
        counts: Mapping[str, int],
        position: tuple[int, int],
    ) -> None:
        """Writes the vectors of a batch.

        Args:
            rows: of the vectors, in the output.
            vectors: the rows of skipped records are not looked at.
            skipped: record -> reason.
            counts: added to the totals.
            position: (window, batch) of the batch after this one.
        """
        self._put(rows, vectors)
        self.skipped |= skipped
        for name, count in counts.items():
            self.counts[name] = self.counts.get(name, 0) + count
        if time.monotonic() - self._committed >= COMMIT_SECONDS:
            self._commit(position)
        self.position = position

    def _put(self, rows: Int[np.ndarray, " n"], vectors: Float32[np.ndarray, "n d"]) -> None:
        start, size = len(self._header), 4 * self._width
        for row, vector in zip(rows.tolist(), np.ascontiguousarray(vectors, "<f4"), strict=True):
            if os.pwrite(self._file, vector.tobytes(), start + row * size) != size:
                raise OSError(f"{self._folder / VECTORS}: the disk took only part of a vector")

    def _commit(self, position: tuple[int, int]) -> None:
        os.fsync(self._file)
        window, batch = position
        progress = {"window": window, "batch": batch, "skipped": self.skipped, "counts": self.counts}
        whole_file.write_json(self._folder / PROGRESS, {"identity": self._identity, **progress})
        self._committed = time.monotonic()

    def finish(
        self, ids: Iterable[str | int | None], settings: Mapping[str, Any], never_written: Iterable[int] = ()
    ) -> None:
        """Makes the output final.

        Args:
            ids: of all records.
            settings: what settings.json says beside the identity.
            never_written: records that had no vector at all; their rows are NaN like those of skipped ones.
        """
        if self._file >= 0:
            self._commit(self.position)
        with whole_file.writing(self._folder / IDS) as file:
            file.write(b"[")
            for number, given in enumerate(ids):
                file.write(f"{',' if number else ''}\n{json.dumps(given, ensure_ascii=False)}".encode())
            file.write(b"\n]\n")
        if self._file >= 0:
            rows = np.array(sorted({*self.skipped, *never_written}), np.int64)
            self._put(rows, np.full((len(rows), self._width), np.nan, np.float32))
            os.fsync(self._file)
            os.close(self._file)
            self._file = -1
            os.replace(self._folder / (VECTORS + UNFINISHED), self._folder / VECTORS)
        whole_file.write_json(self._folder / SETTINGS, {**settings, "identity": self._identity})
        (self._folder / PROGRESS).unlink(missing_ok=True)

    def close(self) -> None:
        """Lets go of the folder; a run that is not finished can go on."""
        for descriptor in (self._file, self._lock):
            if descriptor >= 0:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
        self._file = self._lock = -1
