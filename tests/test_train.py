"""The whole way from records to checkpoints and evaluation, resumed to the bit; and what users get wrong."""

import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from fake_batch import tiny_config

from moon_jax import train
from moon_jax.config import ConfigError
from moon_jax.data import catalogue
from moon_jax.data.records import DataError
from moon_jax.parallel.mesh import make_mesh
from moon_jax.training.checkpoint import Checkpoints
from moon_jax.training.log import Log
from moon_jax.training.state import Trainer

ROOT = pathlib.Path(__file__).parents[1]


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
        loss__ring_warmup_steps=2,
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
    }  # fmt: skip
    for line in steps:
        assert wanted <= line.keys()
    assert all(line["triplets_per_second"] > 0 for line in steps[1:])
    assert [line["ring_fill"] for line in steps] == [0, 0, 0, 1] + [2] * 6  # nothing is kept in the first two steps
    assert np.shape(steps[0]["router/load"]) == (2, 8)
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
    for mesh, message in (
        ({"data": 3}, "does not multiply to the 8 devices"),
        ({"data": 1, "fsdp": 1, "expert": 1, "tensor": 8}, r"config\.mesh\.tensor = 8"),
    ):
        other = dataclasses.replace(config.mesh, **mesh)
        with pytest.raises(ConfigError, match=message):
            train.run(dataclasses.replace(config, mesh=other), tmp_path / "w")
    batch = dataclasses.replace(config.train, batch_size=12)
    with pytest.raises(ConfigError, match="12 does not divide by the 8 batch shards"):
        train.run(dataclasses.replace(config, train=batch), tmp_path / "w")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/demo.py", "--config.train.stepz=3", "--workdir=w"], "steps"),
        (["--config=configs/demo.py:no_corp", "--workdir=w"], "no_crop, no_moe, no_neg"),
        (["--config=configs/demo.py", "--config.moe.top_k=7", "--workdir=w"], r"config\.moe\.top_k is 7"),
        (["--config=configs/demo.py"], "--workdir is needed"),
        (["--config=configs/shop.py:luma", "--config.data.path=/no/such/folder", "--workdir=w"], "/no/such/folder"),
    ],
)
def test_the_command_refuses_with_one_plain_message(arguments, message, tmp_path):
    arguments = [a.replace("workdir=w", f"workdir={tmp_path}") for a in arguments]
    done = command(arguments)
    assert done.returncode != 0
    assert re.search(message, done.stderr), done.stderr


def test_dry_run_prints_the_plan_of_the_full_size_without_data_or_devices():
    done = command(["--config=configs/moon_3b.py", "--dry-run"])
    assert done.returncode == 0, done.stderr
    assert "20,798,767,104" in done.stdout  # 3.09 B dense text and vision parameters, FFNs eight times, routers
    assert "data=1 x fsdp=16 x expert=4 x tensor=1 = 64 devices" in done.stdout
    assert f"{2 * 256 * 3 - 1:,}" in done.stdout
    assert re.search(r"steps +17,89\d", done.stdout)


def command(arguments):
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return subprocess.run(
        [sys.executable, "-m", "moon_jax.train", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
