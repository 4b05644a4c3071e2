"""Classification, attributes and what may be asked at all, on five listings worked out by hand."""

import dataclasses

import numpy as np
import pytest

from moon_jax.config import Config, EvalConfig, Role
from moon_jax.data.documents import Document, Segment
from moon_jax.data.records import DataError, Dataset, ImageRef, Product, Query, Triplet
from moon_jax.evaluation import predictions
from moon_jax.evaluation.benchmark import Candidates, build
from moon_jax.evaluation.tasks import Method, evaluate, score

ALL = ("retrieval", "classification", "attributes")
CONFIG = Config(eval=EvalConfig(ks=(1, 2), tasks=ALL, bootstrap_samples=50))


def product(name, category, *attributes, picture=True):
    images = (ImageRef(f"/{name}.png"),) if picture else ()
    return Product(name, f"title {name}", "", images, category, attributes, "p")


A = product("a", ("shop", "hats"), ("color", ("red",)))
B = product("b", ("shop", "shoes"), ("color", ("blue", "green")))
C = product("c", ("home", "mugs"), ("color", ("red",)), ("brand", ("x",)), ("size", ("one",)))
D = product("d", ("home",), picture=False)
E = product("e", ("shop", "hats"), ("brand", ("y",)))  # listed, never asked for
PRODUCTS = {one.id: one for one in (A, B, C, D, E)}


def triplet(name, text, picture, positive, negative=None, **more):
    return Triplet(name, Query(text, ImageRef(f"/{name}.png") if picture else None), positive, negative, "p", **more)


UNSEEN = (
    triplet("t1", "", True, A, E),
    triplet("t2", "find b", False, B),
    triplet("t3", "see b", True, B),
    triplet("t4", "", True, C),
    triplet("t5", "find d", False, D),
)
DATASET = Dataset((), (), UNSEEN, PRODUCTS, "f1", {})

AXES = (
    "shop > hats", "shop > shoes", "home > mugs", "home", "shop", "color: red", "color: green", "color: blue",
    "brand: x", "brand: y",
)  # fmt: skip
CLOSE = {  # of a listing's or a photo's document, to the candidate texts
    "a": {"shop > hats": 0.9, "shop": 0.5, "color: red": 0.3, "color: blue": 0.2},
    "b": {"shop > hats": 0.6, "shop > shoes": 0.5, "shop": 0.4, "color: green": 0.2, "color: red": 0.1},
    "c": {"home > mugs": 0.9, "home": 0.3, "color: blue": 0.2, "color: red": 0.1, "brand: y": 0.1},
    "d": {"home > mugs": 0.4, "home": 0.3},
    "t1": {"shop > shoes": 0.9},
    "t3": {"shop > shoes": 0.9},
    "t4": {"home > mugs": 0.9},
}


class Embed:
    def __init__(self):
        self.asked = []

    def __call__(self, documents):
        self.asked += documents
        return np.array([self.vector(document) for document in documents], np.float32)

    def vector(self, document):
        texts = [segment.text for segment in document.segments]
        if len(texts) == 1 and texts[0] in AXES:
            return np.eye(len(AXES))[AXES.index(texts[0])]
        names = [image.path[1:-4] for image in document.images] + [text.split()[-1] for text in texts]
        close = CLOSE.get(names[0], {})
        return np.array([close.get(axis, 0.0) for axis in AXES])


@pytest.fixture(scope="module")
def embed():
    return Embed()


@pytest.fixture(scope="module")
def rows(embed):
    results = evaluate(DATASET, embed, CONFIG)
    assert {row["set"] for row in results["rows"]} == {"unseen"}
    return {
        (row["task"], row["modality"], *(f"{key}={value}" for key, value in row["by"].items())): row
        for row in results["rows"]
        if row["part"] == "p"
    }


