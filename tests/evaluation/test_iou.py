"""How well boxes agree, by hand; and the table of a model that is right, wrong and silent."""

import dataclasses
import json

import pytest
from fake_batch import tiny_config
from PIL import Image

from moon_jax.data import sources
from moon_jax.data.grounding_answers import PARSED, UNREADABLE, WHOLE, Found
from moon_jax.data.picture_files import ImageError
from moon_jax.evaluation.grounding import evaluate, iou, table


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0.0, 0.0, 10.0, 10.0), (0.0, 0.0, 10.0, 10.0), 1.0),
        ((0.0, 0.0, 10.0, 10.0), (5.0, 0.0, 15.0, 10.0), 1 / 3),
        ((0.0, 0.0, 4.0, 4.0), (1.0, 1.0, 3.0, 3.0), 0.25),
        ((0.0, 0.0, 1.0, 1.0), (1.0, 0.0, 2.0, 1.0), 0.0),
        ((0.0, 0.0, 1.0, 1.0), (5.0, 5.0, 6.0, 6.0), 0.0),
        ((3.0, 3.0, 3.0, 3.0), (3.0, 3.0, 3.0, 3.0), 0.0),
    ],
)
def test_intersection_over_union(a, b, expected):
    assert iou(a, b) == pytest.approx(expected)
    assert iou(b, a) == pytest.approx(expected)


def test_the_numbers_of_a_model(tmp_path):
    """Four test queries on 40 x 20 px, boxes (0, 0, 20, 20): found, half found, not answered, not readable."""
    Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
    rows = [
        {"id": f"r{n}", "query": {"image": "a.png", "text": f"q{n}", "bbox": [0, 0, 20, 20]},
         "positive": {"item_id": f"i{n}", "title": f"t{n}", "images": []}}
        for n in range(4)
    ]  # fmt: skip
    train = [row | {"query": row["query"] | {"bbox": [0, 0, 20 + 20 * (n % 2), 20]}} for n, row in enumerate(rows)]
    for name, some in (("train", train), ("test", rows)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    config = tiny_config(
        loss__kind="next_token", loss__ring_batches=0, eval__metric="seen/query/IoU", data__path=str(tmp_path),
        data__unseen_share=0.0,
    )  # fmt: skip
    said = {
        "q0": Found((0.0, 0.0, 20.0, 20.0), PARSED),
        "q1": Found((10.0, 0.0, 30.0, 20.0), PARSED),
        "q2": Found((0.0, 0.0, 40.0, 20.0), WHOLE, "no answer"),
        "q3": Found(None, UNREADABLE, "gone"),
    }
    results = evaluate(sources.read(config.data), lambda questions: [said[q.title] for q in questions], config)
    measures = {name: results["metrics"][f"seen/query/{name}"] for name in ("IoU", "IoU@0.5", "valid")}
    assert measures == pytest.approx({"IoU": (1 + 1 / 3 + 1 / 2) / 3, "IoU@0.5": 2 / 3, "valid": 2 / 3})
    by_method = {row["method"]: row["IoU"] for row in results["rows"] if not row["part"]}
    assert by_method["whole picture"] == pytest.approx(0.5)
    assert results["protocol"]["mean_box"] == pytest.approx([0, 0, 0.75, 1])
    assert by_method["mean box"] == pytest.approx(20 / 30)
    assert results["counts"] == {"pictures": 4, "unreadable": 1}
    assert results["reasons"] == {"no answer": 1}
    assert "0.611" in table(results)


def test_a_training_picture_that_is_gone_is_left_out_of_the_mean_box(tmp_path):
    Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
    rows = [
        {"id": f"r{n}", "query": {"image": image, "text": f"q{n}", "bbox": [0, 0, 20, 10]},
         "positive": {"item_id": f"i{n}", "title": f"t{n}", "images": []}}
        for n, image in enumerate(("gone.png", "a.png"))
    ]  # fmt: skip
    for name, some in (("train", rows), ("test", rows[1:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    config = tiny_config(
        loss__kind="next_token", loss__ring_batches=0, eval__metric="seen/query/IoU", data__path=str(tmp_path),
        data__unseen_share=0.0, data__on_error="skip",
    )  # fmt: skip
    dataset = sources.read(config.data)
    found = [Found((0.0, 0.0, 20.0, 10.0), PARSED)]
    assert evaluate(dataset, lambda _: found, config)["protocol"]["mean_box"] == pytest.approx([0, 0, 0.5, 0.5])
    raising = dataclasses.replace(config, data=dataclasses.replace(config.data, on_error="raise"))
    with pytest.raises(ImageError, match=r"gone\.png"):
        evaluate(dataset, lambda _: found, raising)
