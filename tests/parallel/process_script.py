"""What two processes of a test do: `python process_script.py CASE`, with the place in the environment."""

import os
import signal
import sys

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh

from moon_jax.config import MeshConfig
from moon_jax.data.records import DataError
from moon_jax.parallel import agreement, processes
from moon_jax.parallel.mesh import AXES, host_shards, make_mesh, place_batch


def agree(me: int) -> None:
    """Counts and numbers are the same on both; a signal to one process stops both after the same step."""
    counts, mesh = {"a": 2 + me, "b": 0.5, "c": 0}, make_mesh(MeshConfig())
    print("total", agreement.total(counts, mesh), "most", agreement.most(7 - 3 * me))
    across = Mesh(mesh.devices.reshape(2, 1, 1, 4).transpose(3, 1, 2, 0), AXES)  # each shard lies on both processes
    print("read twice", agreement.total({"a": 2**23 + 1}, across))
    print("same", agreement.same(2**31 - 1), agreement.same(2**31 - 1 - me))
    with agreement.StopOnSignal(make_mesh(MeshConfig())) as stop:
        for step in range(20):
            if step == 5 and me == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            if stop.requested():
                print("stopped after step", step)
                break


def torus(me: int) -> None:
    """The mesh goes to and fro between the processes: process 0 owns shards with a gap, two lie on both."""
    one, two = (d for d in jax.devices() if d.process_index == 0), (d for d in jax.devices() if d.process_index == 1)
    order = [next((one, two)[int(p)]) for p in "01101100"]  # [shard, tensor]
    mesh = Mesh(np.array(order).reshape(2, 2, 1, 2), AXES, axis_types=(AxisType.Explicit,) * 4)
    own = host_shards(mesh)
    placed = place_batch({"x": np.stack([np.full((3,), 10 * g) for g in own])}, mesh)["x"]
    whole = multihost_utils.process_allgather(placed, tiled=True)
    print("own", own, "whole", whole[:, 0].tolist(), "of", placed.shape)


def late(me: int) -> None:
    """After `meet` no group is new any more, whatever axes it is along."""
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, expert=1, tensor=2))
    made = []
    psum = jax.lax.psum
    jax.lax.psum = lambda x, axes: made.append(axes) or psum(x, axes)
    processes.meet(mesh)
    print("groups", sorted(made))


def fail(me: int) -> None:
    """One process fails while the other waits for it in a collective."""
    multihost_utils.process_allgather(np.float32(me))
    if me == 1:
        raise DataError("the picture shoe.jpg cannot be read")
    multihost_utils.process_allgather(np.float32(me))


def killed(me: int) -> None:
    """One process disappears without a word."""
    multihost_utils.process_allgather(np.float32(me))
    if me == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    multihost_utils.process_allgather(np.float32(me))


def alone(me: int) -> None:
    """The others never come."""


if __name__ == "__main__":
    case = sys.argv[1]
    if case == "alone":
        processes.CONNECT_TIMEOUT_SECONDS, processes.WARN_AFTER_SECONDS = 3, 1
    with processes.together(DataError):
        {f.__name__: f for f in (agree, torus, late, fail, killed, alone)}[case](jax.process_index())
