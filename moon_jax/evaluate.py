"""Evaluates models: `python -m moon_jax.evaluate --config=configs/eval.py:catalogue --model=DIR --workdir=W`.

Five tasks, zero-shot: retrieval by picture, by text and by both; classification at every level of the category;
prediction of attributes. docs/evaluation.md says how each is measured. The work folder receives

  results.json       all measures with intervals, by part, seen and unseen products, kind of query, industry, level,
                     attribute; and the settings, fingerprints and counts behind them
  predictions.jsonl  every query with its first ten answers
  report.html        both as one page with pictures
  embeddings/        vectors by model: what is there is not computed again, and a killed run goes on

    --model=DIR                    a Hugging Face folder of Qwen2.5-VL, a converted model, or a training run
    --baselines=clip=DIR,gme=DIR   other models in local folders, through torch (extra [torch]); docs/baselines.md
    --embeddings=mine=DIR          vectors that another system made of the documents that --documents=DIR wrote
    --config.eval.ks=1,5,10        and every other setting
    --runs=DIR,DIR                 training runs whose curves the report shows

A model of a training run is compared with the benchmark: where the run may have trained on products that count as
unseen here, the command says so, and results.json has it under methods.model.trained_on.

    python -m moon_jax.evaluate --config=configs/eval.py:shop --config.data.path=DATA --model=runs/shop --workdir=W
"""

import dataclasses
import functools
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging
from jax.sharding import Mesh

from moon_jax.command_flags import CommandFlags, pairs
from moon_jax.config import Config, ConfigError, resolve
from moon_jax.data import catalogue, whole_file
from moon_jax.data.records import DataError, Dataset
from moon_jax.data.tokenizer import TokenizerError
from moon_jax.encoder import DTYPES
from moon_jax.evaluation import page
from moon_jax.evaluation.baselines import NAMES, BaselineError, open_baseline
from moon_jax.evaluation.benchmark import Benchmark, build
from moon_jax.evaluation.embedded import Model, embed_with_baseline, embed_with_model, open_model
from moon_jax.evaluation.given import GivenVectors, write_documents
from moon_jax.evaluation.predictions import writer
from moon_jax.evaluation.results import table
from moon_jax.evaluation.tasks import COLOR_HISTOGRAM, MODEL, Method, color_histogram, score
from moon_jax.parallel.mesh import make_mesh
from moon_jax.parallel.processes import meet, together
from moon_jax.training.embedder import EmbeddingError
from moon_jax.training.inputs import make_folder, open_dataset
from moon_jax.training.saved_params import SavedParams
from moon_jax.weights.source import WeightsError

RESULTS, PREDICTIONS, EMBEDDINGS = "results.json", "predictions.jsonl", "embeddings"
_MISTAKES = (ConfigError, DataError, EmbeddingError, TokenizerError, WeightsError, BaselineError, OSError)


@dataclasses.dataclass(frozen=True)
class Torch:
    """How baselines are run: see `open_baseline`."""

    device: str = "cpu"
    dtype: str = "float32"


