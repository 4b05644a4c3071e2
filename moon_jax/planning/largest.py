"""The largest batch that fits on a target, found by compiling."""

import dataclasses
from collections.abc import Callable

from moon_jax.config import Config
from moon_jax.parallel.mesh import batch_shards
from moon_jax.planning.analysis import check
from moon_jax.planning.chips import Target
from moon_jax.planning.compiling import compile_step
from moon_jax.planning.targets import mesh_on


def largest_batch(config: Config, target: Target, show: Callable[[str], None] = print) -> dict[int, tuple[int, bool]]:
    """Returns {triplets of a shard: (bytes on a device, whether they fit)} of the batches that were compiled.

    The memory of two batches predicts where it ends; the batches around that are compiled until one fits and the next
    does not. At most 8 compilations.

    Args:
        config: all settings; the search begins at its batch.
        target: chips and topology.
        show: called with a line after each compilation.
    """
    mesh = mesh_on(target, config.mesh)
    shards = batch_shards(mesh)
    tried: dict[int, tuple[int, bool]] = {}

    def fits(triplets: int) -> bool:
        if triplets not in tried:
            train = dataclasses.replace(config.train, batch_size=triplets * shards)
            compiled = compile_step(check(dataclasses.replace(config, train=train), target, mesh), target.chip.memory)
            tried[triplets] = (compiled.peak, compiled.fits)
            show(
                f"{triplets} triplets a shard: {compiled.peak / 2**30:.2f} of {compiled.capacity / 2**30:.2f} GiB, "
                f"{'fits' if compiled.fits else 'does not fit'} ({compiled.seconds:.0f} s)"
            )
        return tried[triplets][1]

    low, high = 0, None  # the largest that fits, the smallest that does not
    guess = max(1, config.train.batch_size // shards)
    while len(tried) < 8 and (high is None or high - low > 1):
        if fits(guess):
            low = guess
        else:
            high = guess
        guess = _next(low, high, {n: peak for n, (peak, _) in tried.items()}, target.chip.memory)
    return tried


def _next(low: int, high: int | None, peaks: dict[int, int], capacity: float) -> int:
    """Returns the batch to try next: where the line through two measured ones ends, within what is still open."""
    known = sorted(peaks)
    if len(known) == 1:
        return max(1, known[0] // 2) if high is not None else 2 * known[0]
    first, last = known[0], known[-1]
    slope = max((peaks[last] - peaks[first]) / (last - first), 1.0)
    predicted = int(first + (capacity - peaks[first]) / slope)
    most = high - 1 if high is not None else 4 * max(low, 1)
    return min(max(predicted, low + 1), most)
