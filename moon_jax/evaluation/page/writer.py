"""report.html: the results of an evaluation as one page that needs nothing else."""

import base64
import hashlib
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from moon_jax.data import whole_file
from moon_jax.data.records import Dataset
from moon_jax.evaluation.page import predictions as predictions_file
from moon_jax.evaluation.page import results_file
from moon_jax.evaluation.page.about_section import about
from moon_jax.evaluation.page.attention_section import attention
from moon_jax.evaluation.page.classes_section import classes
from moon_jax.evaluation.page.embedding_map import Embedded, embedding_map
from moon_jax.evaluation.page.experts_section import experts
from moon_jax.evaluation.page.gallery import gallery
from moon_jax.evaluation.page.html import Child, Html, bdi, el, join
from moon_jax.evaluation.page.methods import label
from moon_jax.evaluation.page.overview import overview
from moon_jax.evaluation.page.pictures import Pictures
from moon_jax.evaluation.page.results_file import Results
from moon_jax.evaluation.page.retrieval_section import retrieval
from moon_jax.evaluation.page.training_section import training

NAME = "report.html"
RUN_FILES = ("metrics.jsonl", "eval", "expert_load.json")
PICTURE_BYTES, ATTENTION_BYTES = 4_000_000, 4_000_000  # of the page, at most
_HERE = pathlib.Path(__file__).parent


class Section(NamedTuple):
    """A section of the page; it is left out if there is nothing inside."""

    id: str
    head: str
    about: str
    inside: Child


def write(
    workdir: str | os.PathLike[str],
    *,
    dataset: Dataset | None = None,
    embedded: Embedded | None = None,
    runs: Sequence[str | os.PathLike[str]] = (),
    attention_maps: str | os.PathLike[str] | None = None,
    picture_bytes: int = PICTURE_BYTES,
) -> pathlib.Path:
    """Writes `workdir/report.html` from `workdir/results.json` and what else there is; returns its path.

    The page is one file without network: style, script, figures and pictures are inside, and its content security
    policy forbids anything else. The same input gives the same bytes. The file is either whole or not there.

    Args:
        workdir: of the evaluation. `predictions.jsonl` beside the results gives recall at every rank, confusions and
            the shown queries.
        dataset: gives pictures and titles of the listings and queries; without it, ids stand in their place.
        embedded: embeddings of the listings, for the map (needs `dataset`).
        runs: work folders of training, for curves (metrics.jsonl, eval/) and expert load (expert_load.json).
        attention_maps: folder of PNG files; default `workdir/heatmaps`.
        picture_bytes: of all pictures of listings and queries.

    Raises:
        ValueError: a file cannot be read or does not belong to the others; the message names it.
    """
    workdir = pathlib.Path(workdir)
    results = results_file.read(workdir / "results.json")
    path = workdir / "predictions.jsonl"
    found = predictions_file.read(path, results) if path.exists() else None
    pictures = Pictures(picture_bytes)
    folders = [pathlib.Path(run) for run in runs]
    maps, maps_left_out = attention(pathlib.Path(attention_maps or workdir / "heatmaps"), ATTENTION_BYTES)
    shown = gallery(results, found, dataset, pictures) if found else None
    tasks = {task: results.select(task) for task in results_file.TASKS}
    loads = [experts(folder / "expert_load.json") for folder in folders]
    sections = [
        Section("overview", "Overview", "", overview(results)),
        Section(
            "retrieval",
            "Retrieval",
            "The share of queries whose product is among the first k of the gallery.",
            [retrieval(results, found), shown] if tasks["retrieval"] else None,
        ),
        Section(
            "categories",
            "Categories",
            "Zero-shot: the category whose text lies nearest to the item.",
            classes("classification", "level", results, found) if tasks["classification"] else None,
        ),
        Section(
            "attributes",
            "Attributes",
            "Zero-shot: of each attribute, the value whose text lies nearest to the item.",
            classes("attributes", "attribute", results, None) if tasks["attributes"] else None,
        ),
        Section(
            "map",
            "Embedding map",
            "Listings that are alike for the model lie near each other; distances across the map mean little.",
            embedding_map(embedded, dataset.products) if embedded and dataset else None,
        ),
        Section("attention", "Attention", "What the embedding looks at, in pictures and titles.", maps),
        Section("training", "Training", "", training(folders)),
        Section("experts", "Experts", "", [load for load in loads if load] or None),
    ]
    notes = {f"pictures {name.replace('_', ' ')}": count for name, count in pictures.about().items()}
    notes["attention maps left out"] = maps_left_out
    sections.append(Section("method", "How it was measured", "", about(results, notes)))
    whole = document(results, [section for section in sections if section.inside], pictures.styles())
    out = workdir / NAME
    whole_file.write_text(out, whole)
    return out


