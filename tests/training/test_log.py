"""The run's log: valid JSON whatever the numbers, resumed without the lines of a killed run, TensorBoard readable."""

import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from moon_jax.training.log import Log


def lines(workdir):
    def refuse(name):
        raise ValueError(f"{name} is not JSON")

    text = (workdir / "metrics.jsonl").read_text()
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def events(workdir):
    """Reads TensorBoard files by the TFRecord layout: length (8), its crc (4), data, its crc (4)."""
    found = []
    for path in sorted((workdir / "tensorboard").glob("events*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            length = int.from_bytes(data[at : at + 8], "little")
            event = event_pb2.Event.FromString(data[at + 12 : at + 12 + length])
            found += [(event.step, value) for value in event.summary.value]
            at += length + 16
    return found


def test_lines_and_tensorboard(tmp_path):
    with Log(tmp_path, 10) as log:
        log.write(
            2, {"loss": jnp.float32(1.5), "router_load": jnp.array([[0.25, 0.75]]), "note": "a", "n": np.int32(3)}
        )
        log.write(4, {"loss": 0.5})
    assert lines(tmp_path) == [
        {"step": 2, "loss": 1.5, "router_load": [[0.25, 0.75]], "note": "a", "n": 3},
        {"step": 4, "loss": 0.5},
    ]
    found = events(tmp_path)
    scalars = {(step, v.tag): v.simple_value for step, v in found if v.HasField("simple_value")}
    assert scalars == {(2, "loss"): 1.5, (2, "router_load/mean"): 0.5, (2, "n"): 3.0, (4, "loss"): 0.5}
    assert [(step, v.tag, v.histo.num) for step, v in found if v.HasField("histo")] == [(2, "router_load", 2.0)]


def test_not_finite_is_null_and_named(tmp_path):
    with Log(tmp_path, 10) as log:
        log.write(1, {"loss": float("nan"), "load": [0.5, float("inf")], "norm": jnp.float32(-jnp.inf)})
        log.write(2, {"load": [float("nan")]})
    first, second = lines(tmp_path)
    assert first == {
        "step": 1,
        "loss": None,
        "load": [0.5, None],
        "norm": None,
        "not_finite": {"loss": "nan", "load[1]": "inf", "norm": "-inf"},
    }
    assert second["not_finite"] == {"load[0]": "nan"}


def test_resume_drops_what_a_killed_run_wrote_after_its_checkpoint(tmp_path):
    with Log(tmp_path, 10) as log:
        for step in (1, 2, 3, 4):
            log.write(step, {"loss": float(step)})
    kept = (tmp_path / "metrics.jsonl").read_text().splitlines()[:2]
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "loss": 1')  # cut by the kill
    with Log(tmp_path, 10, start_step=2) as log:
        log.write(3, {"loss": 30.0})
    assert (tmp_path / "metrics.jsonl").read_text().splitlines()[:2] == kept
    assert [(r["step"], r["loss"]) for r in lines(tmp_path)] == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_only_process_0_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with Log(tmp_path / "run", 10) as log:
        log.write(1, {"loss": 1.0})
        log.write_step(2, {"loss": 1.0})
        log.show("table")
        with log.untimed():
            pass
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr().err == ""


def test_speed_leaves_out_untimed_work(tmp_path, capsys):
    with Log(tmp_path, 100, triplets_per_step=32) as log:
        log.write_step(1, {"loss": 3.0})
        time.sleep(0.1)
        with log.untimed():
            time.sleep(0.5)
        log.write_step(11, {"loss": 2.0})
        log.show("final table")
    first, second = lines(tmp_path)
    assert first["triplets_per_second"] == pytest.approx(32 / first["seconds_per_step"])
    assert 0.01 <= second["seconds_per_step"] < 0.04
    assert second["triplets_per_second"] == pytest.approx(32 / second["seconds_per_step"])
    printed = capsys.readouterr().err.splitlines()
    assert printed[0].startswith("step 1/100: loss 3, triplets_per_second ")
    assert printed[1].startswith("step 11/100: loss 2, triplets_per_second ")
    assert printed[1].endswith(" left")
    assert printed[2] == "final table"


def test_bar_on_a_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with Log(tmp_path, 10, start_step=2) as log:
        log.write_step(5, {"loss": 1.25})
    shown = capsys.readouterr().err
    assert "5/10" in shown
    assert "loss=1.25" in shown
