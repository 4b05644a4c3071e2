"""The report page in a real browser: a desk and a phone, the keyboard alone, hostile texts."""

import json
import pathlib

import chromium
import page_input
import pytest
from chromium import Chromium, Seen, Tab
from PIL import Image

from moon_jax.evaluation import page

if chromium.found() is None:
    pytest.skip(
        f"no browser: none of {', '.join(chromium.NAMES)} is installed, and CHROMIUM names none",
        allow_module_level=True,
    )

DESK, PHONE, SMALL = 1280, 390, 320  # px
NOTHING = Seen([], [], [])
SECTIONS = [
    *("overview", "retrieval", "categories", "attributes", "map", "attention", "training", "experts", "method"),
]
HOSTILE = "</script><script>alert(1)</script>\"'><img src=http://127.0.0.1:9/x.png onerror=alert(2)>&amp; "
VISIBLE = "(e => e.checkVisibility() && e.getBoundingClientRect().height > 0)"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    running = Chromium(chromium.found(), tmp_path_factory.mktemp("chromium"))
    yield running
    running.close()


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A work folder with all that the page shows, its data set, embeddings and a folder of training."""
    folder = tmp_path_factory.mktemp("page")
    data = page_input.dataset(folder / "pictures")
    embedded = page_input.write(folder / "w", data, methods=("model", "clip", "siglip2"))
    (folder / "w/heatmaps").mkdir()
    Image.new("RGB", (1320, 900), "orange").save(folder / "w/heatmaps/0000.png")
    (folder / "run").mkdir()
    steps = [{"step": s, "contrastive_loss": 5 - s / 10, "lr": s / 1e6} for s in range(1, 30)]
    (folder / "run/metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    load = [[[0, 0.6, 0, 0.4], [1, 0, 0, 0]]]
    said = {"roles": ["title", "category"], "router/load_by_role": load, "router/role_tokens": [10, 5]}
    (folder / "run/expert_load.json").write_text(json.dumps(said))
    return folder / "w", data, embedded, folder / "run"


@pytest.fixture(scope="module")
def report(work) -> pathlib.Path:
    """A page with all its sections."""
    folder, data, embedded, run = work
    return page.write(folder, dataset=data, embedded=embedded, runs=[run])


@pytest.fixture(scope="module")
def hostile(work, tmp_path_factory) -> pathlib.Path:
    """The page of an evaluation whose texts are markup, and longer than any line."""
    folder, data, embedded, _ = work
    other, long = tmp_path_factory.mktemp("hostile"), HOSTILE + "W" * 300
    data = page_input.with_product(data, title=f"{long}title", category=(f"{long}Home", f"{long}Pots"))
    for name in ("results.json", "predictions.jsonl"):
        text = (folder / name).read_text()
        for said in ("clip", "Lamps", "color", "red", "drawn", "front", "find 1"):  # of every kind of text
            text = text.replace(f'{said}"', f'{json.dumps(long)[1:-1]}{said}"')
        (other / name).write_text(text)
    return page.write(other, dataset=data, embedded=embedded)


def check_fits(tab: Tab, width_px: int) -> None:
    """Asserts that nothing stands out of the window sideways."""
    assert tab.ask("innerWidth") == width_px  # a phone zooms out of a page that is too wide
    assert tab.ask("document.documentElement.scrollWidth") <= width_px


@pytest.mark.parametrize("width_px", [DESK, PHONE, SMALL])
def test_page_at_every_width(browser, report, width_px):
    tab = Tab(browser, report, width_px)
    assert tab.ask("document.readyState") == "complete"
    sections = "[...document.querySelectorAll('main > section')]"
    assert tab.ask(f"{sections}.filter({VISIBLE}).map(e => e.id)") == SECTIONS
    check_fits(tab, width_px)
    tab.ask("document.querySelectorAll('details').forEach(e => { e.open = true; })")
    check_fits(tab, width_px)
    assert tab.ask("document.querySelector('#attention img').getBoundingClientRect().height") > 150  # before it is seen
    tab.ask("document.querySelector('#attention').scrollIntoView()")
    assert tab.seen() == NOTHING


@pytest.mark.parametrize("width_px", [DESK, PHONE])
def test_hostile_texts_are_shown_and_do_nothing(browser, hostile, width_px):
    tab = Tab(browser, hostile, width_px)
    tab.ask("document.querySelectorAll('details').forEach(e => { e.open = true; })")
    check_fits(tab, width_px)
    assert tab.ask("document.querySelector('h1').innerText").startswith("</script><script>alert(1)</script>")
    assert tab.ask("document.querySelectorAll('script').length") == 1
    assert tab.ask("document.querySelectorAll('img').length") == 0
    for section in ("overview", "retrieval", "categories", "attributes", "method"):
        assert "<script>alert(1)</script>" in tab.ask(f"document.getElementById('{section}').textContent")
    assert tab.seen() == NOTHING


def test_a_page_that_does_harm_is_noticed(browser, tmp_path):
    """The checks above can fail: here is what each of them looks for."""
    body = (
        '<div style="width:2000px">wide</div><img src="http://127.0.0.1:9/x.png"><script>alert(3); nothing()</script>'
    )
    meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    (tmp_path / "bad.html").write_text(f"<!doctype html>{meta}{body}")
    tab = Tab(browser, tmp_path / "bad.html", PHONE)
    with pytest.raises(AssertionError):
        check_fits(tab, PHONE)
    requests, errors, dialogs = tab.seen()
    assert requests == ["http://127.0.0.1:9/x.png"]
    assert any("nothing is not defined" in error for error in errors)
    assert dialogs == ["3"]


def test_everything_is_reached_by_the_tab_key(browser, report):
    tab = Tab(browser, report, DESK)
    stops = 0
    while tab.press("Tab") or tab.ask("document.activeElement !== document.body"):
        stops += 1
        assert stops < 1000, "the focus does not leave the page"
        seen = "e => (e.dataset.reached = 1, [e.outerHTML.slice(0, 80), getComputedStyle(e).outlineStyle])"
        shown, outline = tab.ask(f"({seen})(document.activeElement)")
        assert outline != "none", f"nobody sees that the focus is on {shown}"
    wanted = "[...document.querySelectorAll('a, button, summary, [tabindex=\"0\"]')]"
    missed = f"{wanted}.filter({VISIBLE}).filter(e => !e.dataset.reached).map(e => e.outerHTML.slice(0, 120))"
    assert tab.ask(missed) == []
    assert stops > 50
    assert tab.seen() == NOTHING


def reach(tab: Tab, selector: str) -> None:
    """Presses the tab key until the focus is on what the selector says."""
    for _ in range(1000):
        tab.press("Tab")
        if tab.ask(f"document.activeElement.matches({json.dumps(selector)})"):
            return
    raise AssertionError(f"the focus never comes to {selector}")


def test_tables_are_sorted_by_the_keyboard(browser, report):
    tab = Tab(browser, report, PHONE)
    reach(tab, "#retrieval th:nth-child(5) button")
    head = tab.ask("document.activeElement.innerText")
    assert head.startswith("R@1")
    column = "[...document.activeElement.closest('table').tBodies[0].rows].map(row => row.cells[4].innerText)"
    numbers = lambda: [float(shown.split("±")[0]) for shown in tab.ask(column)]  # noqa: E731
    given = numbers()
    assert given not in (sorted(given), sorted(given, reverse=True))
    for key, reverse, said in (("Enter", True, "descending"), ("Space", False, "ascending")):
        tab.press(key)
        assert numbers() == sorted(given, reverse=reverse)
        assert tab.ask("document.activeElement.closest('th').ariaSort") == said
    assert tab.seen() == NOTHING


def test_queries_are_chosen_and_looked_through_by_the_keyboard(browser, report):
    tab = Tab(browser, report, PHONE)
    rows = f"[...document.querySelectorAll('.asked-row')].filter({VISIBLE})"
    places = f"{rows}.map(e => [e.dataset.set, e.dataset.modality])"
    assert {tuple(place) for place in tab.ask(places)} == {("unseen", "image")}
    for value in ("seen", "text"):
        reach(tab, f".choice button[data-value={value}]")
        tab.press("Space")
    assert {tuple(place) for place in tab.ask(places)} == {("seen", "text")}
    reach(tab, ".found")
    assert tab.ask(f"{rows}.some(row => row.contains(document.activeElement))")
    before = tab.ask("document.activeElement.scrollLeft")
    tab.press("ArrowRight")
    moved = f"new Promise(done => {{ const f = () => e.scrollLeft > {before} ? done(true) : setTimeout(f, 20); f(); }})"
    assert tab.ask(f"(e => {moved})(document.activeElement)")
    assert tab.seen() == NOTHING


def test_charts_say_their_values_to_the_keyboard(browser, report):
    tab = Tab(browser, report, DESK)
    reach(tab, "#retrieval svg.lines")
    hidden = "document.getElementById('tip').hidden"
    assert tab.ask(hidden)
    tab.press("ArrowRight")
    place = "document.getElementById('tip').getBoundingClientRect().top"
    before = tab.ask(f"[scrollY, {place}]")
    once = "addEventListener('scroll', () => setTimeout(done), { once: true })"
    tab.ask(f"new Promise(done => {{ {once}; scrollBy({{ top: 40, behavior: 'instant' }}); }})")
    after = tab.ask(f"[scrollY, {place}]")
    assert after[0] > before[0]
    assert sum(after) == pytest.approx(sum(before), abs=2)  # it goes with its chart
    tip = tab.ask("document.getElementById('tip').innerText")
    assert {"this model", "clip", "siglip2"} <= set(tip.replace("\n", "\t").split("\t"))
    tab.press("Escape")
    assert tab.ask(hidden)


@pytest.mark.parametrize("width_px", [DESK, PHONE])
def test_light_and_dark(browser, report, width_px):
    tab = Tab(browser, report, width_px)
    paper = "getComputedStyle(document.body).backgroundColor"
    light = tab.ask(paper)
    reach(tab, "#theme")
    tab.press("Enter")
    dark = tab.ask(paper)
    assert sum(map(int, light[4:-1].split(","))) > 700 > 100 > sum(map(int, dark[4:-1].split(",")))
    tab.press("Enter")
    assert tab.ask(paper) == light
