"""Trains MOON: `python -m moon_jax.train --config=configs/demo.py --workdir=runs/demo`.

The work folder receives config.json, metrics.jsonl, tensorboard/, eval/<step>.json and checkpoints/; the same command
again resumes there. Every setting can be overridden, e.g. --config.train.steps=500 --config.mesh.fsdp=8.
"""

import dataclasses
import json
import pathlib
import signal
import sys
import time
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging
from jax.experimental import multihost_utils
from ml_collections import config_flags

from moon_jax.config import Config, ConfigError, resolve, to_dict
from moon_jax.data import catalogue, sources, tokenizer
from moon_jax.data.pipeline import TrainBatches, stream
from moon_jax.data.records import DataError, Dataset, training_texts
from moon_jax.encoder import Encoder
from moon_jax.evaluation import report, tasks
from moon_jax.parallel.mesh import batch_shards, host_shards, make_mesh, place_batch
from moon_jax.training.checkpoint import CheckpointError, Checkpoints
from moon_jax.training.log import Log
from moon_jax.training.plan import describe
from moon_jax.training.state import Trainer, TrainState

# A resumed run must agree on these; another value would silently be another run.
_FIXED = ("model", "moe.experts", "loss.ring_batches", "train.batch_size", "train.seed", "train.steps")


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step and what to look at."""


def main(argv: list[str]) -> None:
    """Reads the flags and runs; mistakes of the user end with one plain message instead of a traceback."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; settings are given as --config.group.name=value")
    try:
        config = resolve(CONFIG.value)
        if DRY_RUN.value:
            print(describe(config))
            return
        if not WORKDIR.value:
            raise ConfigError("--workdir is needed: the folder that receives checkpoints, logs and results")
        logging.set_verbosity(logging.WARNING)  # Orbax and JAX say much at INFO; ours goes through Log
        run(config, pathlib.Path(WORKDIR.value))
    except (ConfigError, DataError, tokenizer.TokenizerError, CheckpointError, TrainingError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


def run(config: Config, workdir: pathlib.Path, stop_step: int | None = None) -> dict[str, Any]:
    """Trains to `config.train.steps`, or goes on from the last checkpoint in workdir; returns the last evaluation.

    Args:
        config: all settings.
        workdir: made if it is not there.
        stop_step: stop with a checkpoint after this step, as a SIGTERM would (for tests of resuming).

    Raises:
        ConfigError: settings, data or an older checkpoint in workdir do not fit together.
        TrainingError: the loss is not finite.
    """
    mesh = make_mesh(config.mesh)
    trainer = Trainer(config, mesh)
    workdir.mkdir(parents=True, exist_ok=True)
    config, dataset, words = prepare(config, workdir)
    batches = TrainBatches(dataset, words, config, batch_shards(mesh), host_shards(mesh))
    encoder = Encoder(config, mesh, words)
    train_step = trainer.train_step(batches.shape.documents)
    meta = {"config": to_dict(config), "data": dataset.fingerprint, "tokenizer": words.fingerprint}
    stop = _StopOnSignal()

    with Checkpoints(workdir / "checkpoints", config.train.keep_checkpoints, config.eval.metric) as checkpoints:
        state = _restore_or_init(trainer, checkpoints, config, meta)
        start, last = int(state.step), min(stop_step or config.train.steps, config.train.steps)
        if start == 0:
            report.write_json(meta["config"], workdir / "config.json")
        results, saved, finished = {}, start, start
        with (
            Log(workdir, config.train.steps, start, triplets_per_step=config.train.batch_size) as log,
            jax.set_mesh(mesh),
        ):
            previous = None
            waiting = time.perf_counter()
            data = config.data
            for step, batch in stream(batches, start, last, data.workers, data.prefetch):
                waited = time.perf_counter() - waiting
                state, metrics = train_step(state, place_batch(batch.arrays, mesh))
                if previous is not None:  # one step late, so that the device never waits for this check
                    _check_finite(previous, step)
                previous = metrics["loss"]
                finished = step + 1
                stopping = stop.requested() or finished == last
                if finished % config.train.log_every == 0 or stopping:
                    _check_finite(metrics["loss"], finished)
                    log.write_step(finished, metrics | batch.info | {"data_wait_seconds": waited})
                every = config.eval.every
                evaluating = finished == config.train.steps or (every and finished % every == 0)
                if evaluating:
                    with log.untimed():
                        results = _evaluate(dataset, encoder, state, config, finished, workdir, log)
                if evaluating or stopping or finished % config.train.checkpoint_every == 0:
                    _check_finite(metrics["loss"], finished)
                    with log.untimed():
                        checkpoints.save(finished, state, meta | {"metrics": results.get("metrics", {})})
                    saved = finished
                if stop.requested():
                    log.show(f"stopped by a signal after step {finished}; the same command goes on from there")
                    break
                waiting = time.perf_counter()
        checkpoints.wait()
        if start == last == config.train.steps:
            log.show(f"{workdir} is already at its last step {last}; results are in {workdir}/eval/{last}.json")
            results = json.loads((workdir / "eval" / f"{last}.json").read_text())
        assert saved == finished or finished == start
    return results


def prepare(config: Config, workdir: pathlib.Path) -> tuple[Config, Dataset, tokenizer.Tokenizer]:
    """Returns (config with the paths filled in, dataset, tokenizer), drawing and training what is not given.

    Process 0 writes what is made; the others wait and read it.
    """
    path = config.data.path
    if config.data.format == "catalogue" and not path:
        path = str(workdir / "catalogue")
        if jax.process_index() == 0:
            catalogue.write(path, config.data.catalogue_products, seed=0)
        multihost_utils.sync_global_devices("catalogue")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, path=path))
    dataset = sources.read(config.data)
    folder = config.data.tokenizer
    if not folder:
        folder = workdir / "tokenizer"
        if jax.process_index() == 0 and not (folder / "tokenizer.json").exists():
            tokenizer.train_bpe(training_texts(dataset), folder, config.model.text.vocab_size)
        multihost_utils.sync_global_devices("tokenizer")
    return config, dataset, tokenizer.load(folder, config.model.text.vocab_size)


