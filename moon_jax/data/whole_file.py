"""Files that are whole: who opens one finds what was there before or all of the new content, never half of it.

What is written goes to NAME.unfinished beside the file, is put on the disk (fsync) and takes the name in one step; then
the name is put on the disk too. So a kill or a loss of power leaves the old file or the new one; once a function has
returned it is the new one. An exception removes NAME.unfinished. A killed program leaves it behind, where nobody reads
it, and the next write of the same file begins it anew. A file has one writer at a time.
"""

import contextlib
import errno
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any, BinaryIO

UNFINISHED = ".unfinished"  # ends the name of a file that is being written


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file, as `writing` does."""
    with writing(path) as file:
        file.write(content)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text as UTF-8, as `writing` does; line ends stay as they are."""
    write_bytes(path, text.encode())


def write_json(path: str | os.PathLike[str], values: Any) -> None:
    """Writes values as JSON to be read by people too, as `writing` does.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    write_text(path, json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Gives a file to write bytes to, which takes the name `path` when the block ends without an exception.

    Raises:
        FileNotFoundError: there is no folder for it.
    """
    path = pathlib.Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, f"{path.name} cannot be written: no such folder", str(path.parent))
    unfinished = path.with_name(path.name + UNFINISHED)
    try:
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # the error above is what counts
            unfinished.unlink()
        raise
    sync(path.parent)


def sync(path: str | os.PathLike[str]) -> None:
    """Waits until a file is on the disk, or the names in a folder are."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
