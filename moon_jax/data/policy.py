"""What is taken from strangers: the limits of lines, texts, boxes and pictures, and how much may be left out.

The rules are applied where a thing is read: lines and texts in `sources.lines`, pictures in `picture_files`, boxes in
`views`, lengths in `documents`. docs/bad_input.md shows what becomes of bad input of every kind that we could think of.
"""

import collections
import math
from typing import Any, NamedTuple

from moon_jax.config import DataConfig
from moon_jax.data.records import Box, DataError

# Pictures.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # Pillow would also run ghostscript on what calls itself EPS
MAX_SOURCE_PIXELS = 50_000_000  # read from the header: a file of 10 kB can unpack to gigabytes
MAX_FILE_BYTES = 1 << 29  # more than any picture of so many pixels

# Boxes.
MIN_CROP_PX = 2  # a box that covers less than this in the picture is no picture of a product
MAX_COORDINATE_PX = MAX_SOURCE_PIXELS  # no picture is longer

# Records and texts.
MAX_LINE_BYTES = 1 << 26  # a longer line of a file is skipped without being kept in memory
CHARACTERS_PER_TOKEN = 128  # what is read of a text for each token that it may have; no token of Qwen's is longer

# Reports.
NAMED_EXAMPLES = 5  # of what was left out
NAMED_WARNINGS = 100  # in a log; after that only counts
SHOWN_CHARACTERS = 300  # of a name in a message


class Skipped(NamedTuple):
    """A thing that was left out."""

    reason: str  # in few words, the same for all of a kind
    message: str  # which one it was, and why


class Ledger:
    """Counts what is left out, by reason, and keeps the first of them by name."""

    def __init__(self, what: str, config: DataConfig):
        """Starts with nothing left out.

        Args:
            what: is left out: "records", "triplets".
            config: `path` and `max_skipped_share`.
        """
        self._what, self._config = what, config
        self.reasons: collections.Counter[str] = collections.Counter()
        self.examples: list[str] = []

    @property
    def count(self) -> int:
        """How many were left out."""
        return self.reasons.total()

    def add(self, skipped: Skipped) -> None:
        """Counts one."""
        self.reasons[skipped.reason] += 1
        if len(self.examples) < NAMED_EXAMPLES and skipped.message not in self.examples:
            self.examples.append(skipped.message)

    def check(self, seen: int, grace: int = 0) -> None:
        """Raises DataError where too large a share was left out; the report has the counts and the first examples.

        Args:
            seen: how many there were so far, those left out included.
            grace: number that is taken instead of a smaller one of `seen`: the share of few things says little.
        """
        share = self._config.max_skipped_share
        if self.count > share * max(seen, grace):
            path = f"{self._config.path}: " if self._config.path else ""
            raise DataError(
                f"{path}{self.count} of {seen} {self._what} cannot be used, a larger share than "
                f"config.data.max_skipped_share = {share:g}:{self.listed()}"
            )

    def listed(self) -> str:
        """Returns the counts and the first examples, a line each."""
        counts = "".join(f"\n  {count} for: {reason}" for reason, count in self.reasons.most_common())
        return f"{counts}\nthe first:" + "".join(f"\n  {message}" for message in self.examples)


def well_formed(text: str) -> str:
    r"""Returns the text with surrogate pairs joined and every lone surrogate replaced by U+FFFD.

    JSON can hold "\ud800", which no UTF-8 file, log or tokenizer can; all other characters (NUL, right-to-left marks)
    are left as they are.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def shown(name: Any) -> str:
    """Returns a name from outside as a message may hold it: cut, and with nothing that commands a terminal."""
    text = str(name)
    if len(text) > SHOWN_CHARACTERS:
        text = f"{text[:SHOWN_CHARACTERS]}... ({len(text):,} characters)"
    return printable(text)


def printable(text: str) -> str:
    """Returns a text with escapes in place of all that commands a terminal, line ends too."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def is_number(value: Any) -> bool:
    """Returns whether the value is a finite number (Python reads NaN and Infinity from JSON, and true is an int)."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53


def box_problem(value: Any) -> str:
    """Returns what is wrong with [x1, y1, x2, y2], or ""; a box may reach beyond the picture, not be empty."""
    if not isinstance(value, list) or len(value) != 4 or not all(is_number(v) for v in value):
        return "must be null or four finite numbers [x1, y1, x2, y2]"
    if max(map(abs, value)) > MAX_COORDINATE_PX:
        return f"must have coordinates of at most {MAX_COORDINATE_PX:,} px"
    x1, y1, x2, y2 = value
    return "" if x1 < x2 and y1 < y2 else "must have x1 < x2 and y1 < y2"


def clamp(box: Box, width: int, height: int) -> Box:
    """Returns the part of a box inside the picture; of no width or height where there is none or the box is none."""
    if not all(map(math.isfinite, box)):
        return 0.0, 0.0, 0.0, 0.0
    x1, y1 = min(max(box[0], 0.0), float(width)), min(max(box[1], 0.0), float(height))
    return x1, y1, max(x1, min(box[2], float(width))), max(y1, min(box[3], float(height)))
