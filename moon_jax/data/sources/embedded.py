"""Pictures inside the files of a source, as places that are read when a picture is needed."""

import base64
import dataclasses
import functools
import os
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True)
class Base64Image:
    """A picture in base64 (plain or URL-safe) at a place in a text file."""

    path: str
    offset: int
    length: int

    def read(self) -> bytes:
        """Returns the picture's bytes; ValueError if the text is no base64."""
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            text = file.read(self.length)
        return base64.b64decode(text.translate(bytes.maketrans(b"-_", b"+/")) + b"=" * (-len(text) % 4), validate=True)

    def __str__(self) -> str:
        return f"{self.path}, the picture at byte {self.offset}"


@dataclasses.dataclass(frozen=True, slots=True)
class ParquetImage:
    """A cell of a Parquet file: a picture's bytes, or Hugging Face's {bytes, path}.

    Parquet cannot read one row: the pictures of its row group are read together and kept until other groups are asked
    for. That is quick in the order of the file and slow in a random one, for which pictures are packed into a store.
    """

    path: str
    row_group: int
    row: int  # within its group
    column: str  # "image", or "image.bytes"

    def read(self) -> bytes:
        """Returns the picture's bytes; ValueError if the cell is empty."""
        found = _row_group(self.path, os.stat(self.path).st_mtime_ns, self.row_group, self.column)[self.row].as_py()
        if isinstance(found, dict):
            found = found.get("bytes")
        if not found:
            raise ValueError("the cell is empty")
        return found

    def __str__(self) -> str:
        return f"{self.path}, row {self.row} of row group {self.row_group}"


@functools.lru_cache(maxsize=2)
def _row_group(path: str, changed: int, number: int, column: str) -> Any:  # `changed`: a rewritten file is read anew
    import pyarrow.parquet  # the other formats do without it

    with pyarrow.parquet.ParquetFile(path) as file:
        return file.read_row_group(number, columns=[column]).column(0)
