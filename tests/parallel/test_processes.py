"""The place of a process by its environment; two real processes that agree, fail, vanish."""

import os
import pathlib
import re
import socket
import subprocess
import sys
import time

import pytest
from meshes import mesh_of

from moon_jax.config import ConfigError
from moon_jax.parallel.agreement import STOPPED, most, same, total
from moon_jax.parallel.processes import Place, find

HERE = pathlib.Path(__file__).parent


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, None),
        ({"HOME": "/root", "SLURM_JOB_ID": "7", "SLURM_NTASKS": "8"}, None),  # a batch script's own Python, no task
        ({"MOON_COORDINATOR": "10.0.0.1:99", "MOON_PROCESSES": "4", "MOON_PROCESS_ID": "3"}, ("10.0.0.1:99", 4, 3)),
        ({"MOON_COORDINATOR": "[fd00::1]:99", "MOON_PROCESSES": "2", "MOON_PROCESS_ID": "0"}, ("[fd00::1]:99", 2, 0)),
        ({"MOON_COORDINATOR": "h:1", "MOON_PROCESSES": "1", "MOON_PROCESS_ID": "0"}, None),
        ({"MOON_COORDINATOR": "auto"}, (None, None, None)),
        ({"TPU_WORKER_HOSTNAMES": "a.b,c.d"}, (None, None, None)),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
    ],
)
def test_the_environment_says_the_place(environment, place):
    assert find(environment) == (place and Place(*place))


def slurm(nodes="gpu[003-007,9],login", tasks="6", **more):
    own = {"SLURM_JOB_ID": "4097", "SLURM_PROCID": "5", "SLURM_STEP_NODELIST": nodes, "SLURM_STEP_NUM_TASKS": tasks}
    return own | more


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("gpu[003-007,9],login", "gpu003"),
        ("gpu[12,14-15]", "gpu12"),
        ("alpha,beta[1-2]", "alpha"),
        ("rack[1-2]n[04-08],x", "rack1n04"),
        ("a-b.c-d", "a-b.c-d"),
    ],
)
def test_the_first_node_of_a_slurm_step_coordinates(nodes, host):
    assert find(slurm(nodes)) == Place(f"{host}:61441", 6, 5)
    assert find(slurm(nodes, tasks="1")) is None


def test_slurm_tasks_that_share_their_gpus_are_refused():
    shared = {"SLURM_STEP_TASKS_PER_NODE": "2(x3)", "CUDA_VISIBLE_DEVICES": "0,1"}
    with pytest.raises(ConfigError, match=r"--ntasks-per-node=1.*--gpus-per-task"):
        find(slurm(**shared))
    for fine in (
        {"SLURM_STEP_TASKS_PER_NODE": "1(x6)"},
        {"SLURM_STEP_TASKS_PER_NODE": "1(x5),1"},
        {"CUDA_VISIBLE_DEVICES": "0"},
        {"JAX_LOCAL_DEVICE_IDS": "1"},
    ):
        assert find(slurm(**(shared | fine))).processes == 6


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"MOON_COORDINATOR": "h:1"}, "MOON_COORDINATOR set, but not MOON_PROCESSES, MOON_PROCESS_ID"),
        ({"MOON_PROCESSES": "2", "MOON_PROCESS_ID": "0"}, "not MOON_COORDINATOR"),
        ({"MOON_COORDINATOR": "h", "MOON_PROCESSES": "2", "MOON_PROCESS_ID": "0"}, "=h: it is host:port"),
        ({"MOON_COORDINATOR": "h:1", "MOON_PROCESSES": "2", "MOON_PROCESS_ID": "2"}, "from 0 to MOON_PROCESSES - 1"),
        ({"MOON_COORDINATOR": "h:1", "MOON_PROCESSES": "x", "MOON_PROCESS_ID": "0"}, "MOON_PROCESSES=x"),
    ],
)
def test_an_environment_that_does_not_fit_together_names_its_variables(environment, message):
    with pytest.raises(ConfigError, match=message):
        find(environment)


def test_one_process_agrees_with_itself():
    assert total({"a": 3, "b": 0.5}, mesh_of((8, 1, 1, 1))) == {"a": 3, "b": 0.5}
    assert most(4) == 4
    assert same(4)


def run(case: str, ids: tuple[int, ...] = (0, 1), devices: int = 4) -> list[tuple[int, str, str, float]]:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{s.getsockname()[1]}"
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "MOON_COORDINATOR": coordinator,
        "MOON_PROCESSES": "2",
    }
    start = time.perf_counter()
    started = [
        subprocess.Popen(
            [sys.executable, HERE / "process_script.py", case],
            env=environment | {"MOON_PROCESS_ID": str(i)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in ids
    ]
    try:
        texts = [process.communicate(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()
    return [(p.returncode, *text, time.perf_counter() - start) for p, text in zip(started, texts, strict=True)]


def test_two_processes_sum_their_counts_and_stop_after_the_same_step():
    for status, out, err, _ in run("agree"):
        assert status == 0, err
        assert "total {'a': 5, 'b': 1.0, 'c': 0} most 7" in out
        assert "read twice {'a': 8388609}" in out
        assert "same True False" in out
        assert "stopped after step 6" in out, "signalled in step 5; the vote is read one step later"


def test_processes_whose_batch_shards_have_gaps():
    for (status, out, err, _), own in zip(run("torus"), ((0, 1, 3), (0, 1, 2)), strict=True):
        assert status == 0, err
        assert f"own {own} whole [0, 10, 20, 30] of (4, 3)" in out


def test_every_group_of_axes_meets_at_the_start():
    axes = ("data", "fsdp", "tensor")  # the expert axis has one place
    groups = sorted([(a,) for a in axes] + [("data", "fsdp"), ("data", "tensor"), ("fsdp", "tensor"), axes])
    for status, out, err, _ in run("late"):
        assert status == 0, err
        assert f"groups {groups}" in out


def test_a_process_that_fails_says_why_and_takes_the_other_with_it():
    (status, _, err, seconds), (status_1, _, err_1, _) = run("fail", devices=1)
    assert status_1 == 1
    assert re.search(r"^process 1 of 2: DataError: the picture shoe.jpg cannot be read$", err_1, re.MULTILINE)
    assert "Traceback" not in err_1
    assert status not in (0, STOPPED), err
    assert seconds < 60, "jax alone waits for 300 seconds"


def test_the_survivor_of_a_killed_process_ends_too():
    (status, _, _, seconds), (killed, *_) = run("killed", devices=1)
    assert killed == -9
    assert status not in (0, STOPPED)
    assert seconds < 60


def test_a_process_whose_others_never_come_says_what_to_look_at():
    ((status, _, err, _),) = run("alone", ids=(1,), devices=1)
    assert status != 0
    assert re.search(r"ConfigError: process 1 of 2 could not reach process 0 at 127\.0\.0\.1:\d+ within 3 s", err), err


def test_a_coordinator_whose_others_never_come_says_so_while_it_waits():
    ((status, _, err, _),) = run("alone", ids=(0,), devices=1)
    assert status != 0
    assert re.search(r"process 0 of 2 still waits at 127\.0\.0\.1:\d+ for the others", err), err
