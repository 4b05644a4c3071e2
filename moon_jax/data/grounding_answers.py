r"""What a model said about where the product is -> one box, or why there is none.

Read are, anywhere in the answer and cut off anywhere behind a whole box:

    [{"bbox_2d": [x1, y1, x2, y2], "label": "..."}]     Qwen2.5-VL, in ``` fences or not; any key, one object or several
    [x1, y1, x2, y2]   (x1, y1, x2, y2)                 lists
    [[x1, y1], [x2, y2]]   (x1, y1), (x2, y2)           pairs: Qwen2-VL between <box> or <|box_start|> tokens
    {"x1": 1, "y1": 2, "x2": 3, "y2": 4}   x1="1" y1="2" x2="3" y2="4"

A search for numbers takes them all, where a JSON parser would refuse the answers that are cut off or nearly right. A
label is a text: numbers in it are no box.
"""

import re
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
_NUMBER = r"\s*+([-+]?\d{1,9}(?:\.\d{0,20})?)\s*+"
_COMMA, _OPEN, _CLOSE = r",", r"[\[(]", r"[\])]"
_NAMED = r"[\"']?\s*+[:=]\s*+[\"']?" + _NUMBER + r"[\"']?\s*+,?\s*+[\"']?"
_BOX = re.compile(
    "|".join(
        [
            _OPEN + _COMMA.join([_NUMBER] * 4) + _CLOSE,
            _OPEN + _NUMBER + _COMMA + _NUMBER + _CLOSE + r"\s*+,?\s*+" + _OPEN + _NUMBER + _COMMA + _NUMBER + _CLOSE,
            "".join(rf"\b{name}{_NAMED}" for name in ("x1", "y1", "x2", "y2")),
        ]
    )
)
_LABEL = re.compile(r"\"label\"\s*:\s*\"((?:[^\"\\]|\\.)*)(?:\"|$)")
_BRACE = re.compile(r"[{}]")
_WORD = re.compile(r"[^\W_]+")


class Found(NamedTuple):
    """What became of a question; a box is in pixels of the upright source picture, inside of it."""

    box: Box | None  # None where the picture cannot be read
    status: str  # STATUSES
    reason: str = ""  # of a fallback
    answer: str = ""  # of the model, as it was


class _Candidate(NamedTuple):
    box: Box
    label: str


def find_box(answer: str, title: str, frame: Frame, coordinates: str) -> Found:
    """Returns the box of the product in an answer, in the source picture; the whole picture where there is none.

    Corners may be given in any order; what lies outside the picture is cut off. Of several boxes that hold something
    of the picture the one is taken whose label shares most words with the title, of these the largest, of these the
    first.

    Args:
        answer: of the model.
        title: of what it was asked for.
        frame: of the picture.
        coordinates: "absolute" or "relative", as in `GroundingConfig`.
    """
    width, height = frame.source
    candidates = read_boxes(answer)
    usable: list[tuple[int, float, Box]] = []
    for candidate in candidates:
        box = policy.clamp(frame.to_source(candidate.box, coordinates), width, height)
        if box[2] - box[0] >= MIN_CROP_PX and box[3] - box[1] >= MIN_CROP_PX:
            usable.append((_shared(candidate.label, title), (box[2] - box[0]) * (box[3] - box[1]), box))
    if usable:
        return Found(max(usable, key=lambda one: one[:2])[2], PARSED, "", answer)
    reason = _why_none(answer, [c.box for c in candidates], frame, coordinates)
    return Found((0.0, 0.0, float(width), float(height)), WHOLE, reason, answer)


def read_boxes(answer: str) -> list[_Candidate]:
    """Returns the boxes in an answer with their labels, as they stand there but with x1 <= x2 and y1 <= y2."""
    answer = answer[:MOST_CHARACTERS]
    labels = [(match.span(), match[1]) for match in _LABEL.finditer(answer)]
    plain = answer
    for (start, end), _ in labels:
        plain = plain[:start] + " " * (end - start) + plain[end:]
    out = []
    for match in _BOX.finditer(plain):
        a, b, c, d = (float(number) for number in match.groups() if number is not None)
        box = min(a, c), min(b, d), max(a, c), max(b, d)
        out.append(_Candidate(box, _label(plain, match.span(), labels)))
    return out


def _label(plain: str, span: tuple[int, int], labels: list[tuple[tuple[int, int], str]]) -> str:
    """Returns the label within the same braces as a box."""
    start = max(plain.rfind("{", 0, span[0]), plain.rfind("}", 0, span[0]))
    brace = _BRACE.search(plain, span[1])
    end = brace.start() if brace else len(plain)
    return next((text for (first, last), text in labels if start <= first and last <= end), "")


def _shared(label: str, title: str) -> int:
    """Returns how many words of the label stand in the title."""
    title = title.casefold()
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