def check_runs(runs: Sequence[str | os.PathLike[str]]) -> None:
    """Reads what `write` would show of training runs, so that what is wrong with them is known before.

    Raises:
        ValueError: a folder is not there, is none of training, or has a file that cannot be read; names it.
    """
    for folder in map(pathlib.Path, runs):
        if not folder.is_dir():
            raise ValueError(f"there is no folder {folder}; a work folder of moon_jax.train is wanted")
        if not any((folder / name).exists() for name in RUN_FILES):
            raise ValueError(f"{folder} is no work folder of moon_jax.train: it has none of {', '.join(RUN_FILES)}")
        training([folder])
        experts(folder / "expert_load.json")


def document(results: Results, sections: Sequence[Section], more_style: str) -> str:
    """Returns the whole page."""
    style = f"{(_HERE / 'page.css').read_text(encoding='utf-8')}\n{more_style}"
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
        f"script-src 'sha256-{digest}'"
    )
    title = str(results.said.get("config", {}).get("name") or "evaluation")
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("title", f"{title}: evaluation"),
        el("style", Html(style)),
    )
    links = [el("a", section.head, href=f"#{section.id}") for section in sections]
    nav = el("nav", el("div", el("div", links, class_="links"), _theme_button()), aria_label="Sections")
    body = el(
        "body",
        el("a", "Skip to the results", href="#overview", class_="skip"),
        el("header", _moon(), el("div", el("h1", bdi(title)), el("p", *_facts(results), class_="facts"))),
        nav,
        el("main", *map(_section, sections)),
        el("footer", el("p", "Written by moon_jax from results.json.")),
        el("div", id="tip", role="status", hidden=True),
        el("script", Html(script)),
    )
    return f"<!doctype html>\n{el('html', head, body, lang='en')}\n"


def _section(section: Section) -> Html:
    note = el("p", section.about, class_="lead") if section.about else None
    return el("section", el("h2", section.head), note, section.inside, id=section.id, tabindex="-1")


def _facts(results: Results) -> list[Child]:
    queries = {}
    for row in results.whole("retrieval", by={}):
        queries[row.set] = max(queries.get(row.set, 0), row.queries)
    fingerprint = str(results.said.get("methods", {}).get(results_file.MODEL, {}).get("fingerprint", ""))[:10]
    facts = [f"{queries[name]:,} {name} queries" for name in results.values("retrieval", "set") if name in queries]
    facts += [f"model {fingerprint}"] if fingerprint else []
    others = results.methods[1:]
    facts += [f"against {', '.join(map(label, others))}"] if others else []
    return [join(" · " if place else "", el("span", bdi(fact))) for place, fact in enumerate(facts)]


def _theme_button() -> Html:
    return el("button", "Light / dark", type="button", id="theme", aria_label="Switch between light and dark")


def _moon() -> Html:
    crescent = "M26 4a16 16 0 1 0 10 26A14 14 0 0 1 26 4z"
    return el("svg", el("path", d=crescent), viewBox="0 0 40 40", class_="moon", aria_hidden="true")
