r"""What a model said about where the product is -> one box, or why there is none.

Read are, anywhere in the answer and cut off anywhere behind a whole box:

    [{"bbox_2d": [x1, y1, x2, y2], "label": "..."}]     Qwen2.5-VL, in ``` fences or not; any key, one object or several
    [x1, y1, x2, y2]   (x1 y1 x2 y2)   {x1; y1; x2; y2}   "x1, y1, x2, y2"   [x1, y1, x2, y2, score]    lists
    <box>x1, y1, x2, y2</box>   <x1><y1><x2><y2>        tags
    [[x1, y1], [x2, y2]]   (x1, y1), (x2, y2)           pairs: Qwen2-VL between <box> or <|box_start|> tokens
    (x1, y1) to (x2, y2)   top left (x1, y1), bottom right (x2, y2)
    [[x, y], [x, y], [x, y], ...]                       polygons: their bounds
    {"x1": 1, "y1": 2, "x2": 3, "y2": 4}   x1="1" y1="2" x2="3" y2="4"   also xmin, left, width ..., in any order
    x1, y1, x2, y2                                      as a line of its own, where there is nothing else

A search for numbers takes them all, where a JSON parser would refuse the answers that are cut off or nearly right.
Numbers may be texts, have an exponent or be followed by "px"; full-width signs are plain ones. A label, name or other
text about the product is no box, whatever numbers it has.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from moon_jax.data import policy
from moon_jax.data.grounding import Frame
from moon_jax.data.policy import MIN_CROP_PX
from moon_jax.data.records import Box

# What became of a question.
PARSED, WHOLE, SHIPPED, UNREADABLE = "parsed", "whole_image", "shipped", "unreadable"
STATUSES = (PARSED, WHOLE, SHIPPED, UNREADABLE)
MOST_CHARACTERS = 10_000  # of an answer are read

# White space is taken whole or not at all (*+): an answer of nothing but that must not take for ever.
_BARE = r"[-+]?\d{1,9}(?:\.\d{0,20})?(?:[eE][-+]?\d{1,2})?"
_NUMBER = rf"[\"']?({_BARE})(?:\s*+(?:px|pixels)\b)?[\"']?"
_BETWEEN = r"(?:\s*+[,;]\s*+|\s++)"
_OPEN, _CLOSE = r"[\[({<>\"']\s*+", r"\s*+[\])}<>\"']"
_FOUR = _BETWEEN.join([_NUMBER] * 4)
_SCORE = rf"(?:{_BETWEEN}[\"']?(?:0?\.\d+|[01](?:\.0*)?)[\"']?)?"
_PAIR = rf"[\[(]\s*+{_NUMBER}{_BETWEEN}{_NUMBER}\s*+[\])]"
_NEXT = (
    r"\s*+[,;]?\s*+(?:(?:to|and|until|-+>?|–|—|→|~|至|到|和)\s*+)?(?:the\s++)?"
    r"(?:[\"']?(?:(?:bottom|lower)[ _-]?right|右下角?)(?: (?:corner|point))?[\"']?\s*+(?:(?:at|is|[:=为是])\s*+)?)?"
)
_LIST = re.compile(f"{_OPEN}{_FOUR}{_SCORE}{_CLOSE}|" + r"\s*+".join([rf"<\s*+{_NUMBER}\s*+>"] * 4))
_POLYGON = re.compile(rf"[\[(]\s*+{_PAIR}(?:\s*+,?\s*+{_PAIR}){{2,}}\s*+,?\s*+[\])]")
_PAIRS = re.compile(_PAIR + _NEXT + _PAIR)
_LINE = re.compile(rf"^[ \t\"'`*]*+(?:[^\d\n\[\](){{}}<>:]{{0,60}}:)?\s*+{_FOUR}{_SCORE}[ \t\"'`*.。]*+$", re.MULTILINE)
_NAMED = re.compile(
    r"(?<![^\W_])(x_?min|y_?min|x_?max|y_?max|[xy]_?[012]|left|top|right|bottom|width|height|[xywh])[\"']?"
    rf"\s*+[:=]\s*+{_NUMBER}(?![\d.])",
    re.IGNORECASE,
)
_CORNER = {
    name: corner
    for corner, names in {
        "x1": "x xmin left", "y1": "y ymin top", "x2": "xmax right", "y2": "ymax bottom", "width": "w", "height": "h",
    }.items()
    for name in names.split()
}  # fmt: skip
_FROM_ZERO = {"x0": "x1", "y0": "y1", "x1": "x2", "y1": "y2"}
_LABEL = re.compile(
    r"(?P<k>[\"']?)\b(?![\w ]{0,30}(?:box|coord))[\w ]{0,20}?(?:label|name|title|object|class|category|caption|"
    r"description|text|product|item|type|brand|reason|explanation|thought|size|colou?r|material)\w{0,10}(?P=k)\s*+[:=]\s*+"
    r"(?P<q>[\"'])(?P<said>(?:\\.|(?!(?P=q)\s*+(?:[,}\]\"'`>/]|$))[^\\])*+)",
    re.IGNORECASE | re.DOTALL,
)
_BRACE = re.compile(r"[{}]")
_WORD = re.compile(r"[^\W_]+")
_PLAIN = str.maketrans("、【】〔〕《》“”‘’", ",[][]<>\"\"''")


class Found(NamedTuple):
    """What became of a question; a box is in pixels of the upright source picture, inside of it."""

    box: Box | None  # None where the picture cannot be read
    status: str  # STATUSES
    reason: str = ""  # of a fallback
    answer: str = ""  # of the model, as it was


class _Candidate(NamedTuple):
    box: Box
    label: str
    together: bool = True  # four numbers that belong together; not so two points, which may be sizes and origins


def find_box(answer: str, title: str, frame: Frame, coordinates: str) -> Found:
    """Returns the box of the product in an answer, in the source picture; the whole picture where there is none.

    Corners may be given in any order; what lies outside the picture is cut off. Of several boxes that hold something
    of the picture the one is taken whose label shares most words with the title; of these a list of four numbers is
    taken before two points, then the largest, then the first.

    Args:
        answer: of the model.
        title: of what it was asked for.
        frame: of the picture.
        coordinates: "absolute" or "relative", as in `GroundingConfig`.
    """
    width, height = frame.source
    candidates = read_boxes(answer)
    usable: list[tuple[int, bool, float, Box]] = []
    for candidate in candidates:
        box = policy.clamp(frame.to_source(candidate.box, coordinates), width, height)
        if box[2] - box[0] >= MIN_CROP_PX and box[3] - box[1] >= MIN_CROP_PX:
            area = (box[2] - box[0]) * (box[3] - box[1])
            usable.append((_shared(candidate.label, title), candidate.together, area, box))
    if usable:
        return Found(max(usable, key=lambda one: one[:3])[3], PARSED, "", answer)
    reason = _why_none(answer, [c.box for c in candidates], frame, coordinates)
    return Found((0.0, 0.0, float(width), float(height)), WHOLE, reason, answer)


def read_boxes(answer: str) -> list[_Candidate]:
    """Returns the boxes in an answer with their labels, as they stand there but with x1 <= x2 and y1 <= y2."""
    answer = unicodedata.normalize("NFKC", answer[:MOST_CHARACTERS])[:MOST_CHARACTERS].translate(_PLAIN)
    labels = [(match.span(), match["said"]) for match in _LABEL.finditer(answer)]
    plain = answer
    for span, _ in labels:
        plain = _without(plain, span)
    rest, out = plain, []
    for find, together in ((_polygons, True), (_lists, True), (_named, True), (_pairs, False)):
        found = list(find(rest))
        for span, box in found:
            out.append((span[0], _Candidate(box, _label(plain, span, labels), together)))
            rest = _without(rest, span)
    if not out:
        out = [(match.start(), _Candidate(_ordered(match.groups()), "")) for match in _LINE.finditer(rest)]
    return [candidate for _, candidate in sorted(out, key=lambda one: one[0])]


def _lists(said: str) -> Iterator[tuple[tuple[int, int], Box]]:
    for match in _LIST.finditer(said):
        yield match.span(), _ordered([number for number in match.groups() if number is not None])


def _pairs(said: str) -> Iterator[tuple[tuple[int, int], Box]]:
    for match in _PAIRS.finditer(said):
        yield match.span(), _ordered(match.groups())


def _polygons(said: str) -> Iterator[tuple[tuple[int, int], Box]]:
    for match in _POLYGON.finditer(said):
        corners = [(float(x), float(y)) for x, y in re.findall(_PAIR, match[0])]
        xs, ys = zip(*corners, strict=True)
        yield match.span(), (min(xs), min(ys), max(xs), max(ys))


def _named(said: str) -> Iterator[tuple[tuple[int, int], Box]]:
    """Yields the boxes of four numbers with names, side by side and in any order."""
    run: list[re.Match[str]] = []
    for match in _NAMED.finditer(said):
        if run and said[run[-1].end() : match.start()].strip(" \t\r\n,;\"'"):
            run = []
        run = [*run[-3:], match]
        box = _of_names([one[1].lower().replace("_", "") for one in run], [float(one[2]) for one in run])
        end = run[-1].end()
        cut_off = end == len(said) and said.rfind("{", 0, run[0].start()) > said.rfind("}", 0, run[0].start())
        if box is not None and not cut_off:
            yield (run[0].start(), end), box
            run = []


def _of_names(names: list[str], numbers: list[float]) -> Box | None:
    if {"x0", "y0"} & set(names):
        names = [_FROM_ZERO.get(name, name) for name in names]
    found = dict(zip([_CORNER.get(name, name) for name in names], numbers, strict=True))
    if found.keys() == {"x1", "y1", "width", "height"}:
        found = {
            "x1": found["x1"], "y1": found["y1"],
            "x2": found["x1"] + found["width"], "y2": found["y1"] + found["height"],
        }  # fmt: skip
    if found.keys() != {"x1", "y1", "x2", "y2"}:
        return None
    return _ordered([found["x1"], found["y1"], found["x2"], found["y2"]])


def _ordered(numbers: Sequence[str | float]) -> Box:
    a, b, c, d = map(float, numbers)
    return min(a, c), min(b, d), max(a, c), max(b, d)


def _without(said: str, span: tuple[int, int]) -> str:
    return said[: span[0]] + " " * (span[1] - span[0]) + said[span[1] :]


def _label(plain: str, span: tuple[int, int], labels: list[tuple[tuple[int, int], str]]) -> str:
    """Returns the label within the same braces as a box."""
    start = max(plain.rfind("{", 0, span[0]), plain.rfind("}", 0, span[0]))
    brace = _BRACE.search(plain, span[1])
    end = brace.start() if brace else len(plain)
    return next((text for (first, last), text in labels if start <= first and last <= end), "")


def _shared(label: str, title: str) -> int:
    """Returns how many words of the label stand in the title."""
    title = unicodedata.normalize("NFKC", title).casefold()
    return sum(word in title for word in {*_WORD.findall(label.casefold())})


def _why_none(answer: str, boxes: list[Box], frame: Frame, coordinates: str) -> str:
    if not answer.strip():
        return "no answer"
    if not boxes:
        return "no box in the answer"
    width, height = frame.source
    moved = [frame.to_source(box, coordinates) for box in boxes]
    outside = [x1 > width or y1 > height or x2 < 0 or y2 < 0 for x1, y1, x2, y2 in moved]
    return "box outside the picture" if all(outside) else "box without area"
