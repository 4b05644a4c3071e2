"""Functions of one row that both engines run as Python, so that they agree to the letter."""

import datetime
import hashlib
import os
import re
import unicodedata
import urllib.parse

import ibis

from moon_jax.data.benchmark import personal

DRAWN = 2**60  # numbers that `draw` chooses from
NO_TIME = -1
_COUNT = re.compile(r"[0-9]{1,20}(?:\.[0-9]{1,20})?")
_DATE = re.compile(r"([0-9]{4})[-/.]([0-9]{1,2})[-/.]([0-9]{1,2})((?:[T ].*)?)")
_HOUR = re.compile(r"^[T ](?=[0-9]:)")  # of one digit


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


def reference(text: str, folder: str) -> str:
    """Returns one spelling of the path or address of a picture, so that equal pictures have equal references.

    A path is given relative to `folder`, where relative ones start, without "." and "//" and superfluous ".."; of an
    address scheme and host are in lower case, and the fragment is dropped. Files are not touched.
    """
    if not text:
        return ""
    if text[:8].lower().startswith(("http://", "https://")):
        try:
            scheme, place, path, query, _ = urllib.parse.urlsplit(text)
        except ValueError:  # no address, but a text all the same
            return text
        user, at, host = place.rpartition("@")
        return urllib.parse.urlunsplit((scheme, user + at + host.lower(), path, query, ""))
    path = os.path.normpath(os.path.join(folder, text))
    return os.path.relpath("/" + path.lstrip("/"), folder)


def seconds(text: str) -> int:
    """Returns seconds since 1970 of a written time (UTC where no zone is named) or of a count.

    Read are ISO 8601, also with slashes or dots in the date and without leading zeros; YYYYMMDD and YYYYMMDDHHMMSS; and
    counts of seconds, milli-, micro- and nanoseconds, told apart by their size. NO_TIME stands for what is none of
    these, and for times before 1970.
    """
    text = text.strip()
    try:
        if _COUNT.fullmatch(text):
            if len(text) in (8, 14) and text.startswith(("19", "20")):
                time = datetime.datetime.strptime(text.ljust(14, "0"), "%Y%m%d%H%M%S")
            else:
                return _counted(int(text.partition(".")[0]))
        else:
            if written := _DATE.fullmatch(text):
                year, month, day, rest = written.groups()
                text = f"{year}-{month:0>2}-{day:0>2}{_HOUR.sub(r'T0', rest)}"
            time = datetime.datetime.fromisoformat(text)
        if time.tzinfo is None:
            time = time.replace(tzinfo=datetime.UTC)
        return max(NO_TIME, int(time.timestamp()))
    except (ValueError, OverflowError):
        return NO_TIME


def _counted(count: int) -> int:
    for least, unit in ((10**17, 10**9), (10**14, 10**6), (10**11, 10**3)):  # 10^11 seconds is the year 5138
        if count >= least:
            return count // unit
    return count


def utf8(data: bytes) -> str:
    """Returns bytes as text; UnicodeDecodeError if they are not UTF-8."""
    return data.decode("utf-8")


CLEAN = ibis.udf.scalar.python(clean)
NORMAL = ibis.udf.scalar.python(normal)
DRAW = ibis.udf.scalar.python(draw)
REFERENCE = ibis.udf.scalar.python(reference)
UTF8 = ibis.udf.scalar.python(utf8)
SECONDS = ibis.udf.scalar.python(seconds)
TEXT_LOOK = ibis.udf.scalar.python(personal.text_look)
PICTURE_LOOK = ibis.udf.scalar.python(personal.picture_look)
