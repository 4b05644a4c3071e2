"""The methods of an evaluation: each embeds a benchmark's documents, as far as they are not on the disk already."""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from moon_jax.config import Config, Role
from moon_jax.data.documents import Document, Segment
from moon_jax.data.picture_files import ImageError, load
from moon_jax.data.records import DataError
from moon_jax.encoder import Encoder, from_pretrained, with_max_pixels
from moon_jax.evaluation.baselines import Baseline
from moon_jax.evaluation.tasks import Method
from moon_jax.evaluation.vectors import WINDOW, Batch, SavedVectors
from moon_jax.parallel.mesh import batch_shards
from moon_jax.training.pretrained import Pretrained, open_pretrained
from moon_jax.weights.source import fingerprint
from moon_jax.weights.spec import describe

BASELINE_WINDOW = 512  # documents that a baseline is given at once: what a kill loses at most

_ANY = Document((), (Segment(Role.TITLE, "any"),))  # where no document is left, to know how wide a vector is

# What the benchmark decides and not the model, or has no part in an embedding.
_NOT_OF_THE_MODEL = ("images_per_item", "description", "grounding")


@dataclasses.dataclass(frozen=True)
class Model:
    """A checkpoint that is evaluated.

    Attributes:
        found: opened; its weights are read when something must be embedded.
        dtype: of the computation.
        about: what the results say of it; "fingerprint" covers all that decides an embedding.
    """

    found: Pretrained
    dtype: str
    about: Mapping[str, Any]


def open_model(path: str | os.PathLike[str], dtype: str | None = None, max_pixels: int | None = None) -> Model:
    """Returns the model in a folder, its weights not yet read.

    Args:
        path: any folder that `moon_jax.load` takes.
        dtype: of the computation; None = the checkpoint's.
        max_pixels: instead of the model's own limit of a picture.

    Raises:
        WeightsError: see `open_pretrained`.
    """
    found = open_pretrained(path)
    if max_pixels is not None:
        found = with_max_pixels(found, max_pixels)
    settings = describe(found.spec)
    settings["data"] = {name: value for name, value in settings["data"].items() if name not in _NOT_OF_THE_MODEL}
    settings["model"] = {name: value for name, value in settings["model"].items() if name != "dtype"}
    about = {
        "name": pathlib.Path(path).name,
        "kind": found.kind,
        "weights": fingerprint(found.source),
        "tokenizer": found.load_tokenizer().fingerprint,
        "dtype": dtype or found.spec.model.dtype,
        "settings": settings,
    }
    told = json.dumps({name: value for name, value in about.items() if name not in ("name", "kind")}, sort_keys=True)
    return Model(found, about["dtype"], {"fingerprint": hashlib.sha256(told.encode()).hexdigest(), **about})


def embed_with_model(
    name: str, model: Model, documents: Sequence[Document], folder: pathlib.Path, config: Config, mesh: Mesh
) -> Method:
    """Returns the vectors of documents by a model; what lacks in the folder is embedded, sharded over the mesh.

    The batches have the same shapes on any number of devices.

    Args:
        name: of the method.
        model: opened.
        documents: of a benchmark.
        folder: of all saved embeddings.
        config: `eval.batch_documents` and `data.on_error`.
        mesh: the devices.

    Raises:
        DataError: a picture cannot be read, or too many are left out.
    """
    encoders: list[Encoder] = []  # loaded when it is needed

    def batches(window: Sequence[Document], first: int) -> Iterator[Batch]:
        encoders[:] = encoders or [from_pretrained(model.found, mesh, model.dtype, progress=True)]
        for part in encoders[0].parts(
            [window],
            start=(0, first),
            batch_size=config.eval.batch_documents,
            on_error=config.data.on_error,
            alike=True,
        ):
            yield part.rows, part.vectors, part.left_out

    plan = f"{batch_shards(mesh)} shards of {config.eval.batch_documents}"
    return _saved(name, model.about, documents, folder, config, batches, plan, WINDOW)


def embed_with_baseline(
    name: str, baseline: Baseline, documents: Sequence[Document], folder: pathlib.Path, config: Config
) -> Method:
    """Returns the vectors of documents by a baseline; what lacks in the folder is embedded.

    Where a picture cannot be read and `config.data.on_error` is "skip", its document is left out altogether, as by the
    model.

    Raises:
        BaselineError: a document cannot be embedded.
        ImageError: a picture cannot be read.
        DataError: too many are left out.
    """

    def batches(window: Sequence[Document], first: int) -> Iterator[Batch]:
        rows = np.arange(len(window))
        try:
            yield rows, np.asarray(baseline.embed(window), np.float32), {}
        except ImageError:
            if config.data.on_error != "skip":
                raise
            left_out = dict(_unreadable(window))
            if not left_out:
                raise
            kept = [row for row in range(len(window)) if row not in left_out]
            found = np.asarray(baseline.embed([window[row] for row in kept] or [_ANY]), np.float32)
            vectors = np.zeros((len(window), found.shape[1]), np.float32)
            vectors[kept] = found[: len(kept)]
            yield rows, vectors, left_out

    about = {"fingerprint": baseline.fingerprint, "about": baseline.about}
    return _saved(name, about, documents, folder, config, batches, "", BASELINE_WINDOW)


def _unreadable(window: Sequence[Document]) -> Iterator[tuple[int, str]]:
    """Yields (number, why) of the documents of which a picture cannot be read."""
    for row, document in enumerate(window):
        try:
            for image in document.images:
                load(image.path)
        except ImageError as error:
            yield row, str(error)


def _saved(
    name: str,
    about: Mapping[str, Any],
    documents: Sequence[Document],
    folder: pathlib.Path,
    config: Config,
    batches: Callable[[Sequence[Document], int], Iterator[Batch]],
    plan: str,
    window: int,
) -> Method:
    saved = SavedVectors(folder / f"{name}-{about['fingerprint'][:16]}", {"fingerprint": about["fingerprint"]})
    saved.fill(documents, batches, name, plan=plan, window=window)
    rows = saved.rows(documents)
    left_out = int((rows < 0).sum())
    if left_out > config.data.max_skipped_share * len(rows):
        why = next(iter(saved.left_out.values()))
        raise DataError(
            f"{left_out} of {len(rows)} documents could not be embedded, more than config.data.max_skipped_share = "
            f"{config.data.max_skipped_share:g}; the first: {why}"
        )
    embedded = {"windows": saved.windows, "batch_documents": config.eval.batch_documents}
    return Method(saved.vectors, rows, {**about, "embedded": embedded})
