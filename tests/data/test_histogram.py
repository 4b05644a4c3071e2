import itertools

import numpy as np
import pytest

from moon_jax.data.histogram import BINS, histogram


@pytest.mark.parametrize("seed", range(20))
def test_counts_are_those_of_numpy(seed):
    rng = np.random.default_rng(seed)
    values = rng.geometric(1 / 10 ** rng.uniform(0, 4), int(rng.integers(1, 500))) + int(rng.integers(0, 1000))
    found = histogram("x", values.tolist())
    bounds = [*found.edges, np.inf if found.open_end else found.edges[-1] + found.step]
    expected = [int(((values >= a) & (values < b)).sum()) for a, b in itertools.pairwise(bounds)]
    assert list(found.counts) == expected
    assert sum(found.counts) == len(values)
    assert found.counts[0] > 0
    assert len(found.counts) <= BINS + 1
    assert str(found.step).rstrip("0") in ("1", "2", "5")
    assert all(edge % found.step == 0 for edge in found.edges)
    assert (found.median, found.largest) == (np.median(values), values.max())


def test_a_long_tail_is_in_the_last_bin():
    found = histogram("x", [*range(200), 100_000])
    assert found.open_end
    assert found.counts[-1] == 1
    assert found.labels()[-1] == "200+"
    assert found.lines()[-1].split() == ["200+", "##", "1"]


def test_one_number_and_none():
    assert histogram("x", []) is None
    found = histogram("side", [7, 7])
    assert found.lines() == ["side: 2 in all, median 7, largest 7", f"  7 {'#' * 40} 2"]
