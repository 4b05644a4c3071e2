"""The command line: records and data sets in, pictures, weights and an index out; drawn anew, gone on with, refused."""

import json

import numpy as np
import pytest
import tiny_hf
from PIL import Image

from moon_jax import heatmap
from moon_jax.evaluation.heat import maps

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_hf.write(tmp_path_factory.mktemp("hf") / "model", max_pixels=30 * 30)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for number in range(2):
        noise = np.random.default_rng(number).integers(0, 255, (20, 24 + 6 * number, 3))
        Image.fromarray(noise.astype(np.uint8)).save(folder / f"{number}.png")
    lines = [
        {"id": "a", "title": "a red mug", "images": ["0.png", "1.png"], "boxes": [[3, 3, 20, 18], None]},
        {"title": "blue shoes", "attributes": {"color": "blue"}},
        {"id": 7, "images": ["1.png"]},
    ]
    (folder / "records.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder / "records.jsonl"


def run(model, path, output, **settings):
    heatmap.FLAGS.parse(**{"model": model, "input": path, "output": output, "dtype": "float32", **settings})
    heatmap.main([])
    return json.loads((output / "heatmaps.json").read_text())


def refused(model, path, output, **settings) -> str:
    with pytest.raises(SystemExit) as caught:
        run(model, path, output, **settings)
    return str(caught.value)


@pytest.fixture(scope="module")
def made(model, records, tmp_path_factory, quick_compilation):
    folder = tmp_path_factory.mktemp("out") / "heat"
    return folder, run(model, records, folder, split="layers")


def test_files_and_index(made):
    folder, index = made
    assert sorted(path.name for path in folder.iterdir()) == [
        "0000.npz", "0000.png", "0000_layers.png", "0001.npz", "0001.png", "0002.npz", "0002.png", "0002_layers.png",
        "heatmaps.json", "settings.json",
    ]  # fmt: skip
    about, (mug, shoes, bare) = index["about"], index["records"]
    assert about == {
        "method": "attention", "layers": [0, 1, 2], "heads": [0, 1, 2, 3, 4, 5], "scale": "relative",
        "attention": "causal",
    }  # fmt: skip
    assert [record["id"] for record in index["records"]] == ["a", "record 1", "7"]
    assert [picture["role"] for picture in mug["with_text"]["pictures"]] == ["image", "core", "image"]
    assert "".join(piece["text"] for piece in mug["with_text"]["text"]) == "a red mug"
    assert mug["without_text"]["text"] == []
    assert mug["without_text"]["tokens"] < mug["with_text"]["tokens"]
    assert "without_text" not in shoes
    assert "with_text" not in bare
    with Image.open(folder / mug["png"]) as drawn:
        assert drawn.width == 1320
    for record in index["records"]:
        with np.load(folder / record["npz"]) as arrays:
            for name in ("without_text", "with_text"):
                if name in record:
                    weights, roles = arrays[f"{name}_weights"], arrays[f"{name}_roles"]
                    assert weights.shape == (3, 6, record[name]["tokens"])
                    share = weights.mean((0, 1))[roles == 4].sum()  # Role.TITLE
                    np.testing.assert_allclose(record[name]["shares"]["title"], share, rtol=1e-5)


def test_another_choice_is_drawn_without_computing(made, model, records, monkeypatch):
    folder, index = made
    monkeypatch.setattr(maps.AttentionMapper, "maps", lambda *_: pytest.fail("computed"))
    before = (folder / "0000.npz").read_bytes()
    other = run(model, records, folder, layers="1-2", heads="4", scale="share", ids="7,a", split="heads")
    assert [record["id"] for record in other["records"]] == ["7", "a"]
    assert other["about"] | {"attention": ""} == {
        "method": "attention", "layers": [1, 2], "heads": [4], "scale": "share", "attention": ""
    }  # fmt: skip
    with np.load(folder / "0000.npz") as arrays:
        weights, roles = arrays["with_text_weights"], arrays["with_text_roles"]
    core = other["records"][1]["with_text"]["pictures"][1]
    np.testing.assert_allclose(np.ravel(core["share"]), weights[1:, 4].mean(0)[roles == 3], rtol=1e-5)
    assert other["records"][1]["png_heads"] == "0000_heads.png"
    assert (folder / "0000.npz").read_bytes() == before
    assert other["records"][1]["with_text"]["shares"] != index["records"][0]["with_text"]["shares"]


def test_a_run_goes_on_with_what_is_missing(made, model, records, tmp_path):
    folder, index = made
    output = tmp_path / "again"
    run(model, records, output, limit=1)
    kept = (output / "0000.npz").stat().st_mtime_ns
    (output / "0001.npz.unfinished").write_bytes(b"killed here")
    again = run(model, records, output)
    assert (output / "0000.npz").stat().st_mtime_ns == kept
    for number in range(3):
        with np.load(folder / f"{number:04d}.npz") as one, np.load(output / f"{number:04d}.npz") as other:
            assert one.files == other.files
            for name in one.files:
                np.testing.assert_allclose(one[name], other[name], atol=1e-6)
    assert [record["id"] for record in again["records"]] == [record["id"] for record in index["records"]]
    message = refused(model, records, output, kind="plain")
    assert "kind was 'item', is 'plain'" in message
    (output / "0001.npz").write_bytes(b"PK damaged")
    assert "0001.npz cannot be read" in refused(model, records, output)


def test_rollout_of_the_queries_of_a_data_set(model, moon_data, tmp_path):
    settings = {"format": "jsonl", "parts": "luma", "kind": "query", "limit": 2, "max_pixels": 900}
    index = run(model, moon_data, tmp_path / "out", method="rollout", **settings)
    assert (index["about"]["method"], len(index["records"])) == ("rollout", 2)
    for record in index["records"]:
        assert record["with_text"]["pictures"]
        assert sum(record["with_text"]["shares"].values()) == pytest.approx(1, rel=1e-3)


def test_mistakes_are_one_plain_message(model, records, tmp_path):
    output = tmp_path / "out"
    assert "this model has 3 layers, numbered from 0 to 2" in refused(model, records, output, layers="3")
    assert "--heads=x: 'x' is no number" in refused(model, records, output, heads="x")
    assert "--method=rollout goes through all layers" in refused(model, records, output, method="rollout", layers="1")
    assert "no record with the id 'z'" in refused(model, records, output, ids="a,z")
    assert "there is no file" in refused(model, tmp_path / "none.jsonl", output)
    assert "--kind=plain is for a file" in refused(model, records, output, format="jsonl", kind="plain")
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"title": "x", "images": "gone.png"}\n{"titel": "y"}\n')
    assert "did you mean 'title'?" in refused(model, bad, output)
    bad.write_text('{"id": 1, "title": "x", "images": "gone.png"}\n')
    assert "bad.jsonl:1 (id 1)" in refused(model, bad, output)
    bad.write_text("\n")
    assert "there is no record in it" in refused(model, bad, output)
    (output / "0000.npz").parent.mkdir(exist_ok=True)
    (output / "settings.json").unlink(missing_ok=True)
    (output / "0000.npz").write_bytes(b"of something else")
    assert "without a settings.json" in refused(model, records, output)


def test_the_users_own_files_are_left_alone(model, records, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "2024_beach.png").write_bytes(b"mine")
    message = refused(model, records, photos)
    assert "is not empty (there is 2024_beach.png)" in message
    assert [path.name for path in photos.iterdir()] == ["2024_beach.png"]
    output = tmp_path / "heat"
    index = run(model, records, output, ids="a", split="heads")
    names = ["0099.png", "2024_beach.png", "0000_layers.png"]  # put there later: not what the index names
    for name in names:
        (output / name).write_bytes(b"mine")
    outside = tmp_path / "0001.png"
    outside.write_bytes(b"mine")
    index["records"][0]["png_layers"] = "../0001.png"
    (output / "heatmaps.json").write_text(json.dumps(index))
    run(model, records, output, ids="7")
    assert sorted(path.name for path in output.glob("*.png")) == sorted([*names, "0002.png"])
    assert all((output / name).read_bytes() == b"mine" for name in names)
    assert outside.exists()
    (output / "heatmaps.json").write_text("{")
    assert "heatmaps.json cannot be read" in refused(model, records, output, ids="7")
