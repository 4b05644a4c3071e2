"""Bootstrap confidence intervals: how far a measure moves when the queries are drawn anew.

Percentile intervals (Efron): as many queries as there are, or groups of them, are drawn with replacement, and the
measure is taken of each draw. Draws depend on the seed and the number of queries (or groups) alone: methods that
answered the same queries are measured on the same draws. Sums are taken in a fixed order, so the bits do not depend on
the number of cores.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from jaxtyping import Float64, Int, Shaped

Intervals = dict[str, tuple[float, float]]

_DRAWS_AT_ONCE = 1 << 20


def intervals(
    values: Mapping[str, Shaped[np.ndarray, "_"]],  # lengths are compared below, in words
    groups: Shaped[np.ndarray, " members"] | None = None,
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Intervals:
    """Returns the lower and upper end of each measure that is a mean over queries.

    Args:
        values: of every query, by the name of the measure.
        groups: what each query belongs to, as its product, where queries of one group are alike: whole groups are drawn
            then, and a mean is over all queries of those drawn.
        samples: draws.
        level: the share of draws within the interval.
        seed: of the draws.

    Raises:
        ValueError: no queries, values of different lengths or not finite, samples or level out of range.
    """
    q = {len(column) for column in values.values()}
    if len(q) != 1:
        raise ValueError(f"an interval needs measures over the same queries, got {sorted(q)} values")
    table = np.stack([np.asarray(column, np.float64) for column in values.values()])
    if not np.isfinite(table).all():
        bad = [name for name, column in zip(values, table, strict=True) if not np.isfinite(column).all()]
        raise ValueError(f"values of {', '.join(bad)} are not finite")
    units, members = _units(q.pop(), groups, samples, level)
    if groups is not None:
        sums = np.stack([np.bincount(members, column, minlength=units) for column in table])
    else:
        sums = table
    sizes = np.bincount(members, minlength=units).astype(np.float64)
    # einsum and not a matrix product, whose order of summation is up to the BLAS and its threads
    means = [
        np.einsum("su,mu->sm", counts, sums) / np.einsum("su,u->s", counts, sizes)[:, None]
        for counts in _draws(units, samples, seed)
    ]
    return _ends(list(values), np.concatenate(means), level)


def intervals_of(
    measure: Callable[[Float64[np.ndarray, " q"]], Mapping[str, float]],
    q: int,
    groups: Shaped[np.ndarray, " members"] | None = None,
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Intervals:
    """Returns the lower and upper end of measures that are not means, as F1.

    Args:
        measure: the measures, by name, given how often each query was drawn.
        q: the number of queries.
        groups: as in `intervals`.
        samples: draws; `measure` is called for each.
        level: the share of draws within the interval.
        seed: of the draws.

    Raises:
        ValueError: no queries, samples or level out of range, or a measure that is not finite.
    """
    units, members = _units(q, groups, samples, level)
    rows: list[Mapping[str, float]] = []
    for counts in _draws(units, samples, seed):
        rows += [measure(drawn if groups is None else drawn[members]) for drawn in counts]
    names = list(rows[0])
    table = np.array([[row[name] for name in names] for row in rows], np.float64)
    if not np.isfinite(table).all():
        bad = [name for name, column in zip(names, table.T, strict=True) if not np.isfinite(column).all()]
        raise ValueError(f"values of {', '.join(bad)} are not finite")
    return _ends(names, table, level)


def _units(
    q: int, groups: Shaped[np.ndarray, " members"] | None, samples: int, level: float
) -> tuple[int, Int[np.ndarray, " q"]]:
    """Returns how many things are drawn, and which of them each query belongs to."""
    if q < 1:
        raise ValueError("an interval over no queries is not defined")
    if samples < 1 or not 0 < level < 1:
        raise ValueError(f"an interval needs at least one sample and a level between 0 and 1: {samples}, {level}")
    if groups is None:
        return q, np.arange(q)
    if len(groups) != q:
        raise ValueError(f"there are {q} queries, but groups of {len(groups)}")
    names, members = np.unique(groups, return_inverse=True)
    return len(names), members


def _draws(units: int, samples: int, seed: int) -> Iterator[Float64[np.ndarray, "some units"]]:
    """Yields how often each unit was drawn, some draws at a time."""
    generator = np.random.default_rng(seed)
    some = max(1, _DRAWS_AT_ONCE // units)
    for start in range(0, samples, some):
        rows = np.arange(min(some, samples - start))
        drawn = generator.integers(units, size=(len(rows), units)) + rows[:, None] * units
        counts = np.bincount(drawn.ravel(), minlength=len(rows) * units)
        yield counts.reshape(len(rows), units).astype(np.float64)


def _ends(names: list[str], table: Float64[np.ndarray, "samples m"], level: float) -> Intervals:
    low, high = np.quantile(table, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return {name: (float(a), float(b)) for name, a, b in zip(names, low, high, strict=True)}
