"""Trains MOON: `python -m moon_jax.train --config=configs/demo.py --workdir=runs/demo`.

The work folder receives config.json, metrics.jsonl, tensorboard/, eval/<step>.json, expert_load.png (who visits which
expert, drawn at every evaluation; the numbers are in expert_load.json) and checkpoints/; the same command again resumes
there. Every setting can be overridden, e.g. --config.train.steps=500 --config.mesh.fsdp=8.

    --config.model.path=DIR   start from a checkpoint: a Hugging Face folder of Qwen2.5-VL, a model folder or a training
                              run of ours. Its sizes and its tokenizer are used; where only the config has experts,
                              each starts as a copy of its layer's FFN
    --config.train.freeze=W   keep weights as they are: vision, llm, or backbone (all but experts and projector);
                              several joined by commas

Every folder in checkpoints/ is itself a checkpoint to start from, and what moon_jax.load, moon_jax.embed and
moon_jax.convert read.
"""

import collections
import dataclasses
import functools
import json
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import app, flags, logging
from jax.experimental import multihost_utils

from moon_jax.command_flags import CommandFlags
from moon_jax.config import Config, ConfigError, resolve, to_dict
from moon_jax.data import catalogue, tokenizer, whole_file
from moon_jax.data.grounding_batches import GroundingBatches
from moon_jax.data.identity import differences
from moon_jax.data.pipeline import HOST_COUNTS, TrainBatches, stream
from moon_jax.data.records import DataError, Dataset, training_texts
from moon_jax.evaluation import expert_load, grounding, tasks
from moon_jax.evaluation.results import table
from moon_jax.models.attention import check_attention
from moon_jax.moe.dispatch import check_strategy
from moon_jax.moe.router_stats import shortened
from moon_jax.parallel.agreement import STOPPED, StopOnSignal, most, total
from moon_jax.parallel.mesh import batch_shards, host_shards, make_mesh, place_batch
from moon_jax.parallel.processes import meet, together
from moon_jax.training.checkpoint import CheckpointError, Checkpoints
from moon_jax.training.detector import Detector
from moon_jax.training.embedder import Embedder
from moon_jax.training.inputs import open_dataset
from moon_jax.training.log import Log
from moon_jax.training.plan import describe
from moon_jax.training.start import Start, assets, find
from moon_jax.training.state import Trainer, TrainState
from moon_jax.weights.folder import tokenizer_files
from moon_jax.weights.source import WeightsError

# What may change when a run is resumed; any other change would silently be another run. Of what lies at the paths, data
# and weights, the fingerprints are compared instead.
_FREE = (
    "name", "mesh", "eval", "model.path", "model.remat", "model.attention_impl", "moe.strategy", "moe.placement",
    "data.path", "data.boxes", "data.image_folder", "data.on_error", "data.max_skipped_share", "data.row_tokens",
    "data.rows", "data.image_slots", "data.workers", "data.prefetch", "train.log_every", "train.checkpoint_every",
    "train.keep_checkpoints",
)  # fmt: skip


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step and what to look at."""


MISTAKES = (ConfigError, DataError, tokenizer.TokenizerError, WeightsError, CheckpointError, TrainingError)


def main(argv: list[str]) -> None:
    """Reads the flags and runs; mistakes of the user end with one plain message instead of a traceback."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; settings are given as --config.group.name=value")
    try:
        config = resolve(CONFIG.value)
        if DRY_RUN.value:
            print(describe(find(config).config))
            return
        if not WORKDIR.value:
            raise ConfigError("--workdir is needed: the folder that receives checkpoints, logs and results")
        logging.set_verbosity(logging.WARNING)  # Orbax and JAX say much at INFO; ours goes through Log
        with together(*MISTAKES):
            if not run(config, pathlib.Path(WORKDIR.value)):
                sys.exit(STOPPED)
    except MISTAKES as error:
        sys.exit(f"{type(error).__name__}: {error}")


