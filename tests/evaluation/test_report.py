"""The results as a table and as a file."""

import json

import pytest

from moon_jax.evaluation.report import table, write_json

ROWS = [
    ("seen", "shoes", "image", None, "model", {"1": 0.5, "10": 1.0}, {"1": 0.25, "10": 1.0}, 0.625, 12, 3, 4),
    ("seen", "bags", "image", None, "model", {"1": 0.0, "10": 0.5}, {"1": 0.5, "10": 1.0}, 0.25, 2, 0, 2),
    ("seen", None, "item", "back_view", "color_histogram", {"1": 0.0, "10": 0.125}, {"1": 0.0123}, 0.0, 8, 0, None),
]
NAMES = ("set", "part", "modality", "kind", "method", "recall", "chance", "mrr", "queries", "lacking", "gallery")
RESULTS = {
    "rows": [dict(zip(NAMES, row, strict=True)) for row in ROWS],
    "loss": {"seen": {"loss": 1.23456, "negatives": 61.5, "triplets": 64, "batch_size": 32}},
}


def test_table():
    assert table(RESULTS).splitlines() == [
        "set   part   query  kind       method             R@1   R@10    MRR  queries  lacking  gallery  chance",
        "seen  shoes  image             model            0.500  1.000  0.625       12        3        4  0.2500",
        "seen  bags   image             model            0.000  0.500  0.250        2        0        2  0.5000",
        "seen  all    item   back_view  color_histogram  0.000  0.125  0.000        8        0           0.0123",
        "seen loss 1.2346 over 64 triplets in batches of 32 (61.5 negatives per query)",
    ]


def test_the_rows_over_all_parts_are_left_out_where_there_is_one_part():
    shown = table(RESULTS | {"rows": [RESULTS["rows"][0], RESULTS["rows"][2]]}).splitlines()
    assert [line.split()[1] for line in shown[1:-1]] == ["shoes"]


def test_write_json_is_whole_or_not_there(tmp_path):
    path = tmp_path / "deep" / "results.json"
    write_json(RESULTS, path)
    assert json.loads(path.read_text()) == RESULTS
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json({"loss": float("nan")}, path)
    assert json.loads(path.read_text()) == RESULTS
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]
