"""results.json as rows that can be selected."""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from moon_jax.evaluation.benchmark import MODALITIES
from moon_jax.evaluation.choices import TASKS
from moon_jax.evaluation.tasks import MODEL, VERSION

SETS = ("unseen", "test", "seen")  # the order on the page: the harder one first


@dataclasses.dataclass(frozen=True)
class Row:
    """What one method reached in one task on one group of queries.

    Attributes:
        by: what narrows the group further ("kind" -> "back_view"), empty for all of it.
        part: None means all parts together.
        measures: names to numbers in [0, 1].
        intervals: (low, high) of some of the measures.
        of: size of the gallery or number of classes; None where it differs between parts.
        chance: some of the measures, of a random ranking.
    """

    task: str
    set: str
    part: str | None
    modality: str
    method: str
    by: dict[str, str]
    measures: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    queries: int
    lacking: int
    of: int | None
    chance: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Results:
    """A results file. Methods stand with the model first."""

    path: pathlib.Path
    said: Mapping[str, Any]  # the whole file
    rows: tuple[Row, ...]
    methods: tuple[str, ...]

    def select(self, task: str, **wanted: Any) -> list[Row]:
        """Returns the rows of a task whose fields are as wanted; a group `by` must be the same in all its keys."""
        return [
            row
            for row in self.rows
            if row.task == task and all(getattr(row, field) == value for field, value in wanted.items())
        ]

    def whole(self, task: str, **wanted: Any) -> list[Row]:
        """Returns the rows over all parts; where there is only one part, its rows."""
        found = self.select(task, **wanted)
        part = self.part_of_all(found)
        return [row for row in found if row.part == part]

    def part_of_all(self, rows: Iterable[Row]) -> str | None:
        """Returns the part whose rows stand for all parts: None, or the only one."""
        parts = {row.part for row in rows}
        return next(iter(parts)) if len(parts) == 1 else None

    def distinct(self, task: str) -> list[Row]:
        """Returns the rows of a task; where there is only one part, those over all parts repeat it and are left out."""
        found = self.select(task)
        parts = {row.part for row in found} - {None}
        return [row for row in found if row.part is None] or found if len(parts) < 2 else found

    def values(self, task: str, field: str) -> list[str]:
        """Returns the values of a field in the rows of a task, in the order of the page."""
        there = dict.fromkeys(getattr(row, field) for row in self.rows if row.task == task)
        order = {"set": SETS, "modality": tuple(MODALITIES), "method": self.methods}.get(field, ())
        return sorted(
            (value for value in there if value is not None), key=lambda v: order.index(v) if v in order else 99
        )

    def groups(self, task: str, key: str) -> list[str]:
        """Returns the values of a grouping of a task's rows, say of "industry", the one with most queries first."""
        found: dict[str, int] = {}
        for row in self.rows:
            if row.task == task and set(row.by) == {key}:
                found[row.by[key]] = max(found.get(row.by[key], 0), row.queries)
        return sorted(found, key=lambda name: (-found[name], name))


def recall_ks(rows: Iterable[Row]) -> list[int]:
    """Returns the k of all "R@k", rising."""
    return sorted({int(name[2:]) for row in rows for name in row.measures if name.startswith("R@")})


def read(path: str | os.PathLike[str]) -> Results:
    """Returns the results.

    Raises:
        ValueError: the file is not there, not JSON, of another version, or a row lacks something; says which.
    """
    path = pathlib.Path(path)
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"there is no {path}: run the evaluation first") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); evaluate again") from None
    version = said.get("version") if isinstance(said, dict) else None
    if version != VERSION:
        raise ValueError(f"{path} has version {version!r}, but this page reads version {VERSION}; evaluate again")
    rows = tuple(_checked(_row, said, path))
    found = dict.fromkeys([*said.get("methods", {}), *(row.method for row in rows)])
    methods = sorted(found, key=lambda name: name != MODEL)  # stable: baselines stay in the order of the file
    return Results(path, said, rows, tuple(methods))


def _checked(make: Callable[[dict[str, Any]], Row], said: Mapping[str, Any], path: pathlib.Path) -> Iterable[Row]:
    for place, row in enumerate(said.get("rows", ())):
        try:
            yield make(row)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path}: rows[{place}] cannot be read ({type(error).__name__}: {error})") from None


def _row(said: dict[str, Any]) -> Row:
    measures = {name: float(value) for name, value in said["measures"].items()}
    if bad := [name for name, value in measures.items() if not math.isfinite(value)]:
        raise ValueError(f"{', '.join(bad)} is not a finite number")
    if said["task"] not in TASKS:
        raise ValueError(f"the task is one of {', '.join(TASKS)}, not {said['task']!r}")
    return Row(
        task=said["task"],
        set=said["set"],
        part=said["part"],
        modality=said["modality"],
        method=said["method"],
        by={key: str(value) for key, value in said.get("by", {}).items()},
        measures=measures,
        intervals={name: (float(low), float(high)) for name, (low, high) in said.get("intervals", {}).items()},
        queries=int(said["queries"]),
        lacking=int(said.get("lacking", 0)),
        of=said.get("gallery", said.get("classes")),
        chance={name: float(value) for name, value in said.get("chance", {}).items()},
    )