def main(argv: list[str]) -> None:
    """Reads the flags and runs; mistakes of the user end with one plain message instead of a traceback."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; settings are given as --config.group.name=value")
    logging.set_verbosity(logging.WARNING)
    try:
        config = resolve(CONFIG.value)
        if not WORKDIR.value:
            raise ConfigError("--workdir is needed: the folder that receives results and embeddings")
        if DOCUMENTS.value:
            print(list_documents(config, pathlib.Path(WORKDIR.value), DOCUMENTS.value))
            return
        with together(*_MISTAKES):
            mesh = make_mesh(config.mesh)
            meet(mesh)
            results = run(
                config,
                pathlib.Path(WORKDIR.value),
                mesh,
                model=MODEL_FOLDER.value,
                baselines=_baselines(pairs("baselines", BASELINES.value, "NAME=DIR")),
                embeddings=_embeddings(pairs("embeddings", EMBEDDINGS_FOLDERS.value, "NAME=DIR")),
                dtype=DTYPE.value,
                max_pixels=MAX_PIXELS.value,
                torch=Torch(TORCH_DEVICE.value, TORCH_DTYPE.value),
                runs=RUNS.value,
            )
    except _MISTAKES as error:
        sys.exit(f"{type(error).__name__}: {error}")
    if jax.process_index() == 0:
        print(table(results))


def run(
    config: Config,
    workdir: pathlib.Path,
    mesh: Mesh,
    *,
    model: str | None = None,
    baselines: Mapping[str, str] | None = None,
    embeddings: Mapping[str, str] | None = None,
    dtype: str | None = None,
    max_pixels: int | None = None,
    torch: Torch = Torch(),
    runs: tuple[str, ...] | list[str] = (),
) -> dict[str, Any]:
    """Returns the results, after writing them with predictions and report to workdir.

    Args:
        config: `data` and `eval`.
        workdir: made if it is not there.
        mesh: the devices that the model runs on.
        model: folder; None = only baselines.
        baselines: name -> folder.
        embeddings: name -> folder of vectors that another system made.
        dtype: of the model's computation; None = the checkpoint's.
        max_pixels: of a picture, where a model leaves it open; None = the model's own.
        torch: how baselines are run.
        runs: work folders of training, for the report.

    Raises:
        ConfigError: nothing to evaluate, settings that do not fit together, or no folder of training among the runs.
        DataError: data or saved embeddings cannot be used, or a file that the report shows.
        WeightsError: the model cannot be used.
        BaselineError: a baseline cannot be used.
    """
    baselines, embeddings = baselines or {}, embeddings or {}
    if not (model or baselines or embeddings or config.eval.color_histogram):
        raise ConfigError(
            "there is nothing to evaluate: give --model=DIR, --baselines=NAME=DIR or --embeddings=NAME=DIR"
        )
    if (baselines or embeddings) and jax.process_count() > 1:
        raise ConfigError(
            "--baselines and --embeddings run in one process: evaluate them in a run of their own, the model later"
        )
    try:
        page.check_runs(runs)
    except ValueError as error:
        raise ConfigError(f"--runs: {error}") from None
    opened = open_model(model, dtype, max_pixels) if model else None  # what is wrong with it is known at once
    given = [GivenVectors(name, place) for name, place in embeddings.items()]
    config, dataset, benchmark = _open(config, workdir)
    for vectors in given:
        vectors.find(benchmark.documents)  # what lacks is known before the model embeds
    if opened is not None:
        _warn(opened, config)
        if trained_on := _trained_on(opened, config, dataset):
            opened = dataclasses.replace(opened, about={**opened.about, "trained_on": trained_on})
    methods: dict[str, Method] = {}
    folder, documents = workdir / EMBEDDINGS, benchmark.documents
    if opened is not None:
        with opened.found:
            methods[MODEL] = embed_with_model(MODEL, opened, documents, folder, config, mesh)
    for name, place in baselines.items():
        settings = dict(device=torch.device, dtype=torch.dtype, batch_size=config.eval.batch_documents)
        found = open_baseline(name, place, **settings, max_pixels=max_pixels)
        methods[name] = embed_with_baseline(name, found, documents, folder, config)
    for vectors in given:
        methods[vectors.name] = embed_with_baseline(vectors.name, vectors, documents, folder, config)
    if config.eval.color_histogram:
        methods[COLOR_HISTOGRAM] = color_histogram(benchmark, config.data.on_error)
    results = _score(benchmark, methods, dataset, config, workdir)
    if jax.process_index() == 0:
        try:
            page.write(workdir, dataset=dataset, embedded=_listings(benchmark, methods), runs=runs)
        except ValueError as error:
            raise DataError(f"{workdir / RESULTS} is written, but no {page.NAME}: {error}") from error
    return results


def list_documents(config: Config, workdir: pathlib.Path, folder: str) -> str:
    """Writes what another system must embed to a folder; returns what was written, in words.

    Raises:
        ConfigError, DataError: see `run`.
    """
    _, _, benchmark = _open(config, workdir)
    counts = write_documents(benchmark.documents, folder)
    return f"{folder}: {', '.join(f'{name} with {count} records' for name, count in counts.items())}"


def _open(config: Config, workdir: pathlib.Path) -> tuple[Config, Dataset, Benchmark]:
    """Returns the config with what the data says, the data and what is asked of them."""
    make_folder(workdir)
    data, dataset = open_dataset(config.data, workdir)
    config = dataclasses.replace(config, data=data)
    return config, dataset, build(dataset, config, config.eval.max_queries)


def _score(
    benchmark: Benchmark, methods: Mapping[str, Method], dataset: Dataset, config: Config, workdir: pathlib.Path
) -> dict[str, Any]:
    about = {"catalogue": catalogue.stamp(config.data.path)} if config.data.format == "catalogue" else {}
    measure = functools.partial(
        score, benchmark, methods, dataset, config, about=about, max_queries=config.eval.max_queries
    )
    if jax.process_index() != 0:
        return measure()
    for name in (RESULTS, page.NAME):  # never beside the predictions of another evaluation
        (workdir / name).unlink(missing_ok=True)
    with writer(workdir / PREDICTIONS) as write:
        results = measure(write=write)
    whole_file.write_json(workdir / RESULTS, results)
    return results


def _listings(benchmark: Benchmark, methods: Mapping[str, Method]) -> page.Embedded | None:
    """Returns the model's embeddings of the listings, for the map."""
    if MODEL not in methods:
        return None
    method = methods[MODEL]
    ids = [name for name, document in benchmark.items.items() if method.rows[document] >= 0]
    return page.Embedded(ids, lambda names: np.array(method.take(np.array([benchmark.items[name] for name in names]))))


