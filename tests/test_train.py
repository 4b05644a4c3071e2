"""The whole way from records to checkpoints and evaluation, resumed to the bit; and what users get wrong."""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import signal

import jax
import numpy as np
import pytest
import tiny_hf
from fake_batch import tiny_config
from jax.experimental.compilation_cache import compilation_cache
from test_train_command import command

from moon_jax import config as c
from moon_jax import train
from moon_jax.config import ConfigError
from moon_jax.data import catalogue
from moon_jax.data.records import DataError
from moon_jax.data.tokenizer import TokenizerError
from moon_jax.parallel.mesh import make_mesh
from moon_jax.training.checkpoint import Checkpoints
from moon_jax.training.log import Log
from moon_jax.training.pretrained import open_pretrained
from moon_jax.training.start import find
from moon_jax.training.state import Trainer
from moon_jax.weights.source import WeightsError, named


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory, quick_compilation):
    """Runs of the same settings compile the same program: the later ones take it from a folder."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.5,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for values in (settings, before):
        compilation_cache.reset_cache()  # it looks at the settings once
        for name, value in values.items():
            jax.config.update(name, value)
        if values is settings:
            yield


@pytest.fixture(scope="module")
def products(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("catalogue") / "drawn"
    catalogue.write(folder, 40, seed=3, size_px=32)
    return folder


@pytest.fixture(scope="module")
def config(products):
    return tiny_config(
        data__format="catalogue",
        data__path=str(products),
        data__min_pixels=16 * 16,
        data__max_pixels=16 * 16,
        data__title_tokens=8,
        data__category_tokens=6,
        data__attribute_tokens=6,
        data__augment=True,
        model__text__vocab_size=320,
        mesh__data=2,
        mesh__fsdp=2,
        mesh__expert=2,
        train__steps=10,
        loss__ring_warmup_ratio=0.2,
        train__log_every=1,
        train__checkpoint_every=100,
        eval__batch_documents=8,
        eval__every=0,
        eval__ks=(1, 5),
    )


@pytest.fixture(scope="module")
def straight(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("straight")
    return workdir, train.run(config, workdir)


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def final_state(config, workdir):
    trainer = Trainer(config, make_mesh(config.mesh))
    return Checkpoints(workdir / "checkpoints").restore(trainer.abstract_state())[0]


def test_ten_steps_equal_five_a_signal_and_a_restart_to_the_bit(config, straight, tmp_path, monkeypatch, capsys):
    workdir, results = straight
    write_step = Log.write_step

    def write_and_preempt(log, step, metrics):
        write_step(log, step, metrics)
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)  # seen after the step that runs next

    with monkeypatch.context() as patch:
        patch.setattr(Log, "write_step", write_and_preempt)
        assert train.run(config, tmp_path) == {}
    assert "stopped by a signal after step 5" in capsys.readouterr().err
    assert lines(tmp_path)[-1]["step"] == 5
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    resumed = train.run(config, tmp_path)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(final_state(config, workdir)),
        jax.tree.leaves(final_state(config, tmp_path)),
        strict=True,
    ):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=jax.tree_util.keystr(path))
    steps = [line for line in lines(workdir) if "loss" in line]
    again = [line for line in lines(tmp_path) if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 11))
    assert [(line["step"], line["loss"]) for line in steps] == [(line["step"], line["loss"]) for line in again]
    assert resumed["metrics"] == results["metrics"]


def test_a_finished_run_says_so_and_trains_no_further(config, straight):
    workdir, results = straight
    before = (workdir / "metrics.jsonl").read_bytes()
    assert train.run(config, workdir)["metrics"] == results["metrics"]
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_a_work_folder_of_another_run_is_refused(config, straight):
    other = dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=16))
    with pytest.raises(ConfigError, match=r"config\.train\.batch_size was 8, is 16"):
        train.run(other, straight[0])
    other = dataclasses.replace(config, data=dataclasses.replace(config.data, unseen_share=0.4))
    with pytest.raises(ConfigError, match="the data changed"):
        train.run(other, straight[0])


def test_every_logged_step_has_the_promised_numbers(config, straight):
    steps = [line for line in lines(straight[0]) if "loss" in line]
    wanted = {
        "step", "loss", "lr", "grad_norm", "negatives", "ring_fill", "in_batch_accuracy", "masked_fraction",
        "router/load", "router/entropy", "router/category_tokens", "router/attribute_tokens", "router/dropped",
        "router/role_tokens", "router/imbalance", "router/general_imbalance",
    }  # fmt: skip
    for line in steps:
        assert wanted <= line.keys()
    assert all(line["triplets_per_second"] > 0 for line in steps[1:])
    assert [line["ring_fill"] for line in steps] == [0, 0, 0, 1] + [2] * 6  # nothing is kept in the first two steps
    assert np.shape(steps[0]["router/load"]) == (2, 8)
    assert np.shape(steps[0]["router/load_by_role"]) == (6, 8)  # a mean over layers, which a line has no room for
    drawn = json.loads((straight[0] / "expert_load.json").read_text())  # of the last step
    np.testing.assert_allclose(np.mean(drawn["router/load_by_role"], 0), steps[-1]["router/load_by_role"], atol=6e-5)
    assert (straight[0] / "expert_load.png").read_bytes().startswith(b"\x89PNG")
    assert list((straight[0] / "tensorboard").iterdir())


def test_the_evaluation_is_written_with_all_tasks_on_seen_and_unseen_products(straight):
    workdir, results = straight
    written = json.loads((workdir / "eval" / "10.json").read_text())
    assert written["metrics"] == results["metrics"]
    assert written["about"]["step"] == 10
    assert written["about"]["catalogue"].keys() == {"version", "sha256"}
    for name in ("seen", "unseen"):
        assert {f"{name}/{task}/R@{k}" for task in ("image", "text", "item") for k in (1, 5)} <= results[
            "metrics"
        ].keys()
        assert np.isfinite(results["metrics"][f"{name}/loss"])


def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved(config, tmp_path):
    broken = dataclasses.replace(config, train=dataclasses.replace(config.train, lr=1e30, warmup_ratio=0.0))
    with pytest.raises(train.TrainingError, match=r"the loss is (nan|inf)"):
        train.run(broken, tmp_path)
    assert Checkpoints(tmp_path / "checkpoints").latest() is None


def test_missing_data_and_unfit_meshes_are_named_before_anything_compiles(config, tmp_path):
    missing = dataclasses.replace(config.data, format="jsonl", path=str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="nowhere"):
        train.run(dataclasses.replace(config, data=missing), tmp_path / "w")
    for group, settings, message in (
        ("mesh", {"data": 3}, "does not multiply to the 8 devices"),
        ("moe", {"experts": 5}, r"config.moe.experts = 5 does not divide by config.mesh.expert"),
        ("moe", {"strategy": "slot"}, "config.moe.strategy is 'slot'; it must be one of dense, "),
        ("moe", {"strategy": "ragged_all_to_all"}, "does not compile for cpu .* these can: dense, "),
        ("moe", {"strategy": "all_to_all", "placement": "split"}, "these can: dense, "),
        ("model", {"attention_impl": "triton"}, "runs on gpu, not on cpu, where there is xla"),
    ):
        other = dataclasses.replace(getattr(config, group), **settings)
        with pytest.raises(ConfigError, match=message):
            train.run(dataclasses.replace(config, **{group: other}), tmp_path / "w")
    batch = dataclasses.replace(config.train, batch_size=12)
    with pytest.raises(ConfigError, match="12 does not divide by the 8 batch shards"):
        train.run(dataclasses.replace(config, train=batch), tmp_path / "w")


# From a checkpoint, with frozen parameters ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def qwen(tmp_path_factory) -> pathlib.Path:
    return tiny_hf.write(tmp_path_factory.mktemp("hf") / "qwen")


@pytest.fixture(scope="module")
def fine_tuning(products, qwen):
    """Experts out of a dense checkpoint, on eight devices; the rate of the first of the four steps is 0."""
    d = c.to_dict(c.Config())
    d["model"]["path"] = str(qwen)
    d["moe"] |= {"experts": 4, "capacity_factor": 1.25}
    d["data"] |= {"format": "catalogue", "path": str(products), "min_pixels": 12 * 12, "max_pixels": 12 * 12}
    d["data"] |= {"title_tokens": 8, "category_tokens": 6, "attribute_tokens": 6}
    d["mesh"] |= {"data": 1, "fsdp": 2, "expert": 2, "tensor": 2}
    d["train"] |= {"steps": 4, "batch_size": 8, "lr": 1e-2, "warmup_ratio": 0.25, "freeze": "backbone"}
    d["train"] |= {"log_every": 1, "checkpoint_every": 1, "keep_checkpoints": 9}
    d["eval"] |= {"batch_documents": 8, "every": 0, "ks": (1, 5)}
    return c.resolve(d)


@pytest.fixture(scope="module")
def fine_tuned(fine_tuning, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("fine_tuned")
    train.run(fine_tuning, workdir)
    return workdir


def params_of(workdir, step):
    source = open_pretrained(workdir / "checkpoints" / f"{step:08d}").source
    return {name: source.read(name) for name in source.leaves}


def test_training_starts_from_the_weights_and_leaves_the_frozen_ones_as_they_are(fine_tuning, fine_tuned):
    begun, after = find(fine_tuning).source, {step: params_of(fine_tuned, step) for step in (1, 4)}
    assert begun.leaves.keys() == after[1].keys()
    for name in begun.leaves:
        np.testing.assert_array_equal(after[1][name], begun.read(name), err_msg=name)
        learns = name.startswith(("text/layers/moe/", "vision/merger/"))
        assert (after[4][name] != begun.read(name)).any() == learns, name
    written = json.loads((fine_tuned / "config.json").read_text())
    assert written["model"]["text"]["hidden_size"] == 24
    assert written["model"]["vision"]["depth"] == 2


def test_a_resumed_run_needs_neither_the_checkpoint_nor_its_tokenizer(fine_tuning, fine_tuned, qwen, tmp_path):
    """The ring, the moments and the frozen parameters come from its own checkpoint; to the bit."""
    workdir = tmp_path / "again"
    shutil.copytree(fine_tuned, workdir)
    for step in (3, 4):
        shutil.rmtree(workdir / "checkpoints" / f"{step:08d}")
    away = qwen.rename(tmp_path / "away")
    try:
        train.run(fine_tuning, workdir)
    finally:
        away.rename(qwen)
    config = find(fine_tuning).config
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(final_state(config, fine_tuned)),
        jax.tree.leaves(final_state(config, workdir)),
        strict=True,
    ):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=jax.tree_util.keystr(path))
    moments = final_state(config, workdir).opt_state
    assert len([leaf for leaf in jax.tree.leaves(moments) if leaf.ndim]) == 2 * 9, "4 of the experts, 5 of the merger"


def test_other_weights_another_freeze_or_a_tokenizer_of_another_model_are_refused(
    fine_tuning, fine_tuned, qwen, tmp_path
):
    at = lambda path: dataclasses.replace(fine_tuning, model=dataclasses.replace(fine_tuning.model, path=str(path)))  # noqa: E731
    with pytest.raises(ConfigError, match=r"config\.model\.path has other weights"):
        train.run(at(tiny_hf.write(tmp_path / "other", seed=1)), fine_tuned)
    thawed = dataclasses.replace(fine_tuning, train=dataclasses.replace(fine_tuning.train, freeze="llm"))
    with pytest.raises(ConfigError, match=r"config\.train\.freeze was 'backbone', is 'llm'"):
        train.run(thawed, fine_tuned)
    with pytest.raises(WeightsError, match="nowhere"):
        train.run(at(tmp_path / "nowhere"), tmp_path / "w")
    strange = tmp_path / "strange"
    shutil.copytree(qwen, strange)
    settings = json.loads((strange / "config.json").read_text()) | {"image_token_id": 3}
    (strange / "config.json").write_text(json.dumps(settings))
    with pytest.raises(TokenizerError, match="image_token_id is 3"):
        train.run(at(strange), tmp_path / "w")


def test_every_saved_step_is_a_model(fine_tuning, fine_tuned):
    opened = open_pretrained(fine_tuned)
    assert opened.kind == "training"
    assert (opened.spec.moe.experts, opened.spec.model.text.hidden_size) == (4, 24)
    assert opened.spec.data.title_tokens == 8
    assert opened.load_tokenizer().fingerprint == open_pretrained(fine_tuning.model.path).load_tokenizer().fingerprint
    card = (fine_tuned / "checkpoints" / "00000004" / "README.md").read_text()
    for words in ("step 4", "`qwen`", "every FFN copied to 4 experts (seed 0)"):
        assert words in card


def test_a_run_from_random_weights_is_a_model_too(config, straight):
    workdir, _ = straight
    opened = open_pretrained(workdir)
    assert Checkpoints(workdir / "checkpoints").meta(10)["weights"] is None
    for name, leaf in named(final_state(config, workdir).params).items():
        np.testing.assert_array_equal(opened.source.read(name), leaf, err_msg=name)
    assert "random weights" in (workdir / "checkpoints" / "00000010" / "README.md").read_text()


def test_dry_run_shows_the_sizes_of_the_checkpoint_and_what_learns(qwen):
    arguments = [f"--config.model.path={qwen}", "--config.train.freeze=vision", "--config.mesh.fsdp=2"]
    done = command(["--config=configs/moon_3b.py", *arguments, "--config.mesh.expert=2", "--dry-run"])
    assert done.returncode == 0, done.stderr
    total = sum(array.size for array in tiny_hf.tensors().values()) + 3 * (7 * 3 * 20 * 24 + 24 * 8)
    assert re.search(rf"parameters +{total:,} ", done.stdout)
    merger = 16 + 64 * 64 + 64 + 64 * 24 + 24
    vision = sum(array.size for name, array in tiny_hf.tensors().items() if name.startswith("visual.")) - merger
    assert re.search(rf"trainable +{total - vision:,} .*frozen: vision", done.stdout)
