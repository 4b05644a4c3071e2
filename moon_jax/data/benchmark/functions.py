"""Functions of one row that both engines run as Python, so that they agree to the letter."""

import datetime
import hashlib
import unicodedata

import ibis

from moon_jax.data.benchmark import personal

DRAWN = 2**60  # numbers that `draw` chooses from
NO_TIME = -1


def clean(text: str) -> str:
    """Returns the text without control characters, runs of white space as one space; "" stays ""."""
    if not text.isprintable():
        text = "".join(" " if unicodedata.category(c) == "Cc" else c for c in text)
    return " ".join(text.split())


def normal(text: str) -> str:
    """Returns what is equal for two spellings of one query: NFKC, case-folded, white space as one space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def draw(text: str) -> int:
    """Returns a number below DRAWN that the text alone decides, evenly spread: from its md5."""
    return int(hashlib.md5(text.encode()).hexdigest()[:15], 16)


def seconds(text: str) -> int:
    """Returns seconds since 1970 of ISO 8601 (UTC where no zone is named) or of a count of seconds or milliseconds.

    NO_TIME stands for what is none of these, and for times before 1970.
    """
    text = text.strip()
    try:
        if text.isascii() and text.isdigit():
            count = int(text[:20])
            return count // 1000 if count >= 10**11 else count  # 10^11 seconds is the year 5138
        time = datetime.datetime.fromisoformat(text)
        if time.tzinfo is None:
            time = time.replace(tzinfo=datetime.UTC)
        return max(NO_TIME, int(time.timestamp()))
    except (ValueError, OverflowError):
        return NO_TIME


CLEAN = ibis.udf.scalar.python(clean)
NORMAL = ibis.udf.scalar.python(normal)
DRAW = ibis.udf.scalar.python(draw)
SECONDS = ibis.udf.scalar.python(seconds)
TEXT_LOOK = ibis.udf.scalar.python(personal.text_look)
PICTURE_LOOK = ibis.udf.scalar.python(personal.picture_look)