def _baselines(given: tuple[tuple[str, str], ...]) -> dict[str, str]:
    unknown = [name for name, _ in given if name not in NAMES]
    if unknown:
        raise ConfigError(f"--baselines: {unknown[0]!r} is not known; there are {', '.join(NAMES)}")
    if len(dict(given)) < len(given):
        raise ConfigError("--baselines: a name is given twice; use a work folder for each of two folders of a kind")
    return dict(given)


def _embeddings(given: tuple[tuple[str, str], ...]) -> dict[str, str]:
    for name, _ in given:
        if name in (MODEL, COLOR_HISTOGRAM, *NAMES) or not name.replace("-", "").isidentifier():
            raise ConfigError(
                f"--embeddings: {name!r} cannot be the name of a method: letters, digits, - and _, and none of "
                f"{', '.join((MODEL, COLOR_HISTOGRAM, *NAMES))}"
            )
    if len(dict(given)) < len(given):
        raise ConfigError("--embeddings: a name is given twice")
    return dict(given)


def _warn(model: Model, config: Config) -> None:
    """Says where the benchmark shows a listing otherwise than the model was trained with; it is the same for all."""
    for name in ("images_per_item", "description"):
        theirs, ours = getattr(model.found.spec.data, name), getattr(config.data, name)
        if theirs != ours and model.found.kind != "hf" and jax.process_index() == 0:
            print(
                f"the model was trained with config.data.{name} = {theirs}, this benchmark shows {ours} "
                f"(--config.data.{name}={theirs} changes that, for all methods)",
                file=sys.stderr,
            )


def _trained_on(model: Model, config: Config, dataset: Dataset) -> dict[str, Any] | None:
    """Returns on which data the model's run was trained, as far as it matters here; None where that is not known.

    {"data": fingerprint, "unseen_share": ..., "same_data": whether the benchmark has the same data and the same split,
    "unseen_may_be_trained_on": whether products that count as unseen here may have been trained on}. Says the last on
    the terminal.
    """
    if not isinstance(model.found.source, SavedParams):
        return None
    meta = model.found.source.manifest["meta"]
    if not meta.keys() >= {"data", "config"}:
        return None
    data, theirs, ours = meta["data"], meta["config"]["data"]["unseen_share"], config.data.unseen_share
    same = data == dataset.fingerprint
    if not same and dataset.unseen and jax.process_index() == 0:
        said = (
            f"with config.data.unseen_share = {theirs:g}, this benchmark has {ours:g}: "
            if theirs < ours
            else "on other data than this benchmark, or on data read with other settings (the fingerprints differ): "
        )
        print(f'the model was trained {said}"unseen" products here may have been trained on', file=sys.stderr)
    return {
        "data": data,
        "unseen_share": theirs,
        "same_data": same,
        "unseen_may_be_trained_on": not same and bool(dataset.unseen),
    }


FLAGS = CommandFlags(__name__)
CONFIG = FLAGS.config(None, "the benchmark: configs/eval.py:mbe|m5product|shop|catalogue")
WORKDIR = FLAGS.string("workdir", None, "folder for results, predictions and embeddings")
MODEL_FOLDER = FLAGS.string("model", None, "folder of the model: Hugging Face, converted, or a training run's")
BASELINES = FLAGS.list("baselines", [], f"NAME=DIR of models to compare with; the names are {', '.join(NAMES)}")
EMBEDDINGS_FOLDERS = FLAGS.list("embeddings", [], "NAME=DIR of vectors that another system made of --documents")
DOCUMENTS = FLAGS.string("documents", None, "only write what another system must embed to this folder")
DTYPE = FLAGS.enum("dtype", None, DTYPES, "of the model's weights and computation; by default the checkpoint's")
MAX_PIXELS = FLAGS.integer("max_pixels", None, "larger pictures are scaled down to it; by default each model's own")
TORCH_DEVICE = FLAGS.string("torch_device", "cpu", "where baselines run: cpu, cuda, cuda:1")
TORCH_DTYPE = FLAGS.string("torch_dtype", "float32", "what baselines compute in: float32, bfloat16, float16")
RUNS = FLAGS.list("runs", [], "work folders of training whose curves the report shows")

if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    FLAGS.run(main)
