"""The log of a run: `metrics.jsonl`, TensorBoard and a progress bar, written by process 0 only."""

import contextlib
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import tqdm

from moon_jax.data import whole_file

_BAR = ("loss", "triplets_per_second")  # what the progress bar shows beside steps and time left


class Log:
    """Writes the numbers of a run to `workdir/metrics.jsonl`, `workdir/tensorboard` and the terminal.

    Every process makes one and calls it alike; all but process 0 write nothing. A resumed run continues the files:
    lines and TensorBoard events past `start_step`, which a killed run wrote after its last checkpoint, are dropped.

    Attributes:
        total_steps: number of the last step, for the time left.
        triplets_per_step: global batch size; 0 leaves the speed out.
    """

    def __init__(
        self, workdir: str | os.PathLike[str], total_steps: int, start_step: int = 0, *, triplets_per_step: int = 0
    ):
        self.total_steps = total_steps
        self.triplets_per_step = triplets_per_step
        self._writes = jax.process_index() == 0
        self._timed_step, self._timed_from = start_step, time.perf_counter()  # the first interval holds the compilation
        if not self._writes:
            return
        import tensorboardX  # imports torch where that is installed, which takes seconds

        workdir = pathlib.Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        path = workdir / "metrics.jsonl"
        _drop_after(path, start_step)
        self._file = path.open("a", encoding="utf-8")
        self._board = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=start_step + 1)
        self._terminal = sys.stderr.isatty()
        self._bar = tqdm.tqdm(
            total=total_steps, initial=start_step, unit="step", dynamic_ncols=True, disable=not self._terminal
        )

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes one line of numbers to metrics.jsonl, and the same to TensorBoard.

        Args:
            step: the step that the numbers belong to.
            metrics: names to scalars, strings or 1-D arrays (say the router's load per expert). NaN and infinity become
                null, and the line's "not_finite" says which they were.
        """
        if not self._writes:
            return
        metrics = {name: _plain(value) for name, value in metrics.items()}
        self._file.write(json.dumps(_line(step, metrics), allow_nan=False, ensure_ascii=False) + "\n")
        self._file.flush()
        self._to_board(step, metrics)

    def write_evaluation(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes the numbers of an evaluation to TensorBoard; metrics.jsonl has lines of training steps only."""
        if self._writes:
            self._to_board(step, {f"eval/{name}": _plain(value) for name, value in metrics.items()})

    def _to_board(self, step: int, metrics: Mapping[str, Any]) -> None:
        for name, value in metrics.items():
            if isinstance(value, list):
                numbers = np.asarray(value, np.float64).ravel()
                numbers = numbers[np.isfinite(numbers)]
                if numbers.size:
                    self._board.add_histogram(name, numbers, step)
                    self._board.add_scalar(f"{name}/mean", numbers.mean(), step)
            elif not isinstance(value, str):
                self._board.add_scalar(name, value, step)
        self._board.flush()

    def write_step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes the numbers of a training step with its speed, and moves the progress bar on.

        Without a terminal the bar is one short line instead: logs of batch systems stay readable.
        """
        if not self._writes:
            return
        metrics = {name: _plain(value) for name, value in metrics.items()} | self._speed(step)
        self.write(step, metrics)
        shown = {name: f"{metrics[name]:.4g}" for name in _BAR if isinstance(metrics.get(name), (int, float))}
        if self._terminal:
            self._bar.set_postfix(shown, refresh=False)
            self._bar.update(step - self._bar.n)
        else:
            numbers = ", ".join(f"{name} {value}" for name, value in shown.items())
            left = metrics.get("seconds_per_step", math.nan) * (self.total_steps - step)
            eta = "" if math.isnan(left) else f", {tqdm.tqdm.format_interval(left)} left"
            self.show(f"step {step}/{self.total_steps}: {numbers}{eta}")

    @contextlib.contextmanager
    def untimed(self) -> Iterator[None]:
        """Leaves the time spent inside (evaluation, waiting for a checkpoint) out of the speed."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._timed_from += time.perf_counter() - start

    def show(self, text: str) -> None:
        """Prints a text, say the final table, without breaking the progress bar (to stderr, on process 0)."""
        if self._writes:
            tqdm.tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        """Ends the bar and closes the files."""
        if self._writes:
            self._bar.close()
            self._board.close()
            self._file.close()

    def _speed(self, step: int) -> dict[str, float]:
        now = time.perf_counter()
        since, steps = now - self._timed_from, step - self._timed_step
        self._timed_step, self._timed_from = step, now
        if steps <= 0 or since <= 0:
            return {}
        speed = {"seconds_per_step": since / steps}
        return speed | (
            {"triplets_per_second": self.triplets_per_step * steps / since} if self.triplets_per_step else {}
        )


def _line(step: int, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the JSON object of one line: NaN and infinity as None, and named with their kind in "not_finite"."""
    bad: dict[str, str] = {}

    def clean(value: Any, name: str) -> Any:
        if isinstance(value, list):
            return [clean(v, f"{name}[{i}]") for i, v in enumerate(value)]
        if isinstance(value, float) and not math.isfinite(value):
            bad[name] = str(value)
            return None
        return value

    record = {"step": step} | {name: clean(value, name) for name, value in metrics.items()}
    return record | ({"not_finite": bad} if bad else {})


def _plain(value: Any) -> Any:
    """Returns a number, string or nested list; an array on a device is fetched here."""
    return value if isinstance(value, str) else np.asarray(value).tolist()


def _drop_after(path: pathlib.Path, step: int) -> None:
    """Removes the lines of later steps, and a line cut short by a kill; the rest stays byte for byte."""
    if not path.exists():
        return
    kept = []
    for text in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            if json.loads(text)["step"] <= step and text.endswith("\n"):
                kept.append(text)
        except (ValueError, KeyError, TypeError):
            continue
    whole_file.write_text(path, "".join(kept))
