"""The largest batch that fits on a target, found by compiling."""

import dataclasses
from collections.abc import Callable

from moon_jax.config import Config
from moon_jax.parallel.mesh import batch_shards
from moon_jax.planning.batch import planned_shape
from moon_jax.planning.chips import Target
from moon_jax.planning.compiling import compile_step
from moon_jax.planning.targets import mesh_on
from moon_jax.training.plan import device_bytes
from moon_jax.training.state import Trainer


def largest_batch(
    config: Config, target: Target, peak: int, show: Callable[[str], None] = print
) -> dict[int, tuple[int, bool]]:
    """Returns {triplets of a shard: (bytes on a device, whether they fit)} of the batches that were compiled.

    Memory grows almost in a line with the batch, from that of the state alone. So the measured batches predict where it
    ends, and those around that are compiled until one fits and the next does not. At most 8 compilations.

    Args:
        config: all settings.
        target: chips and topology.
        peak: bytes of the compiled step with the config's own batch.
        show: called with a line after each compilation.
    """
    mesh = mesh_on(target, config.mesh)
    shards, capacity = batch_shards(mesh), target.chip.memory
    tried = {config.train.batch_size // shards: (peak, peak <= capacity)}
    state = state_bytes(Trainer(config, mesh))
    while True:
        low = max((n for n, (_, fits) in tried.items() if fits), default=0)
        high = min((n for n, (_, fits) in tried.items() if not fits), default=None)
        if len(tried) == 9 or (high is not None and high - low == 1):
            return dict(sorted(tried.items()))
        triplets = _next(low, high, {0: state} | {n: peak for n, (peak, _) in tried.items()}, capacity)
        train = dataclasses.replace(config.train, batch_size=triplets * shards)
        compiled = compile_step(Trainer(dataclasses.replace(config, train=train), mesh), capacity)
        tried[triplets] = (compiled.peak, compiled.fits)
        show(
            f"{triplets} triplets a shard: {compiled.peak / 2**30:.2f} of {compiled.capacity / 2**30:.2f} GiB, "
            f"{'fits' if compiled.fits else 'does not fit'} ({compiled.seconds:.0f} s)"
        )


def state_bytes(trainer: Trainer) -> int:
    """Returns the bytes of the state and the gradients on one device: where the line of the batches begins."""
    return sum(device_bytes(trainer, planned_shape(trainer.config, trainer.mesh)).values())


def largest_by_line(triplets: int, peak: int, state: int, capacity: float) -> int:
    """Returns how many triplets of a shard would fit if memory grew in a line from the state's through this batch's."""
    return max(0, int((capacity - state) * triplets / max(peak - state, 1)))


def _next(low: int, high: int | None, peaks: dict[int, int], capacity: float) -> int:
    """Returns the batch to try next: where the line through the two largest known ones ends, within what is open."""
    first, last = sorted(peaks)[-2:]
    slope = max((peaks[last] - peaks[first]) / (last - first), 1.0)
    predicted = int(last + (capacity - peaks[last]) // slope)
    return max(low + 1, min(predicted, high - 1 if high is not None else 4 * max(low, 1)))
