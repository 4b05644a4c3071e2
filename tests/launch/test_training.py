"""The same training on one, two and four real processes, stopped, resumed by another number of them, and in SLURM."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from moon_jax.data import catalogue
from moon_jax.parallel.agreement import STOPPED

ROOT = pathlib.Path(__file__).parents[2]
DEVICES, STEPS, LIMIT_SECONDS = 8, 24, 900


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "catalogue"
    catalogue.write(folder, 40, seed=3, size_px=32)
    return [f"--config={ROOT}/tests/launch/tiny_run.py:{folder}"]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    return str(tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="module")
def start(compiled):
    def start(command: list[str], processes: int, **more: str) -> subprocess.Popen:
        environment = os.environ | {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES // processes}",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "JAX_COMPILATION_CACHE_DIR": compiled,
            "PYTHON": sys.executable,  # the starters' default is the `python` of an activated environment
        }
        return subprocess.Popen(command, cwd=ROOT, env=environment | more, text=True, stderr=subprocess.PIPE)

    return start


def local(processes: int, arguments: list[str], workdir: pathlib.Path) -> list[str]:
    return [str(ROOT / "launch" / "local.sh"), str(processes), *arguments, f"--workdir={workdir}"]


def lines(workdir: pathlib.Path) -> dict[int, dict]:
    path = workdir / "metrics.jsonl"
    whole = path.read_text().rpartition("\n")[0].splitlines() if path.exists() else []
    return {line["step"]: line for line in map(json.loads, whole)}


def checkpoints(workdir: pathlib.Path) -> list[int]:
    return sorted(int(p.parent.name) for p in workdir.glob("checkpoints/*/manifest.json"))


def signal_after(process: subprocess.Popen, workdir: pathlib.Path, step: int, number: int) -> str:
    """Sends the signal once a step is logged; returns what the run said."""
    end = time.monotonic() + LIMIT_SECONDS
    while step not in lines(workdir) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(number)
    return process.communicate(timeout=LIMIT_SECONDS)[1]


def assert_same_steps(workdir: pathlib.Path, expected: pathlib.Path, first: int, last: int) -> None:
    ours, theirs = lines(workdir), lines(expected)
    assert ours.keys() == set(range(1, last + 1))
    for step in range(first, last + 1):
        for name in ("loss", "contrastive_loss", "grad_norm", "negatives", "ring_fill", "lr"):
            np.testing.assert_allclose(ours[step][name], theirs[step][name], rtol=1e-4, err_msg=f"{name}, step {step}")
        for name in ("triplets", "cut_texts", "missing_boxes", "skipped_triplets", "triplets_with_aspects"):
            assert ours[step][name] == theirs[step][name], f"{name}, step {step}"


@pytest.fixture(scope="module")
def one(arguments, start, tmp_path_factory):
    """The work folder of the run by one process."""
    workdir = tmp_path_factory.mktemp("one")
    process = start(local(1, arguments, workdir), 1)
    err = process.communicate(timeout=LIMIT_SECONDS)[1]
    assert process.returncode == 0, err
    assert checkpoints(workdir) == list(range(4, STEPS + 1, 4))
    return workdir


def test_four_processes_go_on_stop_at_a_signal_and_two_finish(one, arguments, start, tmp_path):
    """From a checkpoint of one process; the signal goes to the launcher, in the middle of the run."""
    workdir = tmp_path / "run"
    shutil.copytree(one, workdir)
    shutil.rmtree(workdir / "eval")
    for step in range(8, STEPS + 1, 4):
        shutil.rmtree(workdir / "checkpoints" / f"{step:08d}")
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(lines(one)[step]) + "\n" for step in range(1, 5)))

    process = start(local(4, arguments, workdir), 4)
    err = signal_after(process, workdir, 6, signal.SIGTERM)
    assert process.returncode == STOPPED, err
    stopped = checkpoints(workdir)[-1]
    assert 6 <= stopped < STEPS
    assert err.count(f"stopped by a signal after step {stopped};") == 1, err
    assert_same_steps(workdir, one, 5, stopped)

    process = start(local(2, arguments, workdir), 2)
    err = process.communicate(timeout=LIMIT_SECONDS)[1]
    assert process.returncode == 0, err
    assert_same_steps(workdir, one, stopped + 1, STEPS)
    ours, theirs = (json.loads((w / "eval" / f"{STEPS}.json").read_text())["metrics"] for w in (workdir, one))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-4, err_msg=name)
    assert (workdir / "checkpoints" / f"{STEPS:08d}" / "README.md").exists(), "a checkpoint is a model"


def test_two_processes_embed_as_one_does_and_count_all_that_they_met(one, start, tmp_path):
    records = tmp_path / "records.jsonl"
    words = ["walnut", "oak", "linen", "steel", "glass", "wool", "clay", "silk"]
    texts = [" ".join(words[i % 8 :][: 1 + i % 5]) for i in range(30)] + ["a very long title " * 8] * 3
    records.write_text("".join(json.dumps({"id": i, "title": text}) + "\n" for i, text in enumerate(texts)))
    flags = [f"--model={one}", f"--input={records}", "--kind=item", "--batch_size=4"]
    found = {}
    for processes in (1, 2):
        out = tmp_path / str(processes)
        script = str(ROOT / "launch" / "local.sh")
        process = start([script, str(processes), "moon_jax.embed", *flags, f"--output={out}"], processes)
        err = process.communicate(timeout=LIMIT_SECONDS)[1]
        assert process.returncode == 0, err
        found[processes] = np.load(out / "embeddings.npy"), json.loads((out / "settings.json").read_text())["counts"]
    np.testing.assert_allclose(found[2][0], found[1][0], atol=1e-5)
    assert found[2][1] == found[1][1]
    assert found[1][1]["cut_texts"] > 3, "of the documents on both"


SRUN = """#!/usr/bin/env bash
# Two tasks on "nodes" that are this machine; signals go to the tasks, as srun's do. The highest status is returned.
tasks=()
trap 'kill -TERM "${tasks[@]}"' TERM
for i in 0 1; do
    SLURM_PROCID=$i SLURM_LOCALID=0 SLURM_STEP_NODELIST='127.0.0.[1-2]' SLURM_STEP_NUM_TASKS=2 \\
        SLURM_STEP_TASKS_PER_NODE='1(x2)' "$@" &
    tasks+=($!)
