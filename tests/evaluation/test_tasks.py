"""Results of small data sets whose embeddings, ranks, classes and losses are set by hand."""

import dataclasses
import math

import numpy as np
import pytest

from moon_jax.config import Config, DataConfig, EvalConfig, LossConfig, TrainConfig
from moon_jax.data import sources
from moon_jax.data.picture_files import ImageError
from moon_jax.data.records import Dataset, ImageRef, Product, Query, Triplet
from moon_jax.evaluation import results as results_file
from moon_jax.evaluation import tasks
from moon_jax.evaluation.metrics import NO_PRODUCT, info_nce
from moon_jax.evaluation.validation_loss import drawn_modality

CONFIG = Config(
    train=TrainConfig(batch_size=2), eval=EvalConfig(ks=(1, 2, 5)), loss=LossConfig(temperature=0.5, ring_batches=0)
)


def product(name, part):
    return Product(
        name, f"title {name}", "", (ImageRef(f"/{name}.png"),), ("shop", "things"), (("color", ("red",)),), part
    )


SHOES = [product(name, "shoes") for name in "abc"]  # galleries: a b c and d e, sorted by id
HATS = [product(name, "hats") for name in "de"]
A, B, C, D, E = SHOES + HATS

# One axis for each listing; a query's picture and text point where the test wants the ranks to come from.
ITEMS = {name: np.eye(5)[i] for i, name in enumerate("abcde")}
PICTURES = {
    "q1": [0.9, 0.5, 0.1, 0, 0],  # asks for a: rank 1
    "q2": [0.5, 0.5, 0.5, 0, 0],  # asks for c: a, b, c tie, so rank 3
    "q3": [0.1, 0.2, 0.9, 0, 0],  # asks for b: rank 2
    "q4": [0, 0, 0, 0.2, 0.7],  # asks for d: rank 2
}
TEXTS = {
    "find q2": [0.1, 0.2, 0.3, 0, 0],  # asks for c: rank 1
    "find q4": [0, 0, 0, 0.9, 0.3],  # asks for d: rank 1
}


def query(name, text="", kind=""):
    return Query(text, ImageRef(f"/{name}.png") if name else None, kind)


SEEN = (
    Triplet("t1", query("q1", kind="front"), A, B, "shoes"),
    Triplet("t2", query("q2", "find q2", kind="back"), C, A, "shoes"),
    Triplet("t3", query("q3", kind="back"), B, None, "shoes"),
    Triplet("t4", query("q4", "find q4", kind="front"), D, E, "hats"),
)
UNSEEN = (Triplet("t5", query(None, "find q2"), C, A, "shoes"),)
DATASET = Dataset((), SEEN, UNSEEN, {p.id: p for p in SHOES + HATS}, "f1ngerprint", {"records": 5})


class Embed:
    """Looks every document's vector up, and remembers what it was asked for."""

    def __init__(self):
        self.asked = []

    def __call__(self, documents):
        self.asked += documents
        return np.array([self.vector(d) for d in documents], np.float32)

    def vector(self, document):
        names = [image.path[1:-4] for image in document.images]
        texts = [segment.text for segment in document.segments]
        if names and names[0] in ITEMS:
            assert texts == [f"title {names[0]}", "shop > things", "color: red"]
            return ITEMS[names[0]]
        parts = [PICTURES[name] for name in names] + [TEXTS[text] for text in texts]
        return np.mean(parts, axis=0)


@pytest.fixture
def results():
    return tasks.evaluate(DATASET, Embed(), CONFIG, about={"step": 7})


def test_ranks_by_hand(results):
    m = results["metrics"]
    assert [m[f"shoes/seen/image/R@{k}"] for k in (1, 2, 5)] == [1 / 3, 2 / 3, 1.0]  # ranks 1, 3, 2
    assert m["shoes/seen/image/MRR"] == pytest.approx((1 + 1 / 3 + 1 / 2) / 3)
    assert [m[f"hats/seen/image/R@{k}"] for k in (1, 2, 5)] == [0, 1, 1]  # rank 2 of two listings
    assert [m[f"seen/image/R@{k}"] for k in (1, 2, 5)] == [1 / 4, 3 / 4, 1]  # over queries, not over parts
    assert m["shoes/seen/text/R@1"] == 1
    assert m["shoes/seen/item/R@1"] == 1  # q2: mean of picture and text: c wins
    assert m["hats/seen/item/R@1"] == 1  # (.2 + .9) / 2 for d, (.7 + .3) / 2 for e
    assert m["shoes/seen/image/R@1[kind=front]"] == 1
    assert [m[f"shoes/seen/image/R@{k}[kind=back]"] for k in (1, 2)] == [0, 0.5]
    assert "hats/seen/image/R@1[kind=front]" not in m  # its only kind
    assert m["seen/image/R@1[kind=front]"] == 1 / 2
    assert m["unseen/text/R@1"] == m["shoes/unseen/text/R@1"] == 1
    assert "unseen/image/R@1" not in m  # no unseen query has a picture


