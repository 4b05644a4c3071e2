r"""Trains variants of a recipe with several seeds and compares them: `python -m moon_jax.ablate --config=FILE ...`.

    python -m moon_jax.ablate --config=configs/demo.py --seeds=3 --workdir=runs/ablation
    python -m moon_jax.ablate --config=configs/demo.py --workdir=runs/pictures --variants=full,several_pictures
    python -m moon_jax.ablate --config=configs/shop.py --config.data.path=DATA --workdir=runs/tau \
        --variants=full,no_crop+no_moe,cold:loss.temperature=0.03,colder:loss.temperature=0.01+train.lr=1e-3

A variant is one of the words full, no_crop, no_moe, no_neg, several_pictures, several of them joined by "+", or
NAME:KEY=VALUE+KEY=VALUE. The others are compared with `full`, the recipe as it is; settings on the command line
(--config.train.steps=500) hold for all. Every run has the same number of steps and triplets and answers the same
questions, or the command refuses; what a step costs may differ.

The work folder receives
  VARIANT/seedN/        the work folder of moon_jax.train, and result.json when it is done
  catalogue/            the drawn catalogue, where the recipe has one: the same for all runs
  ablation.txt          means, spreads over seeds, differences to `full` with the same seed (paper, Fig. 8)
  ablation.json, .csv   the same for every measure of the evaluation, with the values of each seed
  ablation.png, .svg    bars
All five tasks are evaluated, whatever config.eval.tasks says. Stopped at any time (Ctrl-C saves the run that is under
way), the same command goes on; more seeds or variants can be asked for later. Runs are done seed by seed.
"""

import contextlib
import dataclasses
import gc
import json
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from absl import app, flags, logging

from moon_jax import train
from moon_jax.command_flags import CommandFlags
from moon_jax.config import Config, ConfigError, TrainConfig, to_dict
from moon_jax.config_ablations import FULL, variants
from moon_jax.data import sources, whole_file
from moon_jax.data.identity import differences
from moon_jax.evaluation import ablation, ablation_figure
from moon_jax.evaluation.choices import TASKS
from moon_jax.parallel.agreement import STOPPED
from moon_jax.parallel.mesh import make_mesh
from moon_jax.parallel.processes import meet, say, together
from moon_jax.training.inputs import drawn, make_folder

RESULT = "result.json"
Job = tuple[str, TrainConfig]  # a variant with one of its seeds
# What every variant must share with `full`, or a difference would say nothing of what is left out.
BUDGET = (
    "train.steps", "train.batch_size", "train.seed", "data.format", "data.path", "data.parts", "data.unseen_share",
    "data.catalogue_products", "data.image_folder", "data.image_store", "data.boxes", "data.columns", "data.mbe_keys",
    "data.on_error", "eval.ks", "eval.gallery", "eval.candidates", "eval.tasks", "eval.expected_queries",
)  # fmt: skip
_CATALOGUE, _OURS = "catalogue", "ablation."  # what else lies beside the folders of the variants


