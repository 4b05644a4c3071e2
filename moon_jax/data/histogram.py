"""How numbers are spread: counted into round bins, as bars of text."""

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np

BINS = 12  # at most, and one for the tail
BAR_CHARACTERS = 40


@dataclasses.dataclass(frozen=True)
class Histogram:
    """Counts of whole numbers in bins of one width; the last bin is open where a long tail was gathered in it."""

    name: str
    edges: tuple[int, ...]  # lower ends of the bins
    counts: tuple[int, ...]
    step: int
    open_end: bool
    median: float
    largest: int

    def labels(self) -> list[str]:
        """Returns the range of every bin: "10-19", "20" where a bin holds one number, "300+" for an open end."""
        out = [f"{low:,}" if self.step == 1 else f"{low:,}-{low + self.step - 1:,}" for low in self.edges]
        return [*out[:-1], f"{self.edges[-1]:,}+"] if self.open_end else out

    def lines(self) -> list[str]:
        """Returns a title and one line of text for every bin, its bar as long as its share of the fullest bin."""
        labels, most = self.labels(), max(self.counts)
        width = max(map(len, labels))
        title = f"{self.name}: {sum(self.counts):,} in all, median {self.median:g}, largest {self.largest:,}"
        bars = ("#" * math.ceil(BAR_CHARACTERS * count / most) for count in self.counts)
        return [
            title,
            *(f"  {label:>{width}} {bar} {n:,}" for label, bar, n in zip(labels, bars, self.counts, strict=True)),
        ]


def histogram(name: str, numbers: Iterable[int] | Sequence[int]) -> Histogram | None:
    """Returns the histogram of whole numbers from 0 on; None if there are none.

    The bins have a round width (1, 2 or 5 times a power of ten) and reach to the 99th percentile; what lies beyond them
    is in the last one.
    """
    values = np.fromiter(numbers, np.int64)
    if not values.size:
        return None
    low, high = int(values.min()), int(np.quantile(values, 0.99, method="higher"))
    step = next(s for s in _round_numbers() if high // s - low // s + 1 <= BINS)
    first = low // step * step
    bins = high // step - low // step + 1
    at = (values - first) // step
    open_end = bool((at >= bins).any())
    counts = np.bincount(np.minimum(at, bins), minlength=bins)
    edges = tuple(first + step * number for number in range(len(counts)))
    return Histogram(name, edges, tuple(counts.tolist()), step, open_end, float(np.median(values)), int(values.max()))


def _round_numbers() -> Iterable[int]:
    power = 1
    while True:
        yield from (power, 2 * power, 5 * power)
        power *= 10
