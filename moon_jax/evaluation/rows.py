"""Rows of the results: the measures of ranked answers, with intervals, chance and counts."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from moon_jax.config import EvalConfig
from moon_jax.evaluation import bootstrap, classification, metrics
from moon_jax.evaluation.choices import CLASSIFICATION, RETRIEVAL
from moon_jax.evaluation.ranked import RELAXED, Ranked

_FACETS = ("kind", "industry")


@dataclasses.dataclass(frozen=True)
class Pool:
    """Ranked trials that are measured together.

    Attributes:
        about: ("level", "2"), ("attribute", "color"), or None for the task as a whole.
        members: of one part, or of several.
    """

    task: str
    set: str
    part: str | None
    modality: str
    subject: str
    about: tuple[str, str] | None
    members: tuple[Ranked, ...]

    @property
    def by(self) -> dict[str, str]:
        """What the row of the pool is by."""
        subject = {"subject": "query"} if self.subject == "query" and self.task != RETRIEVAL else {}
        return subject | dict([self.about] if self.about else ())


def rows_of(pools: Iterable[Pool], method: str, config: EvalConfig) -> list[dict[str, Any]]:
    """Returns the row of each pool and, where it is a task as a whole, those of each kind of query and industry.

    Args:
        pools: the whole tasks come before their levels and attributes.
        method: the name in the rows.
        config: `ks` and `bootstrap_samples`.
    """
    rows: list[dict[str, Any]] = []
    made: dict[tuple[int, ...], list[dict[str, Any]]] = {}  # the only part is all parts, and the deepest level the task
    for pool in pools:
        same = tuple(map(id, pool.members))
        if same not in made:
            made[same] = list(_pool_rows(pool, method, config))
        found = made[same]
        rows += [{**row, "part": pool.part, "by": row["by"] if i else pool.by} for i, row in enumerate(found)][
            : None if pool.about is None else 1
        ]
    return rows


def _pool_rows(pool: Pool, method: str, config: EvalConfig) -> Iterator[dict[str, Any]]:
    asked = [one for ranked in pool.members for one in ranked.asked]
    if not asked:
        return
    table = (_Retrieval if pool.task == RETRIEVAL else _Choices)(pool.members, config)
    everything = np.ones(len(asked), bool)
    lacking = sum(ranked.lacking for ranked in pool.members)
    yield _row(pool, method, pool.by, table, everything, lacking)
    for facet in _FACETS if pool.about is None else ():
        values = np.array([getattr(one, facet) for one in asked])
        for value in np.unique(values[values != ""]) if len(set(values)) > 1 else ():
            without = sum(getattr(one, facet) == value for ranked in pool.members for one in ranked.left_out)
            yield _row(pool, method, pool.by | {facet: str(value)}, table, values == value, without)


def _row(
    pool: Pool,
    method: str,
    by: dict[str, str],
    table: "_Retrieval | _Choices",
    at: Bool[np.ndarray, " q"],
    lacking: int,
) -> dict[str, Any]:
    sizes = np.unique(table.sizes[at])
    return {
        "task": pool.task,
        "set": pool.set,
        "part": pool.part,
        "modality": pool.modality,
        "method": method,
        "by": by,
        "measures": table.measures(at),
        "intervals": {name: [float(low), float(high)] for name, (low, high) in table.intervals(at).items()},
        "queries": int(at.sum()),
        "lacking": lacking,
        table.size_name: int(sizes[0]) if len(sizes) == 1 else None,
        "chance": table.chance(at),
    }


class _Table:
    """What is known of every question of a pool."""

    size_name: str

    def __init__(self, members: Sequence[Ranked], config: EvalConfig):
        sizes = [len(ranked.trial.candidates.names) for ranked in members for _ in ranked.asked]
        self.sizes = np.array(sizes)
        self.answers = np.array([len(one.truth) for ranked in members for one in ranked.asked])
        self.products = np.array([one.product for ranked in members for one in ranked.asked])
        self.samples = config.bootstrap_samples

    def chance_at(self, at: Bool[np.ndarray, " q"], k: int) -> float:
        """Returns how often a right candidate is among k drawn without looking."""
        pairs, counts = np.unique(np.stack([self.sizes[at], self.answers[at]]), axis=1, return_counts=True)
        hits = [_hit(int(size), int(right), k) for size, right in pairs.T]
        return float(np.average(hits, weights=counts))


def _hit(size: int, right: int, k: int) -> float:
    """Returns 1 - C(size - right, k) / C(size, k)."""
    if k >= size - right + 1:
        return 1.0
    if right == 1:
        return k / size
    return 1 - math.prod((size - right - i) / (size - i) for i in range(k))


class _Retrieval(_Table):
    size_name = "gallery"

    def __init__(self, members: Sequence[Ranked], config: EvalConfig):
        super().__init__(members, config)
        self._ks = config.ks
        wide = max(config.ks)
        values = []
        for ranked in members:
            relevant = ranked.relevant()
            missing = max(0, wide - relevant.shape[1])  # a gallery smaller than the largest k
            relevant = np.pad(relevant, ((0, 0), (0, missing)))
            total = np.array([len(right) for right in ranked.truth])
            values.append(metrics.retrieval_values(relevant, total, config.ks))
        self._values = {name: np.concatenate([v[name] for v in values]) for name in values[0]}

    def measures(self, at: Bool[np.ndarray, " q"]) -> dict[str, float]:
        return {name: float(values[at].mean()) for name, values in self._values.items()}

    def intervals(self, at: Bool[np.ndarray, " q"]) -> Mapping[str, tuple[float, float]]:
        if not self.samples:
            return {}
        values = {name: values[at] for name, values in self._values.items()}
        return bootstrap.intervals(values, groups=self.products[at], samples=self.samples)

    def chance(self, at: Bool[np.ndarray, " q"]) -> dict[str, float]:
        return {f"R@{k}": self.chance_at(at, k) for k in self._ks}


class _Choices(_Table):
    """Classes of different trials are different classes, whatever they are called.

    In measures with @10 a trial of fewer than 100 classes counts by its first choice; where all are, there are none.
    """

    size_name = "classes"

    def __init__(self, members: Sequence[Ranked], config: EvalConfig):
        super().__init__(members, config)
        first, parts = 0, []
        for ranked in members:
            classes = len(ranked.trial.candidates.names)
            missing = max(0, RELAXED - ranked.indices.shape[1])  # few have a vector: the last one stands for the rest
            indices = np.concatenate([ranked.indices, np.repeat(ranked.indices[:, -1:], missing, axis=1)], axis=1)
            found = classification.outcomes(indices, ranked.truth, classes, RELAXED)
            several = ranked.trial.task == CLASSIFICATION and found.relaxed is not None
            relaxed = found.relaxed if several else found.top1
            parts.append([found.gold + first, found.top1 + first, relaxed + first, np.full(len(relaxed), several)])
            first += classes
        self._gold, self._top1, self._relaxed, self._many = map(np.concatenate, zip(*parts, strict=True))

    def _measures(
        self, at: Bool[np.ndarray, " q"], weights: Int[np.ndarray, " n"] | Float[np.ndarray, " n"] | None = None
    ) -> dict[str, float]:
        gold = self._gold[at]
        out = dict(classification.measures(gold, self._top1[at], weights))
        if self._many[at].any():
            relaxed = classification.measures(gold, self._relaxed[at], weights)
            out |= {f"{name}@{RELAXED}": value for name, value in relaxed.items()}
        return out

    def measures(self, at: Bool[np.ndarray, " q"]) -> dict[str, float]:
        return {name: float(value) for name, value in self._measures(at).items()}

    def intervals(self, at: Bool[np.ndarray, " q"]) -> Mapping[str, tuple[float, float]]:
        if not self.samples:
            return {}
        measure: Callable[..., dict[str, float]] = functools.partial(self._measures, at)
        return bootstrap.intervals_of(measure, int(at.sum()), groups=self.products[at], samples=self.samples)

    def chance(self, at: Bool[np.ndarray, " q"]) -> dict[str, float]:
        out = {"accuracy": self.chance_at(at, 1)}
        if not self._many[at].any():
            return out
        many, few = at & self._many, at & ~self._many
        relaxed = self.chance_at(many, RELAXED) * many.sum() + (self.chance_at(few, 1) * few.sum() if few.any() else 0)
        return out | {f"accuracy@{RELAXED}": float(relaxed / at.sum())}
