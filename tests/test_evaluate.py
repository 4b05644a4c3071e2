"""The evaluation command: the same files twice, from saved embeddings and on one or eight devices; users' mistakes."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import tiny_hf
from recipes import recipe

from moon_jax import evaluate
from moon_jax.config import Config, ConfigError, DataConfig, MeshConfig, resolve, to_dict
from moon_jax.data import catalogue, sources
from moon_jax.data.records import DataError
from moon_jax.encoder import from_pretrained
from moon_jax.evaluation import embedded, tasks
from moon_jax.evaluation.benchmark import build
from moon_jax.parallel.mesh import make_mesh
from moon_jax.training.checkpoint import Checkpoints
from moon_jax.training.pretrained import open_pretrained
from moon_jax.weights.folder import assets as folder_assets

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_hf.write(tmp_path_factory.mktemp("hf") / "model", max_pixels=12 * 12)


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
    other = tiny_hf.write(tmp_path / "other", seed=1, max_pixels=12 * 12)
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


@pytest.fixture(scope="module")
def quick(config):
    """The same questions, those of retrieval alone and without the histogram."""
    few = dataclasses.replace(config.eval, tasks=("retrieval",), color_histogram=False, bootstrap_samples=0)
    return dataclasses.replace(config, eval=few)


def trained(folder, model, data, unseen_share):
    """Writes the folder of a training run with the weights of a model, on data of a fingerprint."""
    config = Config(data=DataConfig(unseen_share=unseen_share))
    meta = {"config": to_dict(config), "data": data}
    with open_pretrained(model) as found:
        beside = folder_assets(found.spec, model, {"kind": "training", "name": "?", "origin": {"kind": "random"}})
        params = from_pretrained(found, make_mesh(MeshConfig(data=1), jax.devices()[:1]), None).params
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(1, {"params": params}, meta, beside)
    return folder


def test_unseen_products_that_the_model_may_have_been_trained_on(quick, model, one_device, tmp_path, capsys):
    data = sources.read(quick.data)
    said = '"unseen" products here may have been trained on'
    run = trained(tmp_path / "more", model, "of the same catalogue with another split", 0.05)
    results = evaluate.run(quick, tmp_path / "w", one_device, model=str(run))
    assert results["methods"]["model"]["trained_on"] == {
        "data": "of the same catalogue with another split", "unseen_share": 0.05, "same_data": False,
        "unseen_may_be_trained_on": True,
    }  # fmt: skip
    err = capsys.readouterr().err
    assert f"config.data.unseen_share = 0.05, this benchmark has 0.2: {said}" in err
    other = embedded.open_model(trained(tmp_path / "other", model, "f", 0.2))
    assert evaluate._trained_on(other, quick, data)["unseen_may_be_trained_on"]
    err = capsys.readouterr().err
    assert "on other data than this benchmark" in err
    assert said in err
    none_unseen = dataclasses.replace(data, unseen=())
    assert not evaluate._trained_on(other, quick, none_unseen)["unseen_may_be_trained_on"]
    same = embedded.open_model(trained(tmp_path / "same", model, data.fingerprint, 0.2))
    assert evaluate._trained_on(same, quick, data) == {
        "data": data.fingerprint, "unseen_share": 0.2, "same_data": True, "unseen_may_be_trained_on": False
    }  # fmt: skip
    assert evaluate._trained_on(embedded.open_model(model), quick, data) is None
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "inside", "message"),
    [
        (None, "", r"--runs: there is no folder .*/run; a work folder"),
        ("notes.txt", "", r"--runs: .*/run is no work folder of moon_jax\.train: it has none of metrics\.jsonl"),
        ("metrics.jsonl", b'{"step": 1}\n\xff\n', r"--runs: .*metrics\.jsonl, line 2 cannot be read"),
        ("eval/5.json", b"{", r"--runs: .*/eval/5\.json cannot be read"),
        ("eval/5.json", b"[1]", r"--runs: .*/eval/5\.json cannot be read"),
        (
            "expert_load.json",
            b'{"roles": ["image"], "router/load_by_role": [[[1, 0]]], "router/role_tokens": []}',
            r"--runs: .*/expert_load\.json is not an expert_load\.json of training",
        ),
        ("expert_load.json", b"", r"--runs: .*/expert_load\.json cannot be read"),
    ],
)
def test_runs_for_the_report_are_looked_at_before_anything_is_opened(
    name, inside, message, quick, one_device, tmp_path
):
    if name:
        (tmp_path / "run" / name).parent.mkdir(parents=True)
        (tmp_path / "run" / name).write_bytes(inside or b"")
    with pytest.raises(ConfigError, match=message):
        evaluate.run(quick, tmp_path / "w", one_device, model=str(tmp_path / "no model"), runs=[str(tmp_path / "run")])
    assert not (tmp_path / "w").exists()


def test_an_old_report_does_not_stand_beside_new_results(quick, one_device, tmp_path):
    """And what the report cannot show is said in plain words, after the results are written."""
    histogram = dataclasses.replace(quick, eval=dataclasses.replace(quick.eval, color_histogram=True))
    (tmp_path / "heatmaps").mkdir(parents=True)
    (tmp_path / "heatmaps" / "0000.png").write_bytes(b"torn")
    (tmp_path / "report.html").write_text("of yesterday")
    with pytest.raises(DataError, match=r"results\.json is written, but no report\.html: .*0000\.png cannot be read"):
        evaluate.run(histogram, tmp_path, one_device)
    assert (tmp_path / "results.json").exists()
    assert not (tmp_path / "report.html").exists()


def test_a_work_folder_that_is_a_file(quick, model, one_device, tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "inside"):
        with pytest.raises(ConfigError, match=r"--workdir=.* cannot be made: .*/file is a file"):
            evaluate.run(quick, path, one_device, model=str(model))


def test_baselines_without_a_folder(tmp_path):
    evaluate.FLAGS.parse(config="configs/eval.py:shop", workdir=str(tmp_path / "w"), baselines="clip")
    with pytest.raises(SystemExit, match="ConfigError: --baselines: 'clip' is no NAME=DIR"):
        evaluate.main([])


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
    settings = recipe(f"eval.py:{benchmark}")
    config = resolve(settings)
    assert config.eval.tasks == ("retrieval", "classification", "attributes")
    assert config.eval.max_queries == 0
    settings.eval.ks = (2, 20)  # nothing else must be changed with it
    assert resolve(settings).eval.ks == (2, 20)


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
    chosen = [row for row in results["rows"] if row["task"] == "classification" and row["part"] and not row["by"]]
    assert {row["modality"]: row["classes"] for row in chosen} == dict.fromkeys(("image", "text", "item"), 40)
    assert {row["queries"] for row in chosen} == {item["queries"]}
    settings = recipe("eval.py:mbe")
    settings.data.path = str(moon_data)
    with pytest.raises(DataError, match="expected_queries says 416926"):
        build(sources.read(resolve(settings).data), resolve(settings))
