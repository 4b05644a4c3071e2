"""A sample in which every industry has its share of the purchases, and rare ones a floor (paper 4.1)."""

from collections.abc import Mapping

import ibis
import ibis.expr.types as ir
import pyarrow as pa

from moon_jax.data.benchmark.engine import Engine
from moon_jax.data.records import DataError


def quotas(purchases: Mapping[str, int], available: Mapping[str, int], rows: int, floor: int) -> dict[str, int]:
    """Returns how many rows to take of each industry, `rows` in all (or all there are).

    An industry gets its share of the purchases, at least `floor` and at most what is available; what that takes or
    leaves is made up by the others in proportion. Fractions go by the largest remainder, then by name.

    Args:
        purchases: of each industry, in the whole log.
        available: rows of each industry that can be taken.
        rows: wanted.
        floor: for every industry.

    Raises:
        DataError: the floors alone are more than `rows`.
    """
    names = sorted(available)
    low = {name: float(min(floor, available[name])) for name in names}
    rows = min(rows, sum(available.values()))
    if sum(low.values()) > rows:
        raise DataError(
            f"{len(names)} industries with at least {floor} rows each are more than {rows} rows: lower --floor"
        )

    def at(scale: float) -> dict[str, float]:
        return {name: min(float(available[name]), max(low[name], scale * purchases.get(name, 0))) for name in names}

    below, above = 0.0, 1.0
    while sum(at(above).values()) < rows and above < 2**60:
        above *= 2
    for _ in range(100):
        middle = (below + above) / 2
        below, above = (middle, above) if sum(at(middle).values()) < rows else (below, middle)
    exact = at(above)
    taken = {name: int(exact[name]) for name in names}
    by_remainder = sorted(names, key=lambda name: (taken[name] - exact[name], name))
    for name in [name for name in by_remainder if taken[name] < available[name]][: rows - sum(taken.values())]:
        taken[name] += 1
    return taken


def sample(rows: ir.Table, wanted: Mapping[tuple[bool, str], int], engine: Engine) -> ir.Table:
    """Returns the rows with the smallest ids (an md5: a draw by lot) of each (test, industry), as many as wanted."""
    table = pa.table(
        {
            "test": pa.array((test for test, _ in wanted), pa.bool_()),
            "industry": pa.array((industry for _, industry in wanted), pa.string()),
            "wanted": pa.array(wanted.values(), pa.int64()),
        }
    )
    limits = engine.put(table, "quotas.parquet")
    ranked = rows.mutate(rank=ibis.row_number().over(group_by=("test", "industry"), order_by="id"))
    joined = ranked.inner_join(limits, ["test", "industry"])
    return joined.filter(joined["rank"] < joined.wanted).drop("rank", "wanted")