def _restore_or_init(trainer: Trainer, checkpoints: Checkpoints, config: Config, meta: dict[str, Any]) -> TrainState:
    step = checkpoints.latest()
    if step is None:
        return trainer.init(config.train.seed)
    saved = checkpoints.meta(step)
    now = json.loads(json.dumps(meta))
    problems = [
        f"config.{name} was {a!r}, is {b!r}" for name in _FIXED if (a := _get(saved, name)) != (b := _get(now, name))
    ]
    problems += [f"the {name} changed" for name in ("data", "tokenizer") if saved[name] != now[name]]
    if problems:
        raise ConfigError(
            f"{checkpoints.folder} holds another run, so it cannot be resumed (choose another --workdir):\n"
            + "\n".join(f"  - {p}" for p in problems)
        )
    return checkpoints.restore(trainer.abstract_state(), step)[0]


def _get(meta: dict[str, Any], name: str) -> Any:
    value = meta["config"]
    for part in name.split("."):
        value = value[part]
    return value


def _evaluate(
    dataset: Dataset, encoder: Encoder, state: TrainState, config: Config, step: int, workdir: pathlib.Path, log: Log
) -> dict[str, Any]:
    """Returns and writes the evaluation after `step`; the one at the end leaves no query out."""
    last = step == config.train.steps
    if not last:  # the baseline does not change from one evaluation to the next
        config = dataclasses.replace(config, eval=dataclasses.replace(config.eval, color_histogram=False))
    results = tasks.evaluate(
        dataset,
        lambda documents: encoder.embed(state.params, documents),
        config,
        max_queries=0 if last else config.eval.max_queries,
        about={"step": step, "catalogue": catalogue.content_hash(config.data.path)},
    )
    if jax.process_index() == 0:
        report.write_json(results, workdir / "eval" / f"{step}.json")
    log.write(step, {f"eval/{name}": value for name, value in results["metrics"].items()})
    log.show(report.table(results))
    return results


def _check_finite(loss: jax.Array, step: int) -> None:
    if not np.isfinite(loss):
        raise TrainingError(
            f"the loss is {float(loss)} at step {step}; the last checkpoint is from before it. "
            f"Look at grad_norm in metrics.jsonl; a lower config.train.lr is the usual remedy"
        )


class _StopOnSignal:
    """Turns SIGTERM (preemption) and the first Ctrl-C into an orderly stop after the step that is running."""

    def __init__(self):
        self._signal = False
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, self._note)

    def _note(self, number: int, frame: Any) -> None:
        self._signal = True
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C stops at once

    def requested(self) -> bool:
        """Returns whether a process of this run has been asked to stop; every process gets the same answer."""
        if jax.process_count() == 1:
            return self._signal
        return bool(np.any(multihost_utils.process_allgather(np.array(self._signal))))


CONFIG = config_flags.DEFINE_config_file("config", None, "the recipe: configs/NAME.py or configs/NAME.py:ARGUMENT")
WORKDIR = flags.DEFINE_string("workdir", None, "folder for checkpoints, logs and results; an existing one is resumed")
DRY_RUN = flags.DEFINE_bool("dry-run", False, "print parameters, mesh, negatives, tokens, bytes and steps, then stop")

if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    app.run(main)
