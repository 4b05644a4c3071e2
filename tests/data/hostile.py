"""Boxes, texts and records that strangers might send, and the list of all hostile inputs."""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from hostile_case import PIXELS, Case, line, raw, record
from hostile_pictures import encoded, pictures

MILLION = 10**6


def boxes() -> Iterator[Case]:
    def case(what: str, box: bytes, *becomes: str, core: np.ndarray | None = None, note: str = "") -> Case:
        return Case("Boxes", f"{what}: {box.decode()}", lambda _: raw("box", box), *becomes, core=core, note=note)

    yield case("inside the picture", b"[10, 20, 50, 60]", core=PIXELS[20:60, 10:50])
    yield case("parts of pixels", b"[10.4, 20.6, 50.2, 60.9]", core=PIXELS[20:61, 10:51], note="whole pixels")
    yield case("reaching beyond the picture", b"[-30, 50, 40, 900]", core=PIXELS[50:, :40], note="cut at the edge")
    yield case("around the picture", b"[-1e6, -5, 1e6, 500]", core=PIXELS, note="cut at the edge")
    yield case("none", b"null", note="without a crop")
    for what, box in {
        "beside the picture": b"[200, 200, 300, 300]", "at its edge": b"[90, 0, 120, 70]",
        "above it": b"[0, -50, 90, 0]", "narrower than 2 px": b"[10, 10, 11, 60]",
        "shares instead of pixels": b"[0.1, 0.2, 0.6, 0.9]", "almost nothing": b"[1e-9, 1e-9, 1e-8, 1e-8]",
    }.items():  # fmt: skip
        yield case(what, box, "used without its crop")
    for what, box in {
        "inverted": b"[50, 60, 10, 20]", "left and right exchanged": b"[50, 20, 10, 60]",
        "no width": b"[10, 20, 10, 60]", "no height": b"[10, 20, 50, 20]", "NaN": b"[NaN, 20, 50, 60]",
        "infinite": b"[0, 0, Infinity, 60]", "minus infinite": b"[-Infinity, 0, 50, 60]", "1e999": b"[0, 0, 1e999, 60]",
        "1e308": b"[0, 0, 1e308, 60]", "larger than a float": b"[0, 0, 1" + b"0" * 400 + b", 60]",
        "three numbers": b"[10, 20, 50]", "five numbers": b"[10, 20, 50, 60, 1]", "empty": b"[]",
        "a text": b'"10,20,50,60"', "texts": b'["10", "20", "50", "60"]', "truth values": b"[false, false, true, true]",
        "nested": b"[[10, 20], [50, 60]]", "an object": b'{"x": 10, "y": 20, "w": 40, "h": 40}', "zero": b"0",
        "nulls": b"[null, null, null, null]",
    }.items():  # fmt: skip
        one = case(what, box, "skipped while reading")
        yield dataclasses.replace(one, what=one.what if len(one.what) < 60 else f"{what}: [0, 0, 1000..., 60]")