def test_counts(results):
    rows = {(r["set"], r["part"], r["modality"], r["by"].get("kind")): r for r in results["rows"]}
    text = rows["seen", "shoes", "text", None]
    assert (text["queries"], text["lacking"], text["gallery"]) == (1, 2, 3)
    assert text["chance"] == {"R@1": 1 / 3, "R@2": 2 / 3, "R@5": 1.0}
    both = rows["seen", None, "image", None]
    assert (both["queries"], both["lacking"], both["gallery"]) == (4, 0, None)
    assert both["chance"]["R@1"] == pytest.approx((3 * 1 / 3 + 1 / 2) / 4)
    assert results["counts"]["listings"] == {"hats": 2, "shoes": 3}
    assert results["data"]["fingerprint"] == "f1ngerprint"
    assert results["about"] == {"step": 7}


def test_every_document_is_embedded_once_and_queries_hold_no_aspects():
    embed = Embed()
    results = tasks.evaluate(DATASET, embed, CONFIG)
    assert len(set(embed.asked)) == len(embed.asked) == results["counts"]["documents"]
    assert len(embed.asked) == 5 + 4 + 2 + 2  # listings, pictures, texts (q2's is asked twice), both
    for document in embed.asked:
        if not (document.images and document.images[0].path[1:-4] in ITEMS):
            assert {segment.role.name for segment in document.segments} <= {"TITLE"}


def test_cut_to_the_first_by_hash_whatever_the_order():
    cut = tasks.evaluate(DATASET, Embed(), CONFIG, max_queries=2)
    turned = dataclasses.replace(DATASET, seen=SEEN[::-1])
    again = tasks.evaluate(turned, Embed(), CONFIG, max_queries=2)
    assert cut["counts"]["seen"] == 2
    assert cut["metrics"] == again["metrics"]
    assert tasks.evaluate(turned, Embed(), CONFIG)["metrics"] == tasks.evaluate(DATASET, Embed(), CONFIG)["metrics"]


def test_validation_loss_by_hand():
    embed = Embed()
    config = dataclasses.replace(CONFIG, train=TrainConfig(batch_size=5), data=DataConfig(modality_mix=(1, 0, 0)))
    loss = tasks.evaluate(DATASET, embed, config)["loss"]["seen"]  # fewer than a batch: one smaller block of all four

    def terms(name, own, others):
        score = dict(zip("abcde", PICTURES[name], strict=True))
        return -math.log(math.exp(score[own] / 0.5) / sum(math.exp(score[o] / 0.5) for o in own + others))

    # Products in the block: positives a c b d, hard negatives b a e; each product once, the own positive's never.
    expected = [terms("q1", "a", "bcde"), terms("q2", "c", "abde"), terms("q3", "b", "acde"), terms("q4", "d", "abce")]
    assert loss["loss"] == pytest.approx(np.mean(expected), rel=1e-6)
    assert loss["negatives"] == 4
    assert (loss["triplets"], loss["batch_size"]) == (4, 4)


def test_validation_loss_uses_full_blocks():
    dataset = dataclasses.replace(DATASET, seen=SEEN[:3])
    assert tasks.evaluate(dataset, Embed(), CONFIG)["loss"]["seen"]["triplets"] == 2


@pytest.mark.parametrize("mask", [True, False])
def test_info_nce_against_a_loop(mask):
    rng = np.random.default_rng(0)
    batch, width, tau = 16, 6, 0.1
    queries, candidates = rng.normal(size=(batch, width)), rng.normal(size=(2 * batch, width))
    products = rng.integers(0, 12, 2 * batch)  # many repeats
    products[batch + 3] = products[batch + 9] = NO_PRODUCT
    loss, negatives = info_nce(queries, candidates, products, tau, mask)
    for i in range(batch):
        own, chosen, met = products[i], [], set()
        order = [batch + i, *(j for j in range(2 * batch) if j != batch + i)]  # the own hard negative first
        for j in order:
            if j == i or products[j] == NO_PRODUCT or (mask and (products[j] == own or products[j] in met)):
                continue
            met.add(products[j])
            chosen.append(j)
        scores = [math.exp(queries[i] @ candidates[j] / tau) for j in (i, *chosen)]
        assert loss[i] == pytest.approx(-math.log(scores[0] / sum(scores)), rel=1e-9, abs=1e-12)
        assert negatives[i] == len(chosen)


