"""Several processes as one run: how they find each other and end together; how they agree is in agreement.py.

A run on one machine needs nothing of this. Otherwise each process learns its place from the environment:

    MOON_COORDINATOR   host:port of process 0, which all can reach; or `auto`: jax asks the cloud (TPU VMs)
    MOON_PROCESSES     how many processes there are
    MOON_PROCESS_ID    which one this is, from 0

Inside `srun` SLURM's own variables say the same, and on GKE's TPU slices TPU_WORKER_HOSTNAMES does.
"""

import contextlib
import itertools
import multiprocessing
import os
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from moon_jax.config import ConfigError

HEARTBEAT_TIMEOUT_SECONDS = 30  # a process that was silent for so long is dead, and the others end
CONNECT_TIMEOUT_SECONDS = 300  # machines of a cluster do not start at the same moment
WARN_AFTER_SECONDS = 20  # of waiting for them

_OWN = ("MOON_COORDINATOR", "MOON_PROCESSES", "MOON_PROCESS_ID")
_SLURM_STEP = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID")


class Place(NamedTuple):
    """Which of how many processes this is; all None where jax is to find out by itself."""

    coordinator: str | None = None  # host:port of process 0
    processes: int | None = None
    process_id: int | None = None


def find(environment: Mapping[str, str]) -> Place | None:
    """Returns this process's place as the environment says it, None for a run of one process.

    Raises:
        ConfigError: the variables do not fit together; names them.
    """
    if environment.get("MOON_COORDINATOR") == "auto":
        return Place()
    if given := {name: environment[name] for name in _OWN if environment.get(name)}:
        return _own(given)
    if all(environment.get(name) for name in _SLURM_STEP):
        return _slurm(environment)
    return Place() if "," in environment.get("TPU_WORKER_HOSTNAMES", "") else None


def _own(given: Mapping[str, str]) -> Place | None:
    if missing := [name for name in _OWN if name not in given]:
        raise ConfigError(f"{', '.join(given)} set, but not {', '.join(missing)}: a run of several processes needs all")
    coordinator, processes, process_id = (given[name] for name in _OWN)
    if not re.fullmatch(r".+:\d+", coordinator):
        raise ConfigError(f"MOON_COORDINATOR={coordinator}: it is host:port of process 0, say 10.0.0.1:8476, or auto")
    if not (processes.isdecimal() and process_id.isdecimal() and int(process_id) < int(processes)):
        raise ConfigError(
            f"MOON_PROCESSES={processes}, MOON_PROCESS_ID={process_id}: process ids go from 0 to MOON_PROCESSES - 1"
        )
    return Place(coordinator, int(processes), int(process_id)) if int(processes) > 1 else None


def _slurm(environment: Mapping[str, str]) -> Place | None:
    """Returns the place of a task of `srun`, which keeps all GPUs that it sees; jax's own rule is one for each task."""
    job, nodes, tasks, task = (environment[name] for name in _SLURM_STEP)
    if int(tasks) == 1:
        return None
    per_node = environment.get("SLURM_STEP_TASKS_PER_NODE", "1")
    if (
        not re.fullmatch(r"1(\(x\d+\))?(,1(\(x\d+\))?)*", per_node)
        and "," in environment.get("CUDA_VISIBLE_DEVICES", "")
        and not environment.get("JAX_LOCAL_DEVICE_IDS")
    ):
        raise ConfigError(
            f"SLURM_STEP_TASKS_PER_NODE is {per_node}, and each task sees the GPUs "
            f"{environment['CUDA_VISIBLE_DEVICES']}: start one task per node (--ntasks-per-node=1), or give every task "
            f"GPUs of its own (--gpus-per-task)"
        )
    # "gpu[003-007,9],login" begins with gpu003; a comma between nodes is one outside brackets.
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes).group()
    host = re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first)
    return Place(f"{host}:{61440 + int(job) % 4096}", int(tasks), int(task))