def test_every_level_of_the_category(rows):
    """Of text: all four positives have a title. a: hats; b: hats, not shoes; c: mugs; d: mugs, not home."""
    deepest = rows["classification", "text", "level=deepest"]
    assert deepest["measures"] == rows["classification", "text"]["measures"]
    assert (deepest["queries"], deepest["lacking"], deepest["classes"]) == (4, 0, 4)
    m = deepest["measures"]
    assert (m["accuracy"], m["precision"], m["recall"]) == (0.5, (1 / 2 + 1 / 2) / 4, 0.5)
    assert m["F1"] == pytest.approx((2 / 3 + 2 / 3) / 4)
    assert deepest["chance"] == {"accuracy": 1 / 4}
    first = rows["classification", "text", "level=1"]
    assert (first["measures"]["accuracy"], first["queries"], first["lacking"], first["classes"]) == (2 / 3, 3, 1, 3)
    assert rows["classification", "text", "level=industry"]["measures"]["accuracy"] == 1
    low, high = deepest["intervals"]["accuracy"]
    assert 0 <= low < 0.5 < high <= 1


def test_only_what_has_a_picture_is_classified_by_it(rows):
    image = rows["classification", "image"]
    assert (image["queries"], image["lacking"]) == (3, 1)
    assert image["measures"]["accuracy"] == 2 / 3


def test_queries_with_a_photo_are_classified_beside_the_listings(rows):
    photo = rows["classification", "image", "subject=query"]
    assert (photo["queries"], photo["lacking"]) == (3, 0)
    assert photo["measures"]["accuracy"] == 2 / 3  # t1 is taken for shoes
    both = rows["classification", "item", "subject=query"]
    assert (both["queries"], both["lacking"]) == (1, 2)  # t3 alone has photo and text
    assert ("classification", "text", "subject=query") not in rows


def test_attributes_one_by_one_and_together(rows):
    """Color: a is red, b is green, one of its two, c is taken for blue; brand: c is taken for y."""
    color = rows["attributes", "text", "attribute=color"]
    assert (color["measures"]["accuracy"], color["queries"], color["lacking"], color["classes"]) == (2 / 3, 3, 1, 3)
    assert color["chance"]["accuracy"] == pytest.approx((1 + 2 + 1) / 9)
    # b counts as green: red has precision 1 and recall 1/2, green both 1
    assert color["measures"]["precision"] == 1.0
    assert color["measures"]["recall"] == 0.75
    assert rows["attributes", "text", "attribute=brand"]["measures"]["accuracy"] == 0
    assert ("attributes", "text", "attribute=size") not in rows  # one value is no choice
    together = rows["attributes", "text"]
    assert (together["measures"]["accuracy"], together["queries"], together["classes"]) == (2 / 4, 4, None)
    # red and green have precision 1, brand x, which is another class than any color, 0
    assert together["measures"]["precision"] == pytest.approx(2 / 3)
    assert rows["attributes", "text", "industry=shop"]["measures"]["accuracy"] == 1
    assert rows["attributes", "text", "industry=home"]["queries"] == 2


def test_what_is_classified_never_shows_the_answer(embed):
    """Aspects stand in candidate texts alone, or in listings of the gallery with all that these have."""
    for document in embed.asked:
        shown = {segment.role for segment in document.segments} & {Role.CATEGORY, Role.ATTRIBUTE}
        candidate = len(document.segments) == 1 and not document.images
        listing = any(segment.text.startswith("title ") for segment in document.segments)
        assert not shown or candidate or listing
    benchmark = build(DATASET, CONFIG)
    trial = next(trial for trial in benchmark.trials if trial.task == "attributes")
    for role in (Role.CATEGORY, Role.ATTRIBUTE):
        documents = list(benchmark.documents)
        documents[trial.asked[0].document] = Document((), (Segment(Role.TITLE, "t"), Segment(role, "the answer")))
        with pytest.raises(ValueError, match="shows its category or attributes"):
            dataclasses.replace(benchmark, documents=tuple(documents))


def test_each_document_once_and_listings_together():
    benchmark = build(DATASET, CONFIG)
    assert len(set(benchmark.documents)) == len(benchmark.documents)
    assert [benchmark.items[name] for name in "abcde"] == [0, 1, 2, 3, 4]


