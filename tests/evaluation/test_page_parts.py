"""What the report page draws, against formulas, worked examples and scikit-learn."""

import collections
import json
import math
import re

import numpy as np
import pytest
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.manifold import trustworthiness

from moon_jax.data.records import Dataset, ImageRef, Product, Query, Triplet
from moon_jax.evaluation.page import embedding_map, experts_section, lines, predictions, results_file, training_section
from moon_jax.evaluation.page.attention_section import attention
from moon_jax.evaluation.page.classes_section import grouped, leaves
from moon_jax.evaluation.page.dots import ceiling
from moon_jax.evaluation.page.gallery import Catalogue
from moon_jax.evaluation.page.html import Html, bdi, el
from moon_jax.evaluation.page.measures_table import paper_table
from moon_jax.evaluation.page.radar import radar
from moon_jax.evaluation.page.retrieval_section import retrieval
from moon_jax.evaluation.page.tsne import principal_components, tsne


def test_a_query_is_known_by_its_part_and_id():
    """Parts number their rows alike; a repeated id within a part shows what stands in the predictions."""
    listing = Product("p", title="t")
    asked_in = {part: Query(f"asked in {part}", ImageRef(f"/{part}.jpg")) for part in "ABCD"}
    seen = [Triplet("0", asked_in[part], listing, None, part) for part in "AB"]
    unseen = [Triplet("7", asked_in[which], listing, None, "C") for which in "CDC"]
    catalogue = Catalogue(Dataset((), tuple(seen), tuple(unseen), {"p": listing}, "f", {}))

    def shown(part, triplet, **query):
        return catalogue.query(predictions.Asked("seen", "item", {"triplet": triplet, **query}, part, ("p",), 1, ()))

    for part in "AB":
        assert shown(part, "0", text="x") == (ImageRef(f"/{part}.jpg"), f"asked in {part}")
    assert shown("C", "7", text="the second", image="/second.jpg") == (ImageRef("/second.jpg"), "the second")


def row(method="model", modality="image", part=None, queries=4, by=None, **measures):
    measures = {name.replace("_at_", "@"): value for name, value in measures.items()}
    return {
        "task": "retrieval", "set": "unseen", "part": part, "modality": modality, "method": method, "by": by or {},
        "measures": measures, "intervals": {}, "queries": queries, "lacking": 0, "gallery": 9, "chance": {},
    }  # fmt: skip


def results_of(tmp_path, rows):
    (tmp_path / "results.json").write_text(json.dumps({"version": 1, "methods": {}, "rows": rows}))
    return results_file.read(tmp_path / "results.json")


def test_elements_escape_all_but_markup():
    said = el(
        "a", "<b>&\"'", Html("<i>x</i>"), None, [bdi("y"), "\x07"], title="\"<'", data_v=1.25, hidden=False, open=True
    )
    assert said == (
        '<a title="&quot;&lt;&#x27;" data-v="1.25" open>&lt;b&gt;&amp;&quot;&#x27;<i>x</i><bdi>y</bdi>\ufffd</a>'
    )
    assert el("line", x1=1.0, y1=2.126, x2=3) == '<line x1="1" y1="2.13" x2="3"/>'


def test_recall_curve_is_the_share_of_ranks_up_to_k(tmp_path):
    ranks = [1, 1, 3, None, 7, 2, None, 3]
    results = results_of(tmp_path, [row(R_at_1=2 / 8, R_at_10=6 / 8, queries=8)])
    with (tmp_path / "p.jsonl").open("w") as file:
        for number, rank in enumerate(ranks):
            query = {"text": None, "image": None, "kind": "", "triplet": str(number)}
            line = {
                "method": "model",
                "task": "retrieval",
                "set": "unseen",
                "part": "a",
                "modality": "image",
                "query": query,
            }
            print(json.dumps(line | {"truth": ["x"], "rank": rank, "top": [["x", 0.5]]}), file=file)
    drawn = retrieval(results, predictions.read(tmp_path / "p.jsonl", results))
    hover = json.loads(re.search(r'data-hover="(.*?)"', drawn).group(1).replace("&quot;", '"'))
    assert hover["at"] == [f"k {k}" for k in range(1, 11)]
    want = [100 * sum(rank is not None and rank <= k for rank in ranks) / 8 for k in range(1, 11)]
    assert [float(value) for value in hover["rows"][0]["values"]] == want
    points = re.search(r'<path d="(.*?)"', drawn).group(1)  # and the line is there: 0 % at y = 194, 100 % at 12
    ys = [float(point.split()[1]) for point in re.split("[ML]", points) if point]
    np.testing.assert_allclose(ys, [194 - 182 * value / 100 for value in want], atol=0.01)