def run(config: Config, workdir: pathlib.Path) -> dict[str, Any]:
    """Trains to `config.train.steps`, or goes on from the last checkpoint in workdir; returns the last evaluation.

    Args:
        config: all settings.
        workdir: made if it is not there.

    Raises:
        ConfigError: settings, data, weights or an older checkpoint in workdir do not fit together.
        WeightsError: the checkpoint to start from cannot be used.
        TrainingError: the loss is not finite.
    """
    if config.model.dtype == "float32":  # accelerators would multiply in fewer bits by default
        jax.config.update("jax_default_matmul_precision", "highest")
    mesh = make_mesh(config.mesh)
    meet(mesh)
    with Checkpoints(workdir / "checkpoints", config.train.keep_checkpoints, config.eval.metric) as checkpoints:
        step = checkpoints.latest()
        saved = None if step is None else checkpoints.meta(step)
        start = find(config, saved)
        platform = mesh.devices.flat[0].platform
        check_attention(start.config.model, platform)
        check_strategy(start.config.moe, mesh.shape, platform)
        trainer = Trainer(start.config, mesh)
        workdir.mkdir(parents=True, exist_ok=True)
        config, dataset, words, words_folder = prepare(start, workdir, saved is None)
        task = _TASKS[config.loss.kind]
        batches = task.batches(dataset, words, config, batch_shards(mesh), host_shards(mesh))
        model = task.model(config, mesh, words)
        train_step = trainer.train_step(batches.shape.documents)
        meta = {
            "config": to_dict(config), "data": dataset.fingerprint, "tokenizer": words.fingerprint,
            "weights": start.weights(),
        }  # fmt: skip
        beside = functools.partial(assets, config, words_folder, meta)
        beside(0)  # what is missing for them is found before training, not after it
        if saved is not None:
            _check_same_run(saved, meta, checkpoints.folder)
            state = checkpoints.restore(trainer.abstract_state(), step)[0]
        else:
            state = trainer.init(config.train.seed) if start.source is None else trainer.start(start.source)
        first, last = int(state.step), config.train.steps
        if first == 0 and jax.process_index() == 0:
            whole_file.write_json(workdir / "config.json", meta["config"])
        with (
            StopOnSignal(mesh) as stop,
            Log(workdir, config.train.steps, first, triplets_per_step=config.train.batch_size) as log,
            jax.set_mesh(mesh),
        ):
            evaluate = functools.partial(_evaluate, dataset, model, config, workdir, log)
            results, previous, waiting = {}, None, time.perf_counter()
            for line in (*trainer.replicated, *(start.notes() if first == 0 else ())):
                log.show(line)
            counts: collections.Counter[str] = collections.Counter()
            for step, batch in stream(batches, first, last, config.data.workers, config.data.prefetch):
                counts.update(batch.info, data_wait_seconds=time.perf_counter() - waiting)
                state, metrics = train_step(state, place_batch(batches.agree(batch.arrays, most), mesh))
                if previous is not None:  # one step late, so that the device never waits for this check
                    _check_finite(previous, step)
                previous, done = metrics, step + 1
                logging_now = done % config.train.log_every == 0
                stopping = done == last or stop.requested()
                evaluating = done == last or (config.eval.every and done % config.eval.every == 0)
                saving = evaluating or stopping or done % config.train.checkpoint_every == 0
                if logging_now or saving:
                    _check_finite(metrics, done)
                if logging_now or stopping:
                    log.write_step(
                        done, shortened(metrics) | counts | total({name: counts[name] for name in HOST_COUNTS}, mesh)
                    )
                    counts.clear()
                with log.untimed():
                    scores = {}
                    try:
                        if evaluating:
                            results = evaluate(state, done, metrics)
                            scores = results["metrics"]
                    finally:  # an evaluation that fails does not take the training with it
                        if saving:
                            checkpoints.save(done, state, meta | {"metrics": scores}, beside(done))
                if stopping and done < last:
                    log.show(f"stopped by a signal after step {done}; the same command goes on from there")
                    break
                waiting = time.perf_counter()
            if first == last:
                path = workdir / "eval" / f"{first}.json"
                log.show(f"this run is at its last step {first} already; its results are in {path}")
                results = json.loads(path.read_text()) if path.exists() else evaluate(state, first, {})
            checkpoints.wait()
            if (best := checkpoints.best()) is not None:
                log.show(f"best checkpoint by {config.eval.metric}: step {best}")
    return results


def prepare(
    start: Start, workdir: pathlib.Path, fresh: bool
) -> tuple[Config, Dataset, tokenizer.Tokenizer, pathlib.Path]:
    """Returns (config with the paths filled in, dataset, tokenizer, its folder), making what is not given.

    The catalogue is drawn, the tokenizer is the checkpoint's (kept in the work folder, so that the run can go on
    without it) or trained. Process 0 writes; the others wait and read.

    Args:
        start: of the run.
        workdir: receives what is made.
        fresh: the run begins at step 0.
    """
    config = start.config
    data, dataset = open_dataset(config.data, workdir)
    config = dataclasses.replace(config, data=data)
    folder = pathlib.Path(config.data.tokenizer or workdir / "tokenizer")
    if not config.data.tokenizer:
        if jax.process_index() == 0:
            if config.model.path:
                _keep_tokenizer(folder, start, fresh)
            else:
                _train_tokenizer(folder, dataset, config.model.text.vocab_size)
        multihost_utils.sync_global_devices("tokenizer")
    if start.pretrained is None:
        return config, dataset, tokenizer.load(folder, config.model.text.vocab_size), folder
    return config, dataset, dataclasses.replace(start.pretrained, tokenizer_folder=folder).load_tokenizer(), folder


