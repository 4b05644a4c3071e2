"""What the processes of a run must agree on: counts, sizes, and when to stop. One process agrees with itself."""

import signal
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from moon_jax.parallel.mesh import shard_readers

STOPPED = 128 + signal.SIGTERM  # exit status of a run that a signal stopped early: it is not finished


def total(counts: Mapping[str, int | float], mesh: Mesh) -> dict[str, int | float]:
    """Returns the sums over the batch shards of all processes, to 24 bits; each gives the same names.

    Args:
        counts: over the shards that this process reads (`host_shards`).
        mesh: where the shards lie: what several processes read counts once.
    """
    if jax.process_count() == 1:
        return dict(counts)
    names = sorted(counts)
    found = multihost_utils.process_allgather(np.array([counts[name] for name in names], np.float32))
    sums = found.sum(axis=0, dtype=np.float64) / shard_readers(mesh)
    as_given = lambda name, value: round(value) if isinstance(counts[name], int) else value  # noqa: E731
    return {name: as_given(name, value) for name, value in zip(names, sums.tolist(), strict=True)}


def most(number: int) -> int:
    """Returns the largest of the numbers that the processes give."""
    return number if jax.process_count() == 1 else int(multihost_utils.process_allgather(np.int32(number)).max())


def same(number: int) -> bool:
    """Returns whether all processes give the same number, of 31 bits."""
    return most(number) == -most(-number)


class StopOnSignal:
    """Turns SIGTERM (preemption) and the first Ctrl-C into an orderly stop after the same step on every process.

    With several processes each step carries a vote, which is read one step later, so that no device ever waits for it:
    a signal to any one process stops all of them after the step that runs, or the one after.
    """

    def __init__(self, mesh: Mesh):
        """Prepares the vote; `mesh` has all devices of the run."""
        self._sharding = NamedSharding(mesh, P(mesh.axis_names))
        self._any = jax.jit(jnp.any)
        self._vote: jax.Array | None = None

    def __enter__(self) -> "StopOnSignal":
        self._signal = False
        self._before = {name: signal.signal(name, self._note) for name in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_) -> None:
        for name, handler in self._before.items():
            signal.signal(name, handler)

    def _note(self, number: int, frame: Any) -> None:
        self._signal = True
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C stops at once

    def requested(self) -> bool:
        """Returns whether the run has been asked to stop, the same on every process; to be called once a step."""
        if jax.process_count() == 1:
            return self._signal
        mine = np.full(len(self._sharding.addressable_devices), self._signal)
        vote, self._vote = self._vote, self._any(jax.make_array_from_process_local_data(self._sharding, mine))
        return vote is not None and bool(vote)