def test_sample_is_of_the_same_queries_for_every_method_and_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(predictions, "CANDIDATES", 5)
    rows = [row(method=m, R_at_1=0.0, queries=40) for m in ("model", "clip")]
    results = results_of(tmp_path, rows)
    with (tmp_path / "p.jsonl").open("w") as file:
        for method, order in (("clip", range(40)), ("model", range(39, -1, -1))):
            for number in order:
                query = {"text": "q", "image": None, "kind": "", "triplet": number}
                line = {"method": method, "task": "retrieval", "set": "unseen", "modality": "image", "query": query}
                print(json.dumps(line | {"part": "a", "truth": ["x"], "rank": None, "top": []}), file=file)
    sample = predictions.read(tmp_path / "p.jsonl", results).sample["unseen", "image"]
    assert len(sample) == 5
    assert all(set(ranked) == {"model", "clip"} for ranked in sample.values())


def test_first_three_are_marked_within_their_set_and_modality(tmp_path):
    values = {"model": 0.5, "a": 0.7, "b": 0.7, "c": 0.2, "d": 0.1}
    rows = [row(method=m, R_at_1=v) for m, v in values.items()]
    rows += [row(method=m, modality="text", R_at_1=v) for m, v in (("a", 0.01), ("b", 0.02))]
    text = paper_table(results_of(tmp_path, rows).rows, ["R@1"], results_of(tmp_path, rows), "x")
    marks = re.findall(r'<td class="?([^">]*?)"? data-v="([\d.]+)"', text)
    assert {value: class_.split()[0] for class_, value in marks if class_.split()[0] != "edge"} == {
        "0.7": "first", "0.5": "second", "0.2": "third", "0.02": "first",
    }  # fmt: skip


def test_confusion_groups_are_the_deepest_level_that_fits(monkeypatch):
    pairs = collections.Counter(
        {("A > a", "A > b"): 2, ("A > b", "A > b"): 3, ("B > c", "A > a"): 1, ("C > d", "C > d"): 4}
    )
    assert grouped(pairs)[0] == ["A > a", "A > b", "B > c", "C > d"]
    monkeypatch.setattr("moon_jax.evaluation.page.classes_section.GROUPS", 3)
    names, found = grouped(pairs)
    assert names == ["A", "B", "C"]
    assert found == {("A", "A"): 5, ("B", "A"): 1, ("C", "C"): 4}
    monkeypatch.setattr("moon_jax.evaluation.page.classes_section.GROUPS", 2)
    names, found = grouped(pairs)
    assert names == ["A", "other"]
    assert found == {("A", "A"): 5, ("other", "A"): 1, ("other", "other"): 4}


def test_classes_are_named_by_their_last_levels():
    names = ["Men > Tops", "Women > Tops", "Milk", "Food > Milk > Soy"]
    assert leaves(names) == {**{name: name for name in names[:3]}, "Food > Milk > Soy": "Soy"}


def test_labels_are_moved_apart_as_little_as_possible():
    assert lines.spread_out([50.0, 10.0], 12, 0, 100) == [50.0, 10.0]
    np.testing.assert_allclose(lines.spread_out([50.0, 50.0, 50.0], 12, 0, 100), [38, 50, 62])
    np.testing.assert_allclose(lines.spread_out([99.0, 98.0], 12, 0, 100), [100, 88])
    places = lines.spread_out(list(np.random.default_rng(0).uniform(0, 100, 8)), 12, 0, 100)
    assert np.diff(sorted(places)).min() >= 12 - 1e-9
    assert min(places) >= -1e-9
    assert max(places) <= 100 + 1e-9


