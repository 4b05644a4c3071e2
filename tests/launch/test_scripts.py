"""The starters: shell scripts by shellcheck and with stand-ins for the cluster's commands, YAML by its schemas."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import jsonschema
import kubernetes_validate
import pytest
import yaml
from jobset_schema import JOBSET

from moon_jax.parallel.processes import Place, find
from moon_jax.planning.chips import CHIPS, GIB

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
JOBSETS = sorted(LAUNCH.glob("*.yaml"))
FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION"
SHELLCHECK = shutil.which("shellcheck") or pathlib.Path(sys.executable).with_name("shellcheck")


@pytest.mark.parametrize("script", sorted(LAUNCH.glob("*.sh")), ids=lambda p: p.name)
def test_shellcheck_finds_nothing_and_the_script_tells_how_it_is_used(script):
    checked = subprocess.run([SHELLCHECK, script], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert os.access(script, os.X_OK)
    done = subprocess.run([script], capture_output=True, text=True)
    assert done.returncode == 2
    assert "--config=" in done.stderr
    assert "status 143" in done.stderr or script.name == "tpu_vm.sh"
    assert "set -euo" not in done.stderr


# local.sh, with a stand-in for Python -------------------------------------------------------------------------------

PYTHON = """#!/usr/bin/env bash
if [[ $1 == -c ]]; then exec python3 "$@"; fi
out=$RECORD/$MOON_PROCESS_ID
printf '%s\\n' "$@" >"$out.arguments"
env | grep -E '^(MOON|JAX_LOCAL|XLA_PYTHON)' | sort >"$out.environment"
trap 'echo TERM >"$out.signal"; exit 143' TERM
echo >"$out.ready"
[[ ${FAILS:-} == "$MOON_PROCESS_ID" ]] && exit 7
[[ -n ${WAITS:-} ]] || exit 0
for ((i = 0; i < 2000; i++)); do sleep 0.05; done
"""


@pytest.fixture
def stand_ins(tmp_path):
    def write(**texts: str) -> pathlib.Path:
        folder = tmp_path / "bin"
        folder.mkdir()
        for name, text in texts.items():
            (folder / name.replace("_", "-")).write_text(text)
            (folder / name.replace("_", "-")).chmod(0o755)
        return folder

    return write


def start(folder, command, **environment):
    plain = {k: v for k, v in os.environ.items() if k not in ("JAX_PLATFORMS", "XLA_FLAGS")}
    return subprocess.Popen(
        [str(part) for part in command],
        env=plain | {"PATH": f"{folder}:{os.environ['PATH']}", "RECORD": str(folder)} | environment,
        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def local(folder, *arguments, **environment):
    return start(folder, [LAUNCH / "local.sh", *arguments], PYTHON=str(folder / "python"), **environment)


def read(folder, process, name):
    return (folder / f"{process}.{name}").read_text().splitlines()


def wait_for(*paths):
    end = time.monotonic() + 60
    while not all(path.exists() for path in paths):
        assert time.monotonic() < end, paths
        time.sleep(0.02)


def test_local_gives_every_process_its_place_its_gpus_and_the_arguments_as_they_are(stand_ins):
    folder = stand_ins(python=PYTHON, nvidia_smi="#!/bin/sh\nfor i in 0 1 2 3; do echo GPU $i; done\n")
    process = local(folder, 2, "--config=a b.py", "--workdir=$HOME/*")
    assert process.wait() == 0, process.stderr.read()
    coordinators = set()
    for number, gpus in ((0, "0,1"), (1, "2,3")):
        assert read(folder, number, "arguments") == ["-m", "moon_jax.train", "--config=a b.py", "--workdir=$HOME/*"]
        environment = dict(line.split("=", 1) for line in read(folder, number, "environment"))
        coordinators.add(environment["MOON_COORDINATOR"])
        assert find(environment) == Place(environment["MOON_COORDINATOR"], 2, number)
        assert environment["JAX_LOCAL_DEVICE_IDS"] == gpus
        assert environment[FRACTION] == ".92"
    assert len(coordinators) == 1
    process = local(folder, 3, "--config=x")
    assert process.wait() == 2
    assert "4 GPUs cannot be dealt out evenly to 3 processes" in process.stderr.read()


def test_every_starter_gives_programs_the_share_of_a_gpu_that_plans_count_with(stand_ins):
    folder = stand_ins(
        python=PYTHON, nvidia_smi="#!/bin/sh\necho GPU 0\n",
        srun=f'#!/bin/sh\necho "${FRACTION}" >>"$RECORD/slurm"\n',
    )  # fmt: skip
    for given in ({}, {FRACTION: ".5"}):
        assert local(folder, 1, "--config=x", **given).wait() == 0
        assert f"{FRACTION}={given.get(FRACTION, '.92')}" in read(folder, 0, "environment")
        assert start(folder, [LAUNCH / "slurm.sh", "--config=x"], SLURM_JOB_ID="1", **given).wait() == 0
    assert (folder / "slurm").read_text() == ".92\n.5\n"
    *_, container = read_jobset(LAUNCH / "gke_jobset_gpu.yaml")
    assert {"name": FRACTION, "value": ".92"} in container["env"]
    assert CHIPS["h100"].memory / GIB == pytest.approx(0.92 * 79.1)
    assert CHIPS["h200"].memory / GIB < 0.92 * 143_771 / 1024, "nvidia-smi's number, of which CUDA keeps some"


def test_local_starts_another_module_too_and_leaves_cpus_alone(stand_ins):
    folder = stand_ins(python=PYTHON, nvidia_smi="#!/bin/sh\necho GPU 0\n")
    assert local(folder, 2, "moon_jax.embed", "--model=m", JAX_PLATFORMS="cpu").wait() == 0
    assert read(folder, 1, "arguments") == ["-m", "moon_jax.embed", "--model=m"]
    assert not any(line.startswith("JAX_LOCAL_DEVICE_IDS") for line in read(folder, 1, "environment"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_local_passes_a_signal_to_all_and_waits_for_them(stand_ins, number):
    folder = stand_ins(python=PYTHON)
    process = local(folder, 3, "--config=x", WAITS="1", JAX_PLATFORMS="cpu")
    wait_for(*(folder / f"{i}.ready" for i in range(3)))
    process.send_signal(number)
    assert process.wait(timeout=60) == 143
    assert [read(folder, i, "signal") for i in range(3)] == [["TERM"]] * 3


def test_local_ends_the_others_when_one_fails_and_returns_its_status(stand_ins):
    folder = stand_ins(python=PYTHON)
    process = local(folder, 3, "--config=x", WAITS="1", FAILS="1", JAX_PLATFORMS="cpu")
    assert process.wait(timeout=60) == 7


# tpu_vm.sh, with a stand-in for gcloud: two hosts that are this machine ---------------------------------------------

GCLOUD = """#!/usr/bin/env bash
printf '%s\\n' "$@" >>"$RECORD/said"
for last; do :; done
command=${last#--command=}
for host in 0 1; do
    MOON_PROCESS_ID=$host HOME=$RECORD bash -c "cd; ${command//.moon_jax/$host}" &
done
wait
"""


def test_tpu_vm_runs_on_every_host_with_the_arguments_as_they_are_and_passes_signals_on(stand_ins):
    folder = stand_ins(gcloud=GCLOUD, python=PYTHON)
    (folder / "moon_jax").mkdir()
    process = start(
        folder, [LAUNCH / "tpu_vm.sh", "pod", "--config=a b.py", "--workdir=$HOME/'x'"], ZONE="us-east5-a", WAITS="1",
        PYTHON=str(folder / "python"),
    )  # fmt: skip
    wait_for(*(folder / f"{i}.ready" for i in range(2)))
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=60)
    for host in range(2):
        assert read(folder, host, "arguments") == ["-m", "moon_jax.train", "--config=a b.py", "--workdir=$HOME/'x'"]
        assert "MOON_COORDINATOR=auto" in read(folder, host, "environment")
        assert read(folder, host, "signal") == ["TERM"]
    said = (folder / "said").read_text().splitlines()
    assert said[:7] == ["compute", "tpus", "tpu-vm", "ssh", "pod", "--worker=all", "--zone=us-east5-a"]


# JobSets ------------------------------------------------------------------------------------------------------------


def read_jobset(path):
    (jobset,) = yaml.safe_load_all(path.read_text())
    (job,) = jobset["spec"]["replicatedJobs"]
    return jobset, job, job["template"]["spec"], job["template"]["spec"]["template"]["spec"]["containers"][0]


@pytest.mark.parametrize("path", JOBSETS, ids=lambda p: p.name)
def test_a_jobset_keeps_to_the_published_schemas(path):
    jobset, job, *_ = read_jobset(path)
    jsonschema.validate(jobset, JOBSET)
    as_job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"}, **job["template"]}
    kubernetes_validate.validate(as_job, kubernetes_validate.latest_version(), strict=True)


def test_the_schemas_refuse_misspelt_fields():
    jobset, job, spec, _ = read_jobset(JOBSETS[0])
    for where, name in ((jobset["spec"], "replicatedjobs"), (jobset["spec"]["failurePolicy"], "maxRestart")):
        where[name] = 1
        with pytest.raises(jsonschema.ValidationError, match=name):
            jsonschema.validate(jobset, JOBSET)
        del where[name]
    spec["template"]["spec"]["containers"][0]["resource"] = {}
    as_job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"}, **job["template"]}
    with pytest.raises(kubernetes_validate.ValidationError, match="resource"):
        kubernetes_validate.validate(as_job, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("path", JOBSETS, ids=lambda p: p.name)
def test_a_jobset_starts_the_training_on_as_many_chips_as_its_mesh_has(path):
    _, job, spec, container = read_jobset(path)
    assert spec["parallelism"] == spec["completions"]
    assert spec["completionMode"] == "Indexed"
    python, *rest = container["command"]
    assert python == "python"
    done = subprocess.run([sys.executable, *rest, "--dry-run"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    devices = int(re.search(r"= (\d+) devices", done.stdout).group(1))
    (chips,) = container["resources"]["limits"].values()
    assert job["replicas"] * spec["parallelism"] * chips == devices


def test_every_pod_knows_its_place():
    """On TPUs GKE sets what jax reads; on GPUs the names and numbers are those that JobSet and Job give to pods."""
    _, _, _, container = read_jobset(LAUNCH / "gke_jobset_tpu.yaml")
    assert find({entry["name"]: entry["value"] for entry in container["env"]}) == Place()
    jobset, job, spec, container = read_jobset(LAUNCH / "gke_jobset_gpu.yaml")
    given = {entry["name"]: entry.get("value") for entry in container["env"]}
    (field,) = [entry["valueFrom"]["fieldRef"]["fieldPath"] for entry in container["env"] if "valueFrom" in entry]
    assert field == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    name = jobset["metadata"]["name"]
    port = container["ports"][0]["containerPort"]
    for index in (0, 7):
        place = find(given | {"MOON_PROCESS_ID": str(index)})
        assert place == Place(f"{name}-{job['name']}-0-0.{name}:{port}", spec["parallelism"], index)
