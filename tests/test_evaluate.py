"""The evaluation command: the same files twice, from saved embeddings and on one or eight devices; users' mistakes."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import tiny_hf
from recipes import recipe

from moon_jax import evaluate
from moon_jax.config import ConfigError, MeshConfig, resolve
from moon_jax.data import catalogue, sources
from moon_jax.data.records import DataError
from moon_jax.evaluation import embedded, tasks
from moon_jax.evaluation.benchmark import build
from moon_jax.parallel.mesh import make_mesh

pytestmark = pytest.mark.usefixtures("quick_compilation")

PIXELS = {"min_pixels": 6 * 6, "max_pixels": 12 * 12, "patch_size": 3, "merge_size": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tiny_hf.write(tmp_path_factory.mktemp("hf") / "model")
    (folder / "preprocessor_config.json").write_text(json.dumps(PIXELS))
    return folder


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("catalogue") / "drawn"
    catalogue.write(folder, 14, seed=3, size_px=32)
    settings = recipe("eval.py:catalogue")
    settings.data.path = str(folder)
    settings.eval.batch_documents = 16
    settings.eval.bootstrap_samples = 20
    return resolve(settings)


@pytest.fixture(scope="module")
def one_device():
    return make_mesh(MeshConfig(data=1), jax.devices()[:1])


@pytest.fixture(scope="module")
def eight_devices():
    return make_mesh(MeshConfig())


@pytest.fixture(scope="module")
def first(model, config, one_device, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("first")
    return workdir, evaluate.run(config, workdir, one_device, model=str(model))


def files(workdir):
    return {name: (workdir / name).read_bytes() for name in (evaluate.RESULTS, evaluate.PREDICTIONS)}


def vectors(workdir):
    (folder,) = (workdir / evaluate.EMBEDDINGS).iterdir()
    return np.fromfile(folder / "vectors.f32", "<f4")


def test_five_tasks_of_a_model_and_the_color_histogram(first):
    workdir, results = first
    assert json.loads((workdir / evaluate.RESULTS).read_text()) == results
    rows = {(row["method"], row["task"], row["modality"]) for row in results["rows"] if not row["by"]}
    tasks = ("retrieval", "classification", "attributes")
    expected = {("model", task, modality) for task in tasks for modality in ("image", "text", "item")}
    assert rows == expected | {("color_histogram", "retrieval", "image")}
    for row in results["rows"]:
        for name, (low, high) in row["intervals"].items():
            assert 0 <= low <= high <= 1, name
    about = results["methods"]["model"]
    assert about["settings"]["data"]["max_pixels"] == 144
    assert (about["embedding_size"], about["dtype"], about["documents_left_out"]) == (24, "bfloat16", 0)
    assert results["about"]["catalogue"]["sha256"]
    predictions = [json.loads(line) for line in (workdir / evaluate.PREDICTIONS).read_text().splitlines()]
    for row in results["rows"]:
        if row["task"] == "retrieval" and row["part"] and not row["by"]:
            same = [
                line["rank"]
                for line in predictions
                if all(line[key] == row[key] for key in ("method", "task", "set", "part", "modality"))
            ]
            assert len(same) == row["queries"]
            assert np.mean([rank is not None and rank <= 5 for rank in same]) == row["measures"]["R@5"]
    assert (workdir / "report.html").exists()


def test_saved_embeddings_give_the_same_files_on_any_number_of_devices(
    first, model, config, one_device, eight_devices, monkeypatch
):
    workdir, _ = first
    before = files(workdir)
    monkeypatch.setattr(embedded, "from_pretrained", None)  # nothing is embedded, so the weights are not read
    for mesh in (eight_devices, one_device):
        evaluate.run(config, workdir, mesh, model=str(model))
        assert files(workdir) == before


def test_embedded_anew_on_eight_devices_the_files_are_the_same(first, model, config, eight_devices, tmp_path):
    evaluate.run(config, tmp_path, eight_devices, model=str(model))
    np.testing.assert_array_equal(vectors(tmp_path), vectors(first[0]))
    assert files(tmp_path) == files(first[0])


def test_another_model_has_embeddings_of_its_own(first, config, one_device, tmp_path):
    results = first[1]
    other = tiny_hf.write(tmp_path / "other", seed=1)
    (other / "preprocessor_config.json").write_text(json.dumps(PIXELS))
    models = {"weights": embedded.open_model(other), "pixels": embedded.open_model(other, max_pixels=100)}
    models["dtype"] = embedded.open_model(other, dtype="float32")
    fingerprints = {name: found.about["fingerprint"] for name, found in models.items()}
    assert len({*fingerprints.values(), results["methods"]["model"]["fingerprint"]}) == 4


def test_mistakes_of_the_user(config, model, one_device, tmp_path):
    bare = dataclasses.replace(config, eval=dataclasses.replace(config.eval, color_histogram=False))
    with pytest.raises(ConfigError, match="nothing to evaluate: give --model=DIR"):
        evaluate.run(bare, tmp_path, one_device)
    expecting = dataclasses.replace(config, eval=dataclasses.replace(config.eval, expected_queries=416_926))
    with pytest.raises(DataError, match="expected_queries says 416926"):
        evaluate.run(expecting, tmp_path, one_device, model=str(model))
    with pytest.raises(ConfigError, match="'blip' is not known; there are clip"):
        evaluate._baselines((("blip", "x"),))
    with pytest.raises(ConfigError, match="given twice"):
        evaluate._baselines((("clip", "x"), ("clip", "y")))


def test_pictures_that_cannot_be_read(config, model, one_device, tmp_path):
    folder = tmp_path / "torn"
    catalogue.write(folder, 14, seed=3, size_px=32)
    data = json.loads((folder / "test.jsonl").read_text().splitlines()[0])
    picture = folder / data["query"]["image"]
    picture.write_bytes(picture.read_bytes()[:300])
    settings = {"path": str(folder), "check_pictures": False}
    torn = dataclasses.replace(config, data=dataclasses.replace(config.data, **settings))
    with pytest.raises(DataError, match=picture.name):
        evaluate.run(torn, tmp_path / "raise", one_device, model=str(model))
    bare = dataclasses.replace(config.eval, color_histogram=False, tasks=("retrieval",))
    skipping = dataclasses.replace(torn.data, on_error="skip", max_skipped_share=0.05)
    skip = dataclasses.replace(torn, eval=bare, data=skipping)
    strict = dataclasses.replace(skip, data=dataclasses.replace(skip.data, max_skipped_share=0.001))
    with pytest.raises(DataError, match=r"documents could not be embedded.*max_skipped_share"):
        evaluate.run(strict, tmp_path / "skip", one_device, model=str(model))
    results = evaluate.run(skip, tmp_path / "skip", one_device, model=str(model))
    assert results["methods"]["model"]["documents_left_out"] == 2  # the photo, and photo and text
    lacking = [
        row["lacking"] for row in results["rows"] if row["task"] == "retrieval" and not row["by"] and row["part"]
    ]
    assert sorted(lacking) == [0, 0, 0, 0, 1, 1]


def test_the_command_says_in_one_line_what_is_wrong(tmp_path, capsys):
    evaluate.FLAGS.parse(config="configs/eval.py:shop", workdir=str(tmp_path / "w"), model=str(tmp_path / "none"))
    evaluate.CONFIG.value.data.path = str(tmp_path)
    with pytest.raises(SystemExit) as caught:
        evaluate.main([])
    assert str(caught.value).startswith("WeightsError: ")
    assert "holds no model" in str(caught.value)
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("benchmark", ["mbe", "m5product", "shop", "catalogue"])
def test_every_benchmark_asks_five_tasks(benchmark):
    config = resolve(recipe(f"eval.py:{benchmark}"))
    assert config.eval.tasks == ("retrieval", "classification", "attributes")
    assert config.eval.max_queries == 0


def test_mbe_rows_and_m5product_listings_of_real_data(moon_data):
    settings = recipe("eval.py:m5product")
    settings.data.path = str(moon_data / "formats" / "m5product")
    settings.data.image_folder = str(moon_data)
    settings.eval.bootstrap_samples = 0
    config = resolve(settings)
    dataset = sources.read(config.data)
    rng = np.random.default_rng(0)
    results = tasks.evaluate(dataset, lambda documents: rng.normal(size=(len(documents), 8)), config)
    rows = {row["modality"]: row for row in results["rows"] if row["task"] == "retrieval" and not row["by"]}
    assert rows.keys() == {"image", "text", "item"}
    item = rows["item"]
    assert item["measures"].keys() >= {"R@10", "R@100", "R@500", "MRR"}
    assert item["measures"]["R@500"] == item["chance"]["R@500"] == 1.0  # the gallery is smaller
    assert item["intervals"] == {}
    assert item["chance"]["R@10"] > 10 / item["gallery"]  # several listings share a label
    settings = recipe("eval.py:mbe")
    settings.data.path = str(moon_data)
    with pytest.raises(DataError, match="expected_queries says 416926"):
        build(sources.read(resolve(settings).data), resolve(settings))