@pytest.mark.parametrize(("low", "high"), [(0, 1), (3.1, 4.9), (0, 0.0021), (5, 5), (0, 0), (-2, 417), (1e-7, 3e-7)])
def test_ticks_are_round_and_enclose(low, high):
    ticks = lines.nice_ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= 8
    step = ticks[1] - ticks[0]
    np.testing.assert_allclose(np.diff(ticks), step)
    assert round(step / 10 ** math.floor(math.log10(step)), 6) in (1, 2, 2.5, 5, 10)


def test_scale_of_dots_encloses():
    assert [ceiling([v]) for v in (0.03, 0.2, 0.201, 0.999, 1.0)] == [0.2, 0.2, 0.3, 1.0, 1.0]


def test_radar_puts_values_along_the_axes():
    axes = [("up", "a"), ("right", "b"), ("down", "c"), ("left", "d")]
    text = radar("x", axes, {"model": [1.0, 0.5, 0.25, math.nan]}, ["model"])
    places = [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', text)]
    np.testing.assert_allclose(places, [(230, 190 - 134), (230 + 67, 190), (230, 190 + 33.5)], atol=0.01)
    assert 'class="area"' not in text  # a task without a value leaves the shape open


def test_principal_components_are_those_of_scikit_learn():
    x = np.random.default_rng(0).standard_normal((50, 7)) * [5, 3, 1, 1, 1, 0.5, 0.1]
    mine, theirs = principal_components(x), PCA(2).fit_transform(x)
    np.testing.assert_allclose(np.abs(mine), np.abs(theirs), atol=1e-9)
    np.testing.assert_array_equal(mine, principal_components(x))


def test_tsne_keeps_neighbours_and_depends_on_nothing_else():
    random = np.random.default_rng(0)
    centers = random.standard_normal((6, 24)) * 3
    x = (centers[np.arange(120) % 6] + random.standard_normal((120, 24))).astype(np.float32)
    y = tsne(x)
    assert trustworthiness(x, y, n_neighbors=10) > 0.9 > trustworthiness(x, random.permutation(y), n_neighbors=10)
    nearest = np.linalg.norm(y[:, None] - y[None], axis=-1) + np.eye(120) * 1e9
    assert (nearest.argmin(1) % 6 == np.arange(120) % 6).mean() > 0.98
    np.testing.assert_array_equal(y, tsne(x))
    assert np.isfinite(tsne(np.ones((6, 4), np.float32))).all()  # all alike
    np.testing.assert_array_equal(tsne(x[:5]).shape, (5, 2))


def test_map_has_a_point_for_each_listing_and_refuses_bad_vectors():
    products = {str(i): Product(str(i), f"t{i}", category=("all", "ab"[i % 2])) for i in range(9)}
    good = embedding_map.Embedded(
        [*products, "unknown"], lambda ids: np.random.default_rng(0).standard_normal((len(ids), 4))
    )
    text = embedding_map.embedding_map(good, products)
    assert sorted(re.findall(r'class="(g\d)" data-tip="(t\d)\n(\w)"', text)) == sorted(
        (("g1", "g2")[i % 2], f"t{i}", "ab"[i % 2]) for i in range(9)
    )
    bad = embedding_map.Embedded(list(products), lambda ids: np.full((len(ids), 4), np.nan))
    with pytest.raises(ValueError, match="9 finite embeddings"):
        embedding_map.embedding_map(bad, products)


@pytest.mark.parametrize("apart", [True, False])
def test_map_names_a_group_only_where_it_is_at_home(apart):
    products = {f"{i:02d}": Product(f"{i:02d}", f"t{i}", category=("ab"[i % 2],)) for i in range(40)}
    pairs = np.random.default_rng(0).standard_normal((20, 4)).repeat(2, axis=0)  # one of each group at every place
    vectors = pairs + (20 if apart else 0.01) * (np.arange(40) % 2)[:, None]
    text = embedding_map.embedding_map(embedding_map.Embedded([*products], lambda ids: vectors), products)
    assert re.findall(r'class="(g\d) name"', text) == (["g1", "g2"] if apart else [])
    height = float(re.search(r'viewBox="0 0 560 ([\d.]+)"', text).group(1))
    ys = [float(y) for y in re.findall(r'<circle cx="[\d.]+" cy="([\d.]+)"', text)]
    assert (min(ys), max(ys)) == pytest.approx((14, height - 14), abs=0.02)


def test_training_curves_are_means_of_neighbours(tmp_path):
    steps = [(step, float(step % 2)) for step in range(1, 1201)]
    x, y = training_section.thinned(steps)
    assert len(x) == training_section.POINTS
    assert x[-1] == 1200
    assert set(y) == {0.5}
    lines_ = [{"step": s, "contrastive_loss": 5 - s, "router/entropy": [1.0, 3.0], "lr": None} for s in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines_))
    (tmp_path / "eval").mkdir()
    for step in (2, 10):
        (tmp_path / "eval" / f"{step}.json").write_text(
            json.dumps({"metrics": {"unseen/image/R@1": step / 20, "a/unseen/image/R@1": 0.9, "unseen/item/R@1": 0.3}})
        )
    text = training_section.training([tmp_path, tmp_path / "none"])
    assert re.findall(r"<figcaption>(.*?)<", text) == ["Contrastive loss", "Router entropy", "Recall@1 in training"]
    assert "Learning rate" not in text  # no number in it
    assert "image ends at 50; item ends at 30" in text
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step"')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2"):
        training_section.training([tmp_path])


