"""The largest batch that fits on a target, found by compiling."""

import dataclasses
from collections.abc import Callable, Mapping

from moon_jax.config import Config
from moon_jax.parallel.mesh import batch_shards
from moon_jax.planning.batch import batch_unit, planned_shape
from moon_jax.planning.chips import GIB, Target
from moon_jax.planning.compiling import compile_step, compile_without_code
from moon_jax.planning.targets import mesh_on
from moon_jax.training.plan import device_bytes
from moon_jax.training.state import Trainer


def largest_batch(
    config: Config, target: Target, peak: int, code: int, show: Callable[[str], None] = print
) -> dict[int, tuple[int, bool]]:
    """Returns {triplets of a shard: (bytes on a device, whether they fit)} of the batches that were compiled.

    Memory grows almost in a line with the batch, from that of the state alone. So the measured batches predict where it
    ends, and those around that are compiled until one fits and the next does not. If
    four were not enough, what is open is halved each time: the search ends whatever the memory does. For TPUs the
    compiler is stopped before machine code, which `compile_without_code` takes as large as that of the first batch.

    Args:
        config: all settings.
        target: chips and topology.
        peak: bytes of the compiled step with the config's own batch.
        code: bytes of its machine code.
        show: called with a line after each compilation.
    """
    mesh = mesh_on(target, config.mesh)
    shards, capacity = batch_shards(mesh), target.chip.memory
    unit = batch_unit(config, shards)
    tried = {config.train.batch_size // shards // unit: (peak, peak <= capacity)}  # by number of units
    state = state_bytes(Trainer(config, mesh))
    while (count := next_batch(tried, state, capacity)) is not None:
        train = dataclasses.replace(config.train, batch_size=count * unit * shards)
        other = dataclasses.replace(config, train=train)
        if target.chip.platform == "tpu":
            compiled = compile_without_code(other, target, code)
        else:
            compiled = compile_step(Trainer(other, mesh), capacity)
        tried[count] = (compiled.peak, compiled.fits)
        show(
            f"{count * unit} triplets a shard: {compiled.peak / GIB:.2f} of {compiled.capacity / GIB:.2f} GiB, "
            f"{'fits' if compiled.fits else 'does not fit'} ({compiled.seconds:.0f} s)"
        )
    return {count * unit: found for count, found in sorted(tried.items())}


def next_batch(tried: Mapping[int, tuple[int, bool]], state: int, capacity: float) -> int | None:
    """Returns the batch to compile next; None when the largest that fits is known.

    Args:
        tried: {batch: (bytes, whether they fit)} in the order of the compilations; at least one.
        state: bytes without any batch.
        capacity: bytes that a program may fill.
    """
    low = max((n for n, (_, fits) in tried.items() if fits), default=0)
    high = min((n for n, (_, fits) in tried.items() if not fits and n > low), default=None)
    guess = _by_line({0: (state, True)} | dict(tried), capacity)
    if high is None:
        return min(max(guess, low + (1 if len(tried) < 4 else max(1, low // 4))), 4 * max(low, 1))
    if high - low == 1:
        return None
    if len(tried) >= 4:
        return (low + high) // 2
    return min(max(guess, low + 1), high - 1)


def _by_line(peaks: Mapping[int, tuple[int, bool]], capacity: float) -> int:
    """Returns where the line through the two largest known batches meets the capacity.

    Neighbours say little (a larger batch may need less): a line of less than half the mean slope is not believed.
    """
    first, last = sorted(peaks)[-2:]
    mean = (peaks[last][0] - peaks[0][0]) / last
    slope = max((peaks[last][0] - peaks[first][0]) / (last - first), mean / 2, 1e-9)
    return int(last + (capacity - peaks[last][0]) // slope)


def state_bytes(trainer: Trainer) -> int:
    """Returns the bytes of the state and the gradients on one device: where the line of the batches begins."""
    return sum(device_bytes(trainer, planned_shape(trainer.config, trainer.mesh)).values())


def largest_by_line(triplets: int, peak: int, state: int, capacity: float) -> int:
    """Returns how many triplets of a shard would fit if memory grew in a line from the state's through this batch's."""
    return max(0, int((capacity - state) * triplets / max(peak - state, 1)))