def test_candidate_texts_may_have_the_role_of_titles():
    settings = dataclasses.replace(CONFIG.eval, candidates="title")
    roles = {}
    for config in (CONFIG, dataclasses.replace(CONFIG, eval=settings)):
        benchmark = build(DATASET, config)
        trials = [trial for trial in benchmark.trials if trial.task != "retrieval"]
        documents = {trial.task: benchmark.documents[trial.candidates.documents[0]] for trial in trials}
        roles[config.eval.candidates] = {task: document.segments[0].role for task, document in documents.items()}
    assert roles["aspect"] == {"classification": Role.CATEGORY, "attributes": Role.ATTRIBUTE}
    assert roles["title"] == {"classification": Role.TITLE, "attributes": Role.TITLE}


def test_the_gallery_of_the_test_alone():
    config = dataclasses.replace(CONFIG, eval=dataclasses.replace(CONFIG.eval, gallery="test"))
    train = (triplet("t0", "x", False, product("z", ("shop", "hats"))),)
    dataset = dataclasses.replace(DATASET, train=train, products=PRODUCTS | {"z": train[0].positive})
    assert [p.id for p in build(dataset, config).galleries["p"]] == ["a", "b", "c", "d", "e"]
    assert [p.id for p in build(dataset, CONFIG).galleries["p"]] == ["a", "b", "c", "d", "e", "z"]


def test_a_gallery_without_the_true_item_is_refused():
    lost = triplet("t9", "find", False, A, relevant=frozenset({"nowhere"}))
    with pytest.raises(DataError, match="the gallery of 'p' lacks 'nowhere', which the query 't9' looks for"):
        build(dataclasses.replace(DATASET, unseen=(*UNSEEN, lost)), CONFIG)


def test_counts_that_do_not_match_are_refused():
    config = dataclasses.replace(CONFIG, eval=dataclasses.replace(CONFIG.eval, expected_queries=6))
    with pytest.raises(DataError, match=r"has 5 test queries, config\.eval\.expected_queries says 6"):
        build(DATASET, config)
    build(dataclasses.replace(DATASET, seen=(triplet("s", "q", False, A),)), config)
    benchmark = build(DATASET, CONFIG)
    with pytest.raises(ValueError, match="model has 3 vectors for"):
        score(benchmark, {"model": Method(np.ones((3, 4), np.float32), np.arange(3))}, DATASET, CONFIG)


def test_repeated_query_ids_are_counted_and_repeated_candidates_refused():
    again = dataclasses.replace(DATASET, unseen=(*UNSEEN, UNSEEN[1]))
    assert evaluate(again, Embed(), CONFIG)["counts"]["repeated_query_ids"] == 1
    with pytest.raises(DataError, match="'x' is listed twice"):
        Candidates(np.arange(3), ("x", "y", "x"))


def test_without_category_or_attributes_there_is_retrieval_only():
    bare = {name: dataclasses.replace(p, category=(), attributes=()) for name, p in PRODUCTS.items()}
    unseen = tuple(dataclasses.replace(t, positive=bare[t.positive.id], negative=None) for t in UNSEEN)
    benchmark = build(dataclasses.replace(DATASET, unseen=unseen, products=bare), CONFIG)
    assert {trial.task for trial in benchmark.trials} == {"retrieval"}


def test_documents_without_a_vector_are_not_asked_and_not_found():
    """The query t3 and the listing a have none: t3 is lacking, and t1, which looks for a, finds nothing."""
    benchmark = build(DATASET, CONFIG)
    embed = Embed()
    vectors = embed(benchmark.documents)
    rows = np.arange(len(vectors))
    rows[[benchmark.queries[UNSEEN[2].query, "image"], benchmark.items["a"]]] = -1
    lines = []
    results = score(benchmark, {"model": Method(vectors, rows)}, DATASET, CONFIG, write=lines.append)
    row = next(r for r in results["rows"] if (r["task"], r["modality"]) == ("retrieval", "image"))
    assert (row["queries"], row["lacking"], row["gallery"]) == (2, 3, 5)
    assert results["methods"]["model"]["documents_left_out"] == 2
    asked = {line["query"]["triplet"]: line for line in lines if line["task"] == "retrieval"}
    assert asked["t1"]["rank"] is None
    assert "a" not in [name for name, _ in asked["t1"]["top"]]


