"""Means, spreads and paired differences of training runs, by hand and against scipy."""

import csv
import io
import math

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from moon_jax.config import Config, ConfigError, DataConfig, EvalConfig
from moon_jax.data import catalogue, sources
from moon_jax.evaluation import ablation, ablation_figure, tasks
from moon_jax.evaluation.ablation import Run

VALUES = {  # of seeds 3, 4, 5
    ("full", "unseen/image/R@1"): [0.5, 0.6, 0.7],
    ("no_crop", "unseen/image/R@1"): [0.4, 0.51, 0.62],
    ("no_moe", "unseen/image/R@1"): [0.55, 0.55, 0.8],
    ("full", "unseen/attributes/item/accuracy"): [0.9, 0.9, 0.9],
    ("no_crop", "unseen/attributes/item/accuracy"): [0.9, 0.9, 0.9],
    ("no_moe", "unseen/attributes/item/accuracy"): [0.3, 0.3, 0.3],
    ("full", "seen/text/R@1"): [0.1, 0.2, 0.3],
    ("no_crop", "seen/text/R@1"): [0.1, 0.2, 0.3],
    ("full", "seen/text/R@5"): [0.5, 0.5, 0.5],
    ("no_crop", "seen/text/R@5"): [0.5, 0.5, 0.5],
    ("no_moe", "seen/text/R@5"): [0.5, 0.5, 0.5],
}


def results(variant, number, **changes):
    metrics = {measure: values[number] for (name, measure), values in VALUES.items() if name == variant}
    return {
        "metrics": metrics,
        "config": {"eval": {"ks": [5, 1]}},
        "counts": {"seen": 10, "unseen": 20, "listings": {"a": 7}, "documents": number},
        "data": {"fingerprint": "of all"},
    } | changes


def runs(variants=("no_crop", "full", "no_moe"), seeds=(3, 4, 5)):
    return [Run(name, seed, results(name, seed - 3)) for seed in seeds for name in variants]


@pytest.fixture(scope="module")
def summary():
    return ablation.summarize(runs(), "full")


def test_numbers_by_hand(summary):
    assert summary["seeds"] == [3, 4, 5]
    assert summary["variants"] == ["full", "no_crop", "no_moe"]
    rows = summary["measures"]["unseen/image/R@1"]
    assert rows["full"] == {"values": [0.5, 0.6, 0.7], "mean": pytest.approx(0.6), "spread": pytest.approx(0.1)}
    crop, moe = rows["no_crop"], rows["no_moe"]
    assert crop["difference"] == pytest.approx(-0.09)  # -.1, -.09, -.08
    assert crop["difference_spread"] == pytest.approx(0.01)
    reach = 4.302652729696142 * 0.01 / math.sqrt(3)  # t of 2 degrees of freedom at .975
    assert crop["interval"] == pytest.approx([-0.09 - reach, -0.09 + reach], rel=1e-4)
    assert (crop["lower"], moe["lower"]) == (3, 1)  # .05, -.05, .1
    assert moe["interval"][0] < 0 < moe["interval"][1]
    assert "seen/text/R@1" not in summary["measures"]  # no_moe has none
    assert summary["headline"] == {
        "unseen": {"image R@1": "unseen/image/R@1", "attributes": "unseen/attributes/item/accuracy"}
    }


@pytest.mark.parametrize("n", range(2, 11))
def test_intervals_are_those_of_the_paired_t_test(n):
    a, b = np.random.default_rng(n).normal(size=(2, n))
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    np.testing.assert_allclose(ablation._interval(a - b), expected, rtol=1e-4)
    assert ablation._interval(a[:1]) is None


def test_the_table_reads_as_the_paper_figure(summary):
    lines = ablation.table(summary).splitlines()
    assert lines[0] == "mean over 3 seeds, +- standard deviation"
    assert lines[1].split() == ["unseen", "products", "image", "R@1", "attributes"]
    assert lines[2].split() == ["full", "0.600", "+-", "0.100", "0.900", "+-", "0.000"]
    crop = next(line for line in lines if line.startswith("no_crop") and "(" in line)
    assert crop.split() == ["no_crop", "-0.090", "+-", "0.010", "(3)*", "+0.000", "+-", "0.000", "(0)"]
    moe = [line for line in lines if line.startswith("no_moe")][-1]
    assert moe.split() == ["no_moe", "+0.033", "+-", "0.076", "(1)", "-0.600", "+-", "0.000", "(3)*"]
    one = ablation.table(ablation.summarize(runs(seeds=(3,)), "full"))
    assert "one seed, so that no spread is known" in one
    assert "+-" not in one
    assert "difference" not in ablation.table(ablation.summarize(runs(("full",)), "full"))