def test_expert_panels_show_the_shares(tmp_path):
    load = np.zeros((2, 2, 4))  # layers, roles, experts; guided: 0 and 2
    load[:, 0] = [[0, 0.6, 0, 0.4], [0, 0.3, 0, 0.7]]
    load[:, 1, 0] = 1
    said = {"roles": ["title", "category"], "router/load_by_role": load.tolist(), "router/role_tokens": [10, 0]}
    (tmp_path / "load.json").write_text(json.dumps(said))
    text = experts_section.experts(tmp_path / "load.json")
    assert re.findall(r'data-tip="layer (\d), expert (\d)\t([\d.]+) %"', text) == [
        ("0", "1", "60.0"), ("1", "1", "30.0"), ("0", "3", "40.0"), ("1", "3", "70.0"),
    ]  # fmt: skip
    assert "full colour: 70 %" in text
    assert "no tokens" in text
    assert text.count("column guided") == 4
    (tmp_path / "load.json").write_text(json.dumps({**said, "roles": ["title"]}))
    with pytest.raises(ValueError, match=r"load\.json is not an expert_load\.json"):
        experts_section.experts(tmp_path / "load.json")


def test_attention_maps_have_the_ids_of_their_records(tmp_path):
    for name in ("0000", "0001", "0001_layers"):
        Image.new("RGBA", (30, 20), "red").save(tmp_path / f"{name}.png")
    records = [{"record": i, "id": f"<{i}>", "png": f"000{i}.png"} for i in range(2)]
    (tmp_path / "heatmaps.json").write_text(json.dumps({"version": 1, "about": {}, "records": records}))
    text, left_out = attention(tmp_path, 10**6)
    assert re.findall(r'alt="Attention map: (.*?)"', text) == ["&lt;0&gt;", "&lt;1&gt;", "&lt;1&gt; · layers"]
    assert left_out == 0
    assert text.count("data:image/jpeg;base64,") == 3
    assert attention(tmp_path, 10) == (None, 3)
    (tmp_path / "0000.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"0000\.png cannot be read"):
        attention(tmp_path, 10**6)