def initialize() -> None:
    """Joins the processes of this run, before anything asks jax for devices; one process alone needs nothing.

    Raises:
        ConfigError: the environment is wrong, or the others cannot be reached.
    """
    place = find(os.environ)
    if place is None:
        return
    who = "this process" if place.processes is None else f"process {place.process_id} of {place.processes}"
    at = place.coordinator or "an address that jax finds by itself"
    if place.process_id:
        _reach(place, who)
    jax.config.update("jax_enable_preemption_service", False)  # it would swallow SIGTERM; see StopOnSignal
    message = f"{who} still waits at {at} for the others: do all of them run?"
    waiting = threading.Timer(WARN_AFTER_SECONDS, print, [message], {"file": sys.stderr})
    waiting.daemon = True
    waiting.start()
    try:
        jax.distributed.initialize(
            coordinator_address=place.coordinator,
            num_processes=place.processes,
            process_id=place.process_id,
            cluster_detection_method="deactivate" if place.coordinator else None,
            initialization_timeout=CONNECT_TIMEOUT_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_SECONDS,
            shutdown_timeout_seconds=HEARTBEAT_TIMEOUT_SECONDS,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise ConfigError(f"{who} could not join the others at {at}: {error}") from error
    finally:
        waiting.cancel()


def _reach(place: Place, who: str) -> None:
    """Waits until process 0 listens: jax itself would end the process in the middle, with a stack trace of C++."""
    host, _, port = place.coordinator.rpartition(":")
    end = time.monotonic() + CONNECT_TIMEOUT_SECONDS
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise ConfigError(
                    f"{who} could not reach process 0 at {place.coordinator} within {CONNECT_TIMEOUT_SECONDS} s "
                    f"({error}): does it run there, and does a firewall let others through to that port?"
                ) from error
            time.sleep(0.2)


@contextlib.contextmanager
def together(*plain: type[Exception]) -> Iterator[None]:
    """Runs the body as one of the processes of the environment; if one fails, so do all, within seconds.

    An exception of a process among several ends it at once: it leaves without the farewell that jax waits for, as the
    others stand in a collective that this process will never join.

    Args:
        *plain: errors whose message says it all; others are printed with their traceback.

    Raises:
        ConfigError: see `initialize`.
    """
    initialize()
    if jax.process_count() == 1:
        yield
        return
    try:
        yield
    except SystemExit:
        raise  # all of them stop here together
    except BaseException as error:
        text = f"{type(error).__name__}: {error}" if isinstance(error, plain) else traceback.format_exc()
        print(f"process {jax.process_index()} of {jax.process_count()}: {text}", file=sys.stderr)
        _leave(1)


def meet(mesh: Mesh) -> None:
    """Lets every group of devices that the mesh's axes form meet once, right after the start; on CPUs only.

    Gloo gives up on a new group whose processes do not come within 30 seconds of each other. Later they may: one
    compiles longer, or prepares the data for all.
    """
    if jax.process_count() == 1 or jax.default_backend() != "cpu":
        return
    multihost_utils.process_allgather(np.float32(0))
    axes = [name for name in mesh.axis_names if mesh.shape[name] > 1]
    groups = [group for size in range(1, len(axes) + 1) for group in itertools.combinations(axes, size)]
    spec = P(mesh.axis_names)

    def shard(x: jax.Array) -> jax.Array:
        return jnp.concatenate([jax.lax.psum(x, group) for group in groups])

    ones = jax.make_array_from_callback((mesh.size,), NamedSharding(mesh, spec), lambda index: np.ones(1, np.float32))
    meeting = jax.jit(jax.shard_map(shard, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))
    jax.block_until_ready(meeting(ones))


def say(message: str) -> None:
    """Writes a line to stderr, once for all processes."""
    if jax.process_index() == 0:
        print(message, file=sys.stderr, flush=True)


def _leave(status: int) -> None:
    """Ends this process without waiting for others."""
    for child in multiprocessing.active_children():
        child.terminate()
    if jax.process_index() == 0:  # the others lose their coordinator with it: they may say first what they met
        time.sleep(2)
    sys.stderr.flush()
    sys.stdout.flush()
    os._exit(status)