def test_csv_has_every_measure_of_every_variant(summary):
    rows = list(csv.DictReader(io.StringIO(ablation.to_csv(summary))))
    assert {(r["measure"], r["variant"]) for r in rows} == {
        (measure, variant) for measure in summary["measures"] for variant in ("full", "no_crop", "no_moe")
    }
    row = next(r for r in rows if (r["measure"], r["variant"]) == ("unseen/image/R@1", "no_crop"))
    assert [float(row[f"seed {n}"]) for n in (3, 4, 5)] == [0.4, 0.51, 0.62]
    assert float(row["difference"]) == pytest.approx(-0.09)
    assert next(r for r in rows if r["variant"] == "full")["difference"] == ""


def test_the_headline_is_found_in_real_results(tmp_path):
    """The names of the evaluation's own measures: all five tasks, of seen and unseen products."""
    catalogue.write(tmp_path / "drawn", 24, seed=2, size_px=32)
    config = Config(
        data=DataConfig(path=str(tmp_path / "drawn"), format="catalogue", unseen_share=0.3),
        eval=EvalConfig(ks=(5, 1), bootstrap_samples=0, tasks=("retrieval", "classification", "attributes")),
    )
    rng = np.random.default_rng(0)
    found = tasks.evaluate(sources.read(config.data), lambda documents: rng.normal(size=(len(documents), 8)), config)
    made = ablation.summarize([Run("full", 0, found)], "full")
    labels = ["image R@1", "text R@1", "item R@1", "classification", "attributes"]
    assert {name: list(labelled) for name, labelled in made["headline"].items()} == {"unseen": labels, "seen": labels}
    row = next(
        row for row in found["rows"]
        if (row["task"], row["set"], row["part"], row["modality"], row["by"])
        == ("attributes", "seen", None, "item", {})
    )  # fmt: skip
    headline = made["headline"]["seen"]["attributes"]
    assert made["measures"][headline]["full"]["values"] == [row["measures"]["accuracy"]]


def test_runs_that_cannot_be_compared_are_refused():
    some = runs()
    with pytest.raises(ConfigError, match="runs are missing: no_moe, seed 5"):
        ablation.summarize(some[:-1], "full")
    fewer = {"counts": {"seen": 9, "unseen": 20, "listings": {"a": 7}}}
    with pytest.raises(
        ConfigError, match=r"not asked the same questions.*\n.*'seen': 10.*\n.*'seen': 9.*no_moe, seed 5"
    ):
        ablation.summarize([*some[:-1], Run("no_moe", 5, results("no_moe", 2, **fewer))], "full")
    other = {"data": {"fingerprint": "another"}}
    with pytest.raises(ConfigError, match=r"data changed between the runs.*\n.*of all: .*\n.*another: no_moe, seed 5"):
        ablation.summarize([*some[:-1], Run("no_moe", 5, results("no_moe", 2, **other))], "full")
    crops = [Run("no_crop", seed, results("no_crop", seed - 3, **other)) for seed in (3, 4, 5)]
    with pytest.raises(ConfigError, match=r"another: no_crop, seed 3; no_crop, seed 4; no_crop, seed 5"):
        ablation.summarize([*crops, *(run for run in some if run.variant != "no_crop")], "full")


def test_the_figure_is_the_same_bytes_for_the_same_summary(summary, tmp_path):
    for name in ("a", "b"):
        ablation_figure.write(summary, tmp_path / f"{name}.png", "demo")
    for kind in ("png", "svg"):
        assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()
    assert "no_crop" in (tmp_path / "a.svg").read_text()
    with Image.open(tmp_path / "a.png") as image:
        assert min(image.size) > 150
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "a.svg", "b.png", "b.svg"]
    ablation_figure.write(ablation.summarize(runs(("full",), (3,)), "full"), tmp_path / "one.png")