def test_predictions():
    lines = []
    benchmark = build(DATASET, CONFIG)
    vectors = Embed()(benchmark.documents)
    score(benchmark, {"model": Method(vectors, np.arange(len(vectors)))}, DATASET, CONFIG, write=lines.append)
    found = {
        (line["task"], line["modality"], line.get("subject"), line.get("attribute"), line["query"]["triplet"]): line
        for line in lines
    }
    assert len(found) == len(lines)
    line = found["attributes", "item", "positive", "color", "t2"]
    assert line["truth"] == ["blue", "green"]
    assert line["rank"] == 1
    assert line["top"][:2] == [["green", 0.2], ["red", 0.1]]
    assert line["query"] == {"text": "title b", "image": "/b.png", "kind": "", "triplet": "t2"}
    wrong = found["classification", "text", "positive", None, "t5"]
    assert (wrong["truth"], wrong["rank"], wrong["top"][0][0]) == (["home"], 2, "home > mugs")
    assert {line["truth"][0] for line in lines if line["task"] == "classification"} >= {"home", "shop > hats"}


def test_predictions_have_the_first_questions_of_each_attribute(monkeypatch):
    monkeypatch.setattr(predictions, "ATTRIBUTE_LINES", 1)
    lines = []
    benchmark = build(DATASET, CONFIG)
    vectors = Embed()(benchmark.documents)
    results = score(benchmark, {"model": Method(vectors, np.arange(len(vectors)))}, DATASET, CONFIG, write=lines.append)
    told = [line for line in lines if line["task"] == "attributes" and line["attribute"] == "color"]
    kinds = {(line["set"], line["part"], line["modality"], line["subject"]) for line in told}
    assert len(told) == len(kinds) > 0
    measured = [row for row in results["rows"] if row["task"] == "attributes" and row["by"].get("attribute") == "color"]
    assert max(row["queries"] for row in measured) > 1


class CountedId(str):
    """A text that counts how often it is looked up."""

    looked_up = 0

    def __hash__(self):
        CountedId.looked_up += 1
        return super().__hash__()


def test_the_gallery_is_not_walked_for_every_query():
    listed = [Product(CountedId(f"{i:03d}"), f"title {i}", part="p") for i in range(400)]
    asked = tuple(Triplet(f"t{i}", Query(f"q {i}", None), one, None, "p") for i, one in enumerate(listed))
    dataset = Dataset((), (), asked, {one.id: one for one in listed}, "f", {})
    CountedId.looked_up = 0
    build(dataset, CONFIG)
    assert CountedId.looked_up < 50 * len(listed)


def test_classes_without_any_vector_are_not_asked():
    benchmark = build(DATASET, CONFIG)
    vectors = Embed()(benchmark.documents)
    rows = np.arange(len(vectors))
    trial = next(t for t in benchmark.trials if t.about == ("attribute", "brand") and t.modality == "text")
    rows[trial.candidates.documents] = -1
    results = score(benchmark, {"model": Method(vectors, rows)}, DATASET, CONFIG)
    named = {(r["modality"], r["by"].get("attribute")) for r in results["rows"] if r["task"] == "attributes"}
    assert ("text", "color") in named
    assert ("text", "brand") not in named


def test_what_a_method_left_out_is_lacking_in_rows_of_an_industry():
    benchmark = build(DATASET, CONFIG)
    vectors = Embed()(benchmark.documents)
    rows = np.arange(len(vectors))
    trial = next(t for t in benchmark.trials if t.about == ("level", "deepest") and t.modality == "text")
    shop = next(asked for asked in trial.asked if asked.industry == "shop")
    rows[shop.document] = -1
    results = score(benchmark, {"model": Method(vectors, rows)}, DATASET, CONFIG)
    lacking = {
        r["by"].get("industry"): (r["queries"], r["lacking"])
        for r in results["rows"]
        if (r["task"], r["modality"], r["part"]) == ("classification", "text", "p") and "level" not in r["by"]
    }
    assert lacking == {None: (3, 1), "shop": (1, 1), "home": (2, 0)}
