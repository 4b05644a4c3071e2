"""The report page as a file: whole, safe, self-contained, the same every time, and its numbers those of the results."""

import base64
import dataclasses
import hashlib
import html.parser
import json
import re
import shutil

import page_input
import pytest

from moon_jax.evaluation import page
from moon_jax.evaluation.page import gallery
from moon_jax.evaluation.page.writer import NAME

VOID = {"meta", "br", "img"}
HOSTILE = "</style></script><script>alert(1)</script>\"'><img src=x onerror=alert(2)>\u202e\x00\ud800&amp; "


class Reader(html.parser.HTMLParser):
    """Reads a page, checks that its elements nest, and keeps what tests look at."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.starts, self.texts, self.scripts, self.styles = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.starts.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.starts.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert [tag] == self.open[-1:], (tag, self.open[-3:])
        self.open.pop()

    def handle_data(self, data):
        kind = {"script": self.scripts, "style": self.styles}.get(self.open[-1] if self.open else "", self.texts)
        kind.append(data)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    data = page_input.dataset(folder / "pictures")
    embedded = page_input.write(folder / "w", data)
    return folder / "w", data, embedded


@pytest.fixture(scope="module")
def text(work):
    folder, data, embedded = work
    return page.write(folder, dataset=data, embedded=embedded).read_text(encoding="utf-8")


def rows_of(text, section):
    """Returns the cells of the first sortable table of a section, as text, with the heads first."""
    inside = text.split(f'<section id="{section}"')[1].split("</section>")[0]
    table = inside[inside.index('<tr class="heads">') :].split("</table>")[0]
    rows = re.findall(r"<tr.*?>(.*?)</tr>", table, re.S)
    strip = lambda cell: html.unescape(re.sub(r"<small>.*?</small>|<[^>]+>", "", cell))  # noqa: E731
    return [[strip(cell) for cell in re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row, re.S)] for row in rows]


def test_page_is_whole_and_has_every_section(text):
    read = Reader(text)
    ids = [attrs["id"] for _, attrs in read.starts if "id" in attrs]
    assert len(ids) == len(set(ids))
    sections = [attrs["id"] for tag, attrs in read.starts if tag == "section"]
    assert sections == ["overview", "retrieval", "categories", "attributes", "map", "method"]
    links = [attrs["href"] for tag, attrs in read.starts if tag == "a"]
    assert set(links) == {f"#{name}" for name in sections}  # nothing leads out of the page


def test_page_needs_no_network_and_runs_only_its_own_script(text):
    read = Reader(text)
    for tag, attrs in read.starts:
        assert not [name for name in attrs if name.startswith("on")], (tag, attrs)
        for name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
            assert attrs.get(name, "#").startswith(("#", "data:image/")), (tag, attrs)
    for url in re.findall(r"url\(([^)]{0,40})", text):
        assert url.startswith("data:image/jpeg;base64,")
    assert "@import" not in "".join(read.styles)
    (script,) = read.scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [attrs["content"] for _, attrs in read.starts if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert f"script-src 'sha256-{digest}'" in policy


def test_same_input_gives_the_same_bytes(work, text):
    folder, data, embedded = work
    assert page.write(folder, dataset=data, embedded=embedded).read_text(encoding="utf-8") == text


def test_tables_have_the_numbers_of_the_results(work, text):
    said = json.loads((work[0] / "results.json").read_text())
    heads, *rows = rows_of(text, "retrieval")
    assert heads == ["method", "set", *["R@1", "R@5"] * 3]
    names = {"this model": "model", "clip": "clip"}
    modalities = ["image"] * 2 + ["text"] * 2 + ["item"] * 2
    assert [(row[0], row[1]) for row in rows] == [(m, s) for s in ("unseen", "seen") for m in names]
    for row in rows:
        for modality, measure, shown in zip(modalities, heads[2:], row[2:], strict=True):
            (want,) = [
                found["measures"][measure]
                for found in said["rows"]
                if (found["task"], found["part"], found["by"]) == ("retrieval", None, {})
                and (found["method"], found["set"], found["modality"]) == (names[row[0]], row[1], modality)
            ]
            assert shown == f"{100 * want:.1f}"
    for section, count in (("categories", 4), ("attributes", 4)):
        heads, *rows = rows_of(text, section)
        assert heads[2:] == ["accuracy", "precision", "recall", "F1"] * 3
        assert len(rows) == count


def test_hostile_texts_stay_texts(tmp_path):
    data = page_input.dataset(tmp_path / "pictures", 12)
    bad = HOSTILE.replace("\ud800", "")  # a file of UTF-8 cannot hold it; a JSON file can, escaped
    data = page_input.with_product(data, title=f"{bad}title", category=(f"{bad}Home", f"{bad}Pots"))
    embedded = page_input.write(tmp_path / "w", data)
    for name in ("results.json", "predictions.jsonl"):
        path = tmp_path / "w" / name
        changed = path.read_text().replace('"clip"', json.dumps(f"{HOSTILE}clip")).replace("find 1", r"find \ud800")
        path.write_text(changed)
    said = json.loads((tmp_path / "w/results.json").read_text())
    said["config"]["name"] = said["about"][f"{HOSTILE}key"] = f"{HOSTILE}name"
    (tmp_path / "w/results.json").write_text(json.dumps(said))
    text = page.write(tmp_path / "w", dataset=data, embedded=embedded).read_text(encoding="utf-8")
    read = Reader(text)
    assert len(read.scripts) == 1
    assert "alert(1)" not in read.scripts[0]
    assert "alert(1)" not in "".join(read.styles)
    assert not [attrs for tag, attrs in read.starts if tag == "img" or "onerror" in attrs]
    assert "\x00" not in text
    shown = [words for words in read.texts if "<script>alert(1)</script>" in words]
    assert any(words.endswith("clip") for words in shown)
    tips = [attrs["data-tip"] for _, attrs in read.starts if "data-tip" in attrs]
    assert any(
        tip.endswith("title") and "<script>alert(1)</script>" in tip for tip in tips
    )  # a long one is cut on its tile
    assert '"clip"' not in text
    assert len(re.findall("\ufffd", text)) > 5


def test_pictures_are_bounded_and_missing_ones_are_counted(work, tmp_path):
    folder, data, _ = work
    gone = data.products["p00"]
    other = page_input.with_product(data, images=(dataclasses.replace(gone.images[0], path="/nowhere.png"),))
    shutil.copytree(folder, tmp_path / "w")
    for budget in (0, 3000):
        text = page.write(tmp_path / "w", dataset=other, picture_bytes=budget).read_text(encoding="utf-8")
        size = sum(map(len, re.findall(r"data:image/jpeg;base64,[\w+/=]*", text)))
        assert size <= budget
        assert (size > 0) == (budget > 0)
        assert re.search(r"pictures left out</bdi></dt><dd><bdi>\d+", text)
        assert re.search(r"pictures unreadable</bdi></dt><dd><bdi>1<", text)
        assert "not shown" in text


def test_without_pictures_or_predictions_there_is_still_a_page(work, tmp_path):
    shutil.copy(work[0] / "results.json", tmp_path)
    text = page.write(tmp_path).read_text(encoding="utf-8")
    assert 'id="queries"' not in text
    assert rows_of(text, "retrieval")[1:]
    shutil.copy(work[0] / "predictions.jsonl", tmp_path)
    text = page.write(tmp_path).read_text(encoding="utf-8")
    assert 'id="queries"' in text
    assert "p00" in text
    Reader(text)


def test_only_baselines_make_a_page(tmp_path):
    data = page_input.dataset(tmp_path / "pictures", 12)
    page_input.write(tmp_path / "w", data, methods=("clip", "siglip2"))
    text = page.write(tmp_path / "w", dataset=data).read_text(encoding="utf-8")
    assert "this model" not in text
    assert rows_of(text, "retrieval")[1][0] == "clip"


def test_what_cannot_be_read_is_named(work, tmp_path):
    with pytest.raises(ValueError, match=r"no .*results\.json: run the evaluation first"):
        page.write(tmp_path)
    good = json.loads((work[0] / "results.json").read_text())
    lines = (work[0] / "predictions.jsonl").read_text().splitlines(keepends=True)

    def attempt(said, predictions, match):
        (tmp_path / "results.json").write_text(json.dumps(said) if isinstance(said, dict) else said)
        (tmp_path / "predictions.jsonl").write_text("".join(predictions))
        with pytest.raises(ValueError, match=match):
            page.write(tmp_path)
        assert not (tmp_path / NAME).exists()

    attempt("{", lines, r"results\.json is not JSON")
    attempt({**good, "version": 2}, lines, "has version 2")
    row = {**good["rows"][0]}
    attempt({**good, "rows": [row, {**row, "measures": {"R@1": float("nan")}}]}, lines, r"rows\[1\].*R@1")
    del row["measures"]
    attempt({**good, "rows": [row]}, lines, r"rows\[0\].*measures")
    attempt(good, [*lines[:3], "{\n"], r"predictions\.jsonl, line 4 cannot be read")
    first = json.loads(lines[0])
    attempt(good, [json.dumps({**first, "rank": 0}) + "\n", *lines[1:]], r"line 1 .*rank is 1, 2, \.\.\. or null")
    attempt(good, lines[1:], r"counts .*: the two files are not of one evaluation; evaluate again")


def test_shown_queries_are_those_of_their_outcome(work, text):
    said = [json.loads(line) for line in (work[0] / "predictions.jsonl").read_text().splitlines()]
    ranks = {
        (one["set"], one["modality"], one["query"]["text"]): one["rank"]
        for one in said
        if one["task"] == "retrieval" and one["method"] == "model" and one["modality"] == "text"
    }
    articles = re.findall(
        r'<article.*?data-set="(\w+)" data-modality="text" data-outcome="(\w+)">(.*?)</article>', text, re.S
    )
    assert articles
    for set_name, outcome, inside in articles:
        asked = re.search(r'class="asked"><bdi>(.*?)</bdi>', inside).group(1)
        rank = ranks[set_name, "text", asked]
        want = "missed" if rank is None or rank > gallery.TILES else "first" if rank == 1 else "later"
        assert outcome == want
        assert len(re.findall('class="tile-p', inside)) == gallery.TILES
        assert ('class="tile-p right' in inside) is True  # the sought product is always shown