def _keep_tokenizer(folder: pathlib.Path, start: Start, fresh: bool) -> None:
    """Copies the tokenizer of the checkpoint to the work folder; a resumed run has its own there already."""
    if start.pretrained is None or (folder.exists() and not fresh):
        return
    files = tokenizer_files(start.pretrained.tokenizer_folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


def _train_tokenizer(folder: pathlib.Path, dataset: Dataset, vocab_size: int) -> None:
    """Trains the tokenizer unless the folder holds the one of exactly these texts and this size."""
    note = folder / "trained_on.json"
    wanted = {"data": dataset.fingerprint, "vocab_size": vocab_size}
    if not note.exists() or json.loads(note.read_text()) != wanted:
        note.unlink(missing_ok=True)
        tokenizer.train_bpe(training_texts(dataset), folder, vocab_size)
        whole_file.write_json(note, wanted)  # last: a folder without it is trained again


def _check_same_run(saved: dict[str, Any], meta: dict[str, Any], folder: Any) -> None:
    now = json.loads(json.dumps(meta))
    problems = differences(*(compared(run["config"], _FREE) for run in (saved, now))).splitlines()
    problems += [f"  - the {name} changed" for name in ("data", "tokenizer") if saved[name] != now[name]]
    if (saved.get("weights") or {}).get("fingerprint") != (now["weights"] or {}).get("fingerprint"):
        problems.append(
            "  - config.model.path has other weights than those that the run started from; going on needs none of "
            "them, so that the folder may be absent"
        )
    if problems:
        raise ConfigError(
            "\n".join([f"{folder} holds another run, so it cannot be resumed (choose another --workdir):", *problems])
        )


def compared(config: dict[str, Any], free: Sequence[str]) -> dict[str, Any]:
    """Returns the settings that must be those of a run to go on with it, {"config.train.lr": 0.001, ...}.

    Args:
        config: nested; a setting that it lacks, as its version of moon_jax did not have it yet, was at its default.
        free: names of settings and of groups of them that may differ.
    """
    default, given = (flat(json.loads(json.dumps(values))) for values in (to_dict(Config()), config))
    settings = sorted((default | given).items())
    return {
        f"config.{name}": value
        for name, value in settings
        if not any(f"{name}.".startswith(f"{word}.") for word in free)
    }


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns {"train.lr": 0.001, ...}."""
    out: dict[str, Any] = {}
    for name, value in config.items():
        out |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return out


class _Task(NamedTuple):
    """What is particular to a kind of loss."""

    batches: Callable[..., TrainBatches | GroundingBatches]
    model: Callable[..., Embedder | Detector]
    use: Callable[..., Any]  # (model, parameters, documents or questions) -> what is evaluated
    evaluate: Callable[..., dict[str, Any]]
    table: Callable[[dict[str, Any]], str]


_TASKS = {
    "contrastive": _Task(TrainBatches, Embedder, Embedder.embed, tasks.evaluate, table),
    "next_token": _Task(GroundingBatches, Detector, Detector.detect, grounding.evaluate, grounding.table),
}


def _evaluate(
    dataset: Dataset,
    model: Embedder | Detector,
    config: Config,
    workdir: pathlib.Path,
    log: Log,
    state: TrainState,
    step: int,
    metrics: dict[str, jax.Array],
) -> dict[str, Any]:
    """Returns and writes the evaluation after `step`; the one at the end leaves no query out."""
    last = step == config.train.steps
    if not last:  # the baseline does not change from one evaluation to the next
        config = dataclasses.replace(config, eval=dataclasses.replace(config.eval, color_histogram=False))
    task = _TASKS[config.loss.kind]
    results = task.evaluate(
        dataset,
        functools.partial(task.use, model, state.params),
        config,
        max_queries=0 if last else config.eval.max_queries,
        about={
            "step": step,
            "tokenizer": model.tokenizer.fingerprint,
            "catalogue": catalogue.stamp(config.data.path),
        },
    )
    if jax.process_index() == 0:
        (workdir / "eval").mkdir(exist_ok=True)
        whole_file.write_json(workdir / "eval" / f"{step}.json", results)
        if metrics.keys() >= expert_load.NEEDS:
            expert_load.write(metrics, workdir / "expert_load.png", f"expert load in step {step} of {config.name}")
    log.write_evaluation(step, results["metrics"])
    log.show(task.table(results))
    return results


def _check_finite(metrics: dict[str, jax.Array], step: int) -> None:
    for name in ("loss", "grad_norm"):
        if not np.isfinite(metrics[name]):
            raise TrainingError(
                f"the {name} is {float(metrics[name])} at step {step}; the last checkpoint is from before it. "
                f"Look at grad_norm in metrics.jsonl; a lower config.train.lr is the usual remedy"
            )


FLAGS = CommandFlags(__name__)
CONFIG = FLAGS.config(None, "the recipe: configs/NAME.py or configs/NAME.py:ARGUMENT")
WORKDIR = FLAGS.string("workdir", None, "folder for checkpoints, logs and results; an existing one is resumed")
DRY_RUN = FLAGS.bool("dry-run", False, "print parameters, mesh, negatives, tokens, bytes and steps, then stop")

if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    FLAGS.run(main)