def main(argv: list[str]) -> None:
    """Reads the flags and runs; mistakes of the user end with one plain message instead of a traceback."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; settings are given as --config.group.name=value")
    logging.set_verbosity(logging.WARNING)
    try:
        with together(*train.MISTAKES):
            chosen = plan(CONFIG.value, VARIANTS.value)
            meet(make_mesh(chosen[FULL].mesh))
            if not run(chosen, SEEDS.value, pathlib.Path(WORKDIR.value).expanduser().absolute()):
                sys.exit(STOPPED)
    except train.MISTAKES as error:
        sys.exit(f"{type(error).__name__}: {error}")


def plan(base: Any, said: str) -> dict[str, Config]:
    """Returns the config of every variant, all with the five tasks.

    Raises:
        ConfigError: a variant that is not understood, changes the budget, or has the name of a file of ours.
    """
    base = base.copy_and_resolve_references()
    base.eval.tasks = TASKS
    chosen = variants(base, said)
    if taken := [name for name in chosen if name.lower() == _CATALOGUE or name.lower().startswith(_OURS)]:
        raise ConfigError(
            f"the variant {taken[0]!r} needs another name: the work folder has a file or folder of that name"
        )
    problems = [
        f"{name!r} changes config.{key}: {_value(chosen[FULL], key)!r} in {FULL}, {_value(config, key)!r} in {name}"
        for name, config in chosen.items()
        for key in BUDGET
        if _value(config, key) != _value(chosen[FULL], key)
    ]
    if problems:
        raise ConfigError(
            "all variants must train on the same triplets for as long and answer the same questions (settings for all "
            "of them are given as --config.group.name=value):\n" + "\n".join(f"  - {problem}" for problem in problems)
        )
    return chosen


def run(chosen: Mapping[str, Config], seeds: int, workdir: pathlib.Path) -> dict[str, Any] | None:
    """Returns and writes the comparison, after training what is missing; None where a signal stopped it.

    Args:
        chosen: config by variant.
        seeds: each variant is trained with config.train.seed, that plus 1, ...
        workdir: made if it is not there.

    Raises:
        ConfigError: a finished run there had other settings or other data, or the runs do not fit together.
        TrainingError: a loss is not finite; names the variant and the seed.
    """
    make_folder(workdir)
    jobs = [
        (name, dataclasses.replace(config.train, seed=config.train.seed + number))
        for number in range(seeds)
        for name, config in chosen.items()
    ]
    folders = {job: workdir / job[0] / f"seed{job[1].seed}" for job in jobs}
    inputs = {name: drawn(config.data, workdir) for name, config in chosen.items()}
    configs = {job: dataclasses.replace(chosen[job[0]], train=job[1], data=inputs[job[0]]) for job in jobs}
    done = {job: _finished(folders[job] / RESULT, configs[job]) for job in jobs}
    _check_same_data(done, configs, folders)
    for number, job in enumerate(jobs, 1):
        if done[job] is None:
            say(f"{job[0]}, seed {job[1].seed}: run {number} of {len(jobs)}, in {folders[job]}")
            done[job] = _train(job[0], configs[job], folders[job])
        if done[job] is None:
            return None
    found = [ablation.Run(name, t.seed, done[name, t]["results"], done[name, t]["seconds"]) for name, t in jobs]
    summary = ablation.summarize(found, FULL)
    summary |= {
        "name": chosen[FULL].name.removesuffix(f"_{FULL}"),
        "budget": {key: _value(chosen[FULL], key) for key in BUDGET},
        "settings": {name: _changes(chosen[FULL], config) for name, config in chosen.items()},
        "runs": [{"variant": one.variant, "seed": one.seed, "seconds": one.seconds} for one in found],
        "about": found[0].results["about"],
    }
    text = ablation.table(summary)
    if jax.process_index() == 0:
        whole_file.write_json(workdir / "ablation.json", summary)
        whole_file.write_text(workdir / "ablation.csv", ablation.to_csv(summary))
        whole_file.write_text(workdir / "ablation.txt", text + "\n")
        ablation_figure.write(summary, workdir / "ablation.png", _title(summary))
        print(text)
        print(f"\nwritten to {workdir}/ablation.txt, .json, .csv, .png and .svg")
    return summary


def _train(name: str, config: Config, folder: pathlib.Path) -> dict[str, Any] | None:
    """Returns and writes what a training run came to; None where a signal stopped it."""
    fresh, started = not (folder / "checkpoints").exists(), time.perf_counter()
    with _own_settings():
        try:
            results = train.run(config, folder)
        except (train.TrainingError, ConfigError) as error:
            raise type(error)(f"{name}, seed {config.train.seed}: {error}") from error
    if not results:
        return None
    seconds = round(time.perf_counter() - started, 1) if fresh else None
    kept = {key: results[key] for key in ("about", "config", "data", "counts", "metrics")}
    result = json.loads(json.dumps({"config": to_dict(config), "seconds": seconds, "results": kept}))
    if jax.process_index() == 0:
        whole_file.write_json(folder / RESULT, result)
    return result


@contextlib.contextmanager
def _own_settings() -> Iterator[None]:
    """Leaves nothing of a run behind: its precision, its programs and its arrays."""
    before = jax.config.jax_default_matmul_precision
    try:
        yield
    finally:
        jax.config.update("jax_default_matmul_precision", before)
        jax.clear_caches()
        gc.collect()


def _finished(path: pathlib.Path, config: Config) -> dict[str, Any] | None:
    """Returns what a run that is done came to; None where it is not.

    Raises:
        ConfigError: it had other settings.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    free = ("mesh", "model.remat", "model.attention_impl", "data.workers", "data.prefetch", "data.path")
    if said := differences(*(train.compared(settings, free) for settings in (found["config"], to_dict(config)))):
        raise ConfigError(f"{path.parent} was trained with other settings (choose another --workdir):\n{said}")
    return found


def _check_same_data(
    done: Mapping[Job, dict[str, Any] | None], configs: Mapping[Job, Config], folders: Mapping[Job, pathlib.Path]
) -> None:
    """Refuses finished runs on other data than those that lie at the path now; the same data may have moved.

    Nothing is read where all runs are done and the path is theirs: then `ablation.summarize` compares them.

    Raises:
        ConfigError: names the run.
    """
    paths = {job: found["config"]["data"]["path"] for job, found in done.items() if found is not None}
    if not paths or (len(paths) == len(done) and all(configs[job].data.path == path for job, path in paths.items())):
        return
    data = configs[next(iter(paths))].data  # the same for all: see BUDGET
    now = sources.read(data).fingerprint
    for job, path in paths.items():
        if done[job]["results"]["data"]["fingerprint"] != now:
            raise ConfigError(
                f"{folders[job]} was trained on other data than those of now (choose another --workdir):\n"
                f"  - config.data.path was {path!r}, is {data.path!r}"
                + (", and what lies there has changed" if path == data.path else "")
            )


def _value(config: Config, key: str) -> Any:
    return train.flat(to_dict(config))[key]


def _changes(full: Config, config: Config) -> dict[str, Any]:
    """Returns the settings in which a variant differs from the full one."""
    before, now = train.flat(to_dict(full)), train.flat(to_dict(config))
    return {key: now[key] for key in now if now[key] != before.get(key) and key != "name"}


def _title(summary: Mapping[str, Any]) -> str:
    budget, seeds = summary["budget"], len(summary["seeds"])
    return f"{summary['name']}: {budget['train.steps']:,} steps of {budget['train.batch_size']} triplets, {seeds} seeds"


FLAGS = CommandFlags(__name__)
CONFIG = FLAGS.config(None, "the recipe: configs/NAME.py or configs/NAME.py:ARGUMENT")
WORKDIR = FLAGS.string("workdir", None, "folder for all runs and the comparison; what is done there is not done again")
SEEDS = FLAGS.integer("seeds", 3, "runs of each variant", lower_bound=1)
VARIANTS = FLAGS.string("variants", "full,no_crop,no_moe,no_neg", "what to train, joined by commas; see above")

if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    FLAGS.run(main)
