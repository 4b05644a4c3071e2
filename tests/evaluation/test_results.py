"""The results as tables."""

from moon_jax.evaluation.results import table


def row(task, part, modality, by, method, measures, intervals, size, chance, queries=12, lacking=0):
    return {
        "task": task, "set": "seen", "part": part, "modality": modality, "method": method, "by": by,
        "measures": measures, "intervals": intervals, "queries": queries, "lacking": lacking,
        "gallery" if task == "retrieval" else "classes": size, "chance": chance,
    }  # fmt: skip


RANKS = {"R@1": 0.5, "R@10": 1.0, "MRR": 0.625, "nDCG@1": 0.5}
CHOICES = {"accuracy": 0.75, "precision": 0.5, "recall": 0.25, "F1": 1 / 3, "F2": 0.1, "weighted_F1": 0.2}
BOUNDS = {"R@1": [0.4, 0.7]}
RESULTS = {
    "rows": [
        row("retrieval", "shoes", "image", {}, "model", RANKS, BOUNDS, 4, {"R@1": 0.25}, lacking=3),
        row("retrieval", "bags", "item", {"kind": "back_view"}, "clip", RANKS, {}, 2, {"R@1": 0.5}, 8),
        row("retrieval", None, "image", {"industry": "Apparel"}, "model", RANKS, BOUNDS, None, {"R@1": 0.0123}),
        row("retrieval", None, "image", {}, "model", RANKS, BOUNDS, None, {"R@1": 0.0123}),
        row("classification", "shoes", "item", {"level": "1"}, "model", CHOICES, {}, 3, {"accuracy": 1 / 3}),
        row("attributes", "bags", "item", {"subject": "query", "attribute": "color"}, "model", CHOICES, {}, 9,
            {"accuracy": 0.125}),
    ],
    "loss": {"seen": {"loss": 1.23456, "negatives": 61.5, "triplets": 64, "batch_size": 32}},
}  # fmt: skip


def test_table():
    assert table(RESULTS).splitlines() == [
        "set   part   retrieval  of         method    R@1     +-   R@10    MRR  queries  lacking  gallery  chance",
        "seen  shoes  image                 model   0.500  0.150  1.000  0.625       12        3        4  0.2500",
        "seen  bags   item       back_view  clip    0.500         1.000  0.625        8        0        2  0.5000",
        "seen  all    image                 model   0.500  0.150  1.000  0.625       12        0           0.0123",
        "",
        "set   part   classification  of       method  accuracy  precision  recall     F1  accuracy@10  queries  "
        "lacking  classes  chance",
        "seen  shoes  item            level 1  model      0.750      0.500   0.250  0.333                    12  "
        "      0        3  0.3333",
        "",
        "set   part  attributes  of           method  accuracy  precision  recall     F1  queries  lacking  classes  "
        "chance",
        "seen  bags  item        query color  model      0.750      0.500   0.250  0.333       12        0        9  "
        "0.1250",
        "",
        "seen loss 1.2346 over 64 triplets in batches of 32 (61.5 negatives per query)",
    ]


def test_the_rows_over_all_parts_are_left_out_where_there_is_one_part():
    shown = table(RESULTS | {"rows": [RESULTS["rows"][0], RESULTS["rows"][3]], "loss": {}}).splitlines()
    assert [line.split()[1] for line in shown[1:]] == ["shoes"]