done
highest=0
for task in "${tasks[@]}"; do
    while true; do
        status=0
        wait "$task" || status=$?
        kill -0 "$task" 2>/dev/null || break
    done
    ((status > highest)) && highest=$status
done
exit "$highest"
"""


def test_slurm_starts_the_run_and_queues_it_again_at_its_time_limit(one, arguments, start, tmp_path):
    commands, workdir = tmp_path / "bin", tmp_path / "run"
    commands.mkdir()
    (commands / "srun").write_text(SRUN)
    (commands / "scontrol").write_text(f'#!/usr/bin/env bash\necho "$@" >>{tmp_path}/scontrol\n')
    for path in commands.iterdir():
        path.chmod(0o755)
    job = free_job()
    path = f"{commands}:{os.environ['PATH']}"
    command = [str(ROOT / "launch" / "slurm.sh"), *arguments, f"--workdir={workdir}"]
    process = start(command, 2, PATH=path, SLURM_JOB_ID=str(job), SLURM_NTASKS="2")
    err = signal_after(process, workdir, 2, signal.SIGUSR1)  # as --signal=B:USR1 asks SLURM
    assert process.returncode == STOPPED, err
    stopped = checkpoints(workdir)[-1]
    assert 2 <= stopped < STEPS
    assert f"stopped by a signal after step {stopped};" in err
    assert (tmp_path / "scontrol").read_text() == f"requeue {job}\n"
    assert_same_steps(workdir, one, 1, stopped)


def free_job() -> int:
    """Returns a job number whose port for the coordinator is free."""
    for job in range(4242, 4242 + 1000):
        with socket.socket() as s:
            try:
                s.bind(("127.0.0.1", 61440 + job % 4096))
            except OSError:
                continue
            return job
    raise AssertionError("no port is free")