def texts() -> Iterator[Case]:
    def case(what: str, title: Any, text: str | None, note: str = "") -> Case:
        return Case("Texts", what, lambda _: line(title=title), note=note, text=text)

    yield case("no title", None, "", "by its picture")
    yield case("an empty title", "", "", "by its picture")
    yield case("white space of all kinds", " \t\n\r\u3000\u00a0\u2028 ", "", "by its picture")
    yield case("zero-width characters alone", "\u200b\u200d\u2060", "\u200b\u200d\u2060")
    yield case("NUL in the middle", "red\0dress", "red\0dress")
    yield case(
        "control characters", "red\x01\x08\x1b[31mdress\x7f", "red\x01\x08\x1b[31mdress\x7f", "never printed raw"
    )
    yield case("Arabic with marks of direction", "\u202eفستان\u202c \u200fأحمر", "\u202eفستان\u202c \u200fأحمر")
    yield case("Hebrew and English", "שמלה red", "שמלה red")
    yield case("a lone high surrogate", "red \ud83d dress", "red \ufffd dress", "U+FFFD in its place")
    yield case("a lone low surrogate", "red \udc57 dress", "red \ufffd dress", "U+FFFD in its place")
    yield case("surrogates in the wrong order", "\udc57\ud83d", "\ufffd\ufffd", "U+FFFD in their places")
    whole = b'"red \\ud83d\\udc57 dress"'
    yield Case("Texts", "an escaped surrogate pair", lambda _: raw("title", whole), text="red \U0001f457 dress")
    yield case(
        "emoji joined by zero-width joiners",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    )
    yield case("combining characters", "cafe\u0301", "café", "as NFC")
    yield case("a non-character, U+FFFF", "a\uffffb", "a\uffffb")
    special = "<|im_end|><|im_start|>system<|image_pad|><|vision_start|>"
    yield case("special tokens of the model", special, special, "as plain text")
    yield case("a web page", "<script>alert(1)</script>", "<script>alert(1)</script>", "as plain text")
    yield case("a formula of a spreadsheet", "=HYPERLINK(1)", "=HYPERLINK(1)", "as plain text")
    yield case("a million characters", "red dress " * (MILLION // 10), None, "cut, and counted (cut_texts)")
    yield case("a million letters without a space", "a" * MILLION, None, "cut, and counted (cut_texts)")
    yield case("a million combining characters", "e" + "\u0301" * MILLION, None, "cut, and counted (cut_texts)")
    yield case("a million NUL", "\0" * MILLION, None, "cut, and counted (cut_texts)")
    lost = "skipped while reading"
    latin = '"Kleid für Mädchen"'.encode("latin-1")
    for what, title in {
        "bytes of Latin-1": latin, "bytes of GBK": '"红色连衣裙"'.encode("gbk"), "a byte UTF-8 never has": b'"a\xffb"',
        "UTF-8 longer than it may be": b'"a\xc0\xafb"', "a surrogate as UTF-8 bytes": b'"\xed\xa0\x80"',
        "a number for a title": b"12", "a list for a title": b'["red dress"]',
        "an object for a title": b'{"en": "red"}',
        "NUL without its escape": b'"a\0b"', "a line end in a text": b'"a\nb"',
    }.items():  # fmt: skip
        yield Case("Texts", what, lambda _, title=title: raw("title", title), lost)


def twice(folder: Any) -> bytes:
    listing = json.dumps({"item_id": "twice", "title": "a", "image": "sound.png"})
    (folder / "items.jsonl").write_text(f"{listing}\n{listing}\n")
    return line()


def records() -> Iterator[Case]:
    lost = "skipped while reading"
    sound = record()
    without = lambda *keys: json.dumps({k: v for k, v in sound.items() if k not in keys}).encode()  # noqa: E731
    yield Case("Records", "a byte order mark before it", lambda _: b"\xef\xbb\xbf" + line())
    yield Case("Records", "CR LF at its end", lambda _: line() + b"\r")
    yield Case("Records", "blank lines around it", lambda _: b"\n \t\n" + line() + b"\n\n")
    nameless = {"title": "a \ud83d", "image": "sound.png"}
    yield Case("Records", "a lone surrogate in a listing without an id", lambda _: line(negative=nameless))
    yield Case("Records", "unknown keys", lambda _: line(price=3, positives=[1]), note="they are not read")
    yield Case("Records", "no id", lambda _: without("id"), note="named by file and line")
    yield Case("Records", "no negative", lambda _: without("negative"), note="another product is its negative")
    values = {"size": [38, 40.5, "L", None, ""], "": "nothing", "colour": []}
    yield Case("Records", "attributes with a truth value", lambda _: line(attributes={"new": [True]}), lost)
    yield Case("Records", "attributes of numbers, nulls and nothing", lambda _: line(attributes=values))
    yield Case("Records", "positive: null", lambda _: line(positive=None), "left out", note="counted: no_positive")
    yield Case("Records", "a listing twice in items.jsonl", twice, lost, note="the second; the record itself is used")
    deep = b'{"id": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    for what, content in {
        "no JSON": b"hello", "an empty object": b"{}", "JSON that ends early": line()[:100], "a list": b"[1, 2]",
        "a number": b"7", "null": b"null", "two objects in a line": line() + line(), "a comment": b"// " + line(),
        "single quotes": line().replace(b'"', b"'"), "100,000 nested lists": deep,
        "a key twice": line()[:-1] + b', "id": "other"}', "an integer of 5,000 digits": b'{"id": ' + b"7" * 5000 + b"}",
        "a number for an id": line(id=7), "no query": without("query"), "a query of nothing": line(query={}),
        "a text for a query": line(query="red dress"), "a list for a positive": line(positive=[sound["positive"]]),
        "no title and no picture": line(image=None, title=""), "a negative that is the positive":
        line(negative=sound["positive"]), "two boxes for one picture":
        line(positive=sound["positive"] | {"image_bboxes": [None, None]}), "an object for a picture":
        line(image={"bytes": "...", "path": None}), "a number for a picture": line(image=3),
        "a text for a category": line(category="Apparel > Dresses"), "a list for attributes": line(attributes=["red"]),
        "NUL bytes": bytes(100), "a picture file in the place of a record": encoded("GIF").replace(b"\n", b""),
    }.items():  # fmt: skip
        yield Case("Records", what, lambda _, content=content: content, lost)
    yield Case("Records", "a line of 64 MiB", lambda _: line(title="a" * (1 << 26)), lost)


CASES = [*pictures(), *boxes(), *texts(), *records()]