def test_info_nce_without_negatives_is_zero():
    loss, negatives = info_nce(np.ones((1, 2)), np.ones((2, 2)), np.array([4, NO_PRODUCT]), 0.05, True)
    assert loss.tolist() == [0.0]
    assert negatives.tolist() == [0]


def test_drawn_modalities_follow_the_mix():
    triplets = [Triplet(str(i), query("q1", "find q2"), A, B, "shoes") for i in range(1700)]
    drawn = [drawn_modality(t, (12, 3, 2)) for t in triplets]
    assert [round(drawn.count(task) / 100) for task in ("image", "text", "item")] == [12, 3, 2]
    only_text = Triplet("x", query(None, "find q2"), A, B, "shoes")
    assert drawn_modality(only_text, (12, 0, 0)) == "text"


def test_color_histogram_stands_beside_the_model(monkeypatch):
    def embed_pictures(paths):  # finds q1 and q4, not q2 and q3
        names = [path[1:-4] for path in paths]
        return np.stack([ITEMS[{"q1": "a", "q4": "d", "q2": "a", "q3": "c"}.get(n, n)] for n in names])

    monkeypatch.setattr(tasks, "embed_pictures", embed_pictures)
    bare = dataclasses.replace(C, images=())
    dataset = dataclasses.replace(DATASET, products=DATASET.products | {"c": bare})
    config = dataclasses.replace(CONFIG, eval=EvalConfig(ks=(1,), color_histogram=True))
    embed = Embed()
    embed.vector = lambda document: ITEMS["a"]
    results = tasks.evaluate(dataset, embed, config)
    m = results["metrics"]
    assert m["shoes/seen/image/R@1[method=color_histogram]"] == 1 / 3
    assert m["hats/seen/image/R@1[method=color_histogram]"] == 1
    assert m["seen/image/R@1[method=color_histogram]"] == 1 / 2
    assert "color_histogram" in results_file.table(results)


def test_color_histogram_leaves_out_what_cannot_be_read(monkeypatch):
    """The queries q1 and the listing d: a question less of shoes, and who asks for d finds nothing."""

    def embed_pictures(paths):
        if paths[0] in ("/q1.png", "/d.png"):
            raise ImageError(f"{paths[0]}: cannot be read")
        return np.stack([ITEMS[{"q4": "d", "q2": "c", "q3": "c"}.get(p[1:-4], p[1:-4])] for p in paths])

    monkeypatch.setattr(tasks, "embed_pictures", embed_pictures)
    benchmark = tasks.build(DATASET, CONFIG)
    with pytest.raises(ImageError, match="cannot be read"):
        tasks.color_histogram(benchmark)
    method = tasks.color_histogram(benchmark, "skip")
    assert method.about["unreadable_pictures"] == 2
    results = tasks.score(benchmark, {"color_histogram": method}, DATASET, CONFIG)
    assert results["protocol"]["retrieval"]["kept"] == 10
    rows = {(r["part"], r["set"]): r for r in results["rows"] if r["modality"] == "image" and not r["by"]}
    shoes, hats = rows["shoes", "seen"], rows["hats", "seen"]
    assert (shoes["queries"], shoes["lacking"], shoes["measures"]["R@1"]) == (2, 1, 0.5)
    assert hats["measures"]["R@5"] == 0


def test_refuses():
    with pytest.raises(ValueError, match="no test queries"):
        tasks.evaluate(dataclasses.replace(DATASET, seen=(), unseen=()), Embed(), CONFIG)
    with pytest.raises(ValueError, match=r"shape \(1, 3\)"):
        tasks.evaluate(DATASET, lambda documents: np.ones((1, 3)), CONFIG)
    with pytest.raises(ValueError, match="not finite"):
        tasks.evaluate(DATASET, lambda documents: np.full((len(documents), 3), np.nan), CONFIG)


def test_real_data(moon_data):
    """Two recalls of an HSV histogram that were measured apart from this code, with other bins."""
    data = DataConfig(path=str(moon_data), parts=("luma",), unseen_share=0.0)
    dataset = sources.read(data)
    rng = np.random.default_rng(0)
    config = Config(data=data, eval=EvalConfig(color_histogram=True))
    results = tasks.evaluate(dataset, lambda documents: rng.normal(size=(len(documents), 8)), config)
    rows = {(r["method"], r["modality"], r["by"].get("kind")): r for r in results["rows"] if r["part"] == "luma"}
    floors = {"back_view": (32, 0.750), "other_color": (53, 0.094)}
    for kind, (queries, recall) in floors.items():
        row = rows["color_histogram", "image", kind]
        assert (row["queries"], row["gallery"]) == (queries, 134)
        assert row["measures"]["R@1"] == pytest.approx(recall, abs=0.05)
    assert rows["model", "image", None]["measures"]["R@1"] < 0.05  # random vectors
