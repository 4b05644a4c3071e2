"""The output of `moon_jax.detect`: a line for every question as it comes, so that a killed run can go on."""

import fcntl
import json
import os
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from moon_jax.data import store_refs, whole_file
from moon_jax.data.grounding import Question
from moon_jax.data.grounding_answers import PARSED, WHOLE, Found
from moon_jax.data.identity import differences
from moon_jax.data.records import Box, DataError, ImageSource
from moon_jax.data.store import PackedImage, open_store
from moon_jax.data.whole_file import UNFINISHED

COMMIT_SECONDS = 2.0  # at most so much work is lost with the power, and only the batch under way with the process


class BoxFile:
    """The lines of one run, and how far it has come.

    BOXES.jsonl.unfinished is given its name when it is whole; BOXES.settings.json beside it says what made it.

    Attributes:
        done: the file is finished already.
        lines: whole lines that an earlier run has left.
    """

    def __init__(self, path: pathlib.Path, identity: Mapping[str, Any]):
        """Reads what an earlier run has left, and writes nothing.

        Args:
            path: of the finished file.
            identity: all that decides the lines, as JSON; a run goes on only where it is the same.

        Raises:
            DataError: there is the output of another run.
        """
        self.path, self._begun = path, path.with_name(path.name + UNFINISHED)
        self.settings = path.with_suffix(".settings.json")
        self._identity, self._file = json.loads(json.dumps(identity)), -1
        self.done = path.exists()
        if self.done or self._begun.exists():
            self._check_identity()
        self.lines = 0 if self.done or not self._begun.exists() else _whole_lines(self._begun)[0]

    def _check_identity(self) -> None:
        try:
            before = json.loads(self.settings.read_text(encoding="utf-8"))["identity"]
        except (OSError, ValueError, KeyError, TypeError):
            raise DataError(
                f"{self.path} is there without a {self.settings.name} that says what made it; choose another --output"
            ) from None
        if said := differences(before, self._identity):
            raise DataError(f"{self.path} is of another run (choose another --output, or remove it):\n{said}")

    def begin(self) -> None:
        """Makes the file, or opens the one that is there behind its last whole line.

        Raises:
            DataError: another process is writing it, or has written since `lines` were counted.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self._begun, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however it ends
        except BlockingIOError:
            raise DataError(f"another process is writing {self._begun}") from None
        except OSError:  # a file system without locks
            pass
        os.ftruncate(self._file, self._unchanged())
        os.lseek(self._file, 0, os.SEEK_END)
        self._write_settings({})
        self._committed = time.monotonic()

    def _unchanged(self) -> int:
        """Returns the bytes of the whole lines, which under the lock are still those that were counted."""
        opened, size = os.fstat(self._file), 0
        same = self._begun.exists() and os.path.samestat(opened, self._begun.stat())
        if same:
            lines, size = _whole_lines(self._begun)
            if opened.st_size:
                self._check_identity()
            same = lines == self.lines and not self.path.exists()
            if self.path.exists() and not opened.st_size:  # made by this process
                self._begun.unlink()
        if not same:
            raise DataError(
                f"another process has written {self.path} since this one began; the same command goes on from what is "
                "there now"
            )
        return size

    def write(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Adds lines."""
        data = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines).encode()
        if os.write(self._file, data) != len(data):
            raise OSError(f"{self._begun}: the disk took only part of a line")
        if time.monotonic() - self._committed >= COMMIT_SECONDS:
            os.fsync(self._file)
            self._committed = time.monotonic()

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Gives the file its name; `summary` goes into the settings."""
        os.fsync(self._file)
        self._write_settings(summary)
        os.replace(self._begun, self.path)

    def close(self) -> None:
        """Lets go of the file; a run that is not finished can go on."""
        if self._file >= 0:
            os.close(self._file)
        self._file = -1

    def _write_settings(self, summary: Mapping[str, Any]) -> None:
        whole_file.write_json(self.settings, {"identity": self._identity, **summary})

    def read(self) -> Iterator[dict[str, Any]]:
        """Yields all lines that are there."""
        with (self.path if self.done else self._begun).open(encoding="utf-8") as file:
            yield from map(json.loads, file)


def line_of(question: Question, found: Found, folder: pathlib.Path) -> dict[str, Any]:
    """Returns the line of a question, boxes in pixels of the source picture also where a store has a smaller one.

    Args:
        question: what was asked.
        found: what became of it.
        folder: that paths are relative to.
    """
    image, shipped = question.image.path, question.image.box
    line = {
        "image": store_refs.key_of(image, folder),
        "title": question.title,
        question.kind: question.id,
        "box": _source(found.box, image),
        "status": found.status,
    }
    if found.reason:
        line["reason"] = found.reason
    if found.status in (PARSED, WHOLE):
        line["answer"] = found.answer
        if shipped is not None:
            line["shipped"] = _source(shipped, image)
    return line


def _source(box: Box | None, image: ImageSource) -> list[float] | None:
    if box is None:
        return None
    box = store_refs.source_box(box, image) if isinstance(image, PackedImage) else box
    return [round(number, 2) for number in box]


def box_in(box: Sequence[float], image: ImageSource) -> Box:
    """Returns a box of a line in pixels of the picture as it is read, which in a store may be smaller."""
    box = tuple(box)
    return store_refs.scaled(box, open_store(image.folder), image.row) if isinstance(image, PackedImage) else box


def _whole_lines(path: pathlib.Path) -> tuple[int, int]:
    """Returns (whole lines, bytes of them); a line that was cut off is not counted."""
    lines = size = 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            lines, size = lines + 1, size + len(line)
    return lines, size
