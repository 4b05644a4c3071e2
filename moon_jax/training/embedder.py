"""Documents in, unit vectors out, with parameters given to each call: what training, evaluation and encoding share."""

import concurrent.futures
import contextlib
import dataclasses
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, Int

from moon_jax.config import Config
from moon_jax.data.document_batches import DocumentBatches
from moon_jax.data.documents import Document
from moon_jax.data.pipeline import stream
from moon_jax.data.records import DataError
from moon_jax.data.tokenizer import Tokenizer
from moon_jax.models import moon
from moon_jax.parallel.agreement import same, total
from moon_jax.parallel.mesh import BATCH_SPEC, batch_shards, host_shards, place_batch

WINDOW_BATCHES = 64  # documents are sorted by size within so many batches, all of which are planned together
_ELSEWHERE = "a picture cannot be read (another process logs which)"


@dataclasses.dataclass(frozen=True)
class Part:
    """The vectors of one batch."""

    window: int
    batch: int  # its number in the window
    rows: Int[np.ndarray, " n"]  # the documents' places in the window
    vectors: Float32[np.ndarray, "n d"]  # zeros where a document was left out
    left_out: Mapping[int, str]  # why, by place in the window
    info: Mapping[str, int]  # counts, see DocumentBatches


class EmbeddingError(RuntimeError):
    """The model gave something that is no embedding."""


class Embedder:
    """Embeds documents with parameters that lie on the mesh; compiles once for each shape of a batch, a handful.

    Routing is always dropless here, whatever capacity training uses, so that an embedding does not depend on what else
    is in the batch.
    """

    def __init__(self, config: Config, mesh: Mesh, tokenizer: Tokenizer):
        """Prepares the compiled function; parameters are given to each call."""
        self.config, self.mesh, self.tokenizer = config, mesh, tokenizer
        moe = dataclasses.replace(config.moe, capacity_factor=0.0, guided_capacity=0.0)
        self._graphdef, _, self._specs = moon.abstract(config.model, moe, mesh)
        self._forward = jax.jit(self._embed, static_argnums=0)

    def _embed(self, documents: int, params: Any, batch: Mapping[str, Array]) -> Float[Array, "g e d"]:
        def shard(params, batch):
            batch = {name: array[0] for name, array in batch.items()}  # the shard axis, of length 1 in here
            return nnx.merge(self._graphdef, params).embed(batch, documents)[0][None]

        return jax.shard_map(shard, mesh=self.mesh, in_specs=(self._specs, BATCH_SPEC), out_specs=BATCH_SPEC)(
            params, dict(batch)
        )

    def embed(self, params: Any, documents: Sequence[Document]) -> Float[np.ndarray, "n d"]:
        """Returns float32 unit vectors in the order of the documents, on every process.

        Args:
            params: the model's parameters, sharded as `moon.abstract` says.
            documents: anything from one text to several pictures with their texts.
        """
        size = window_documents(self.config.eval.batch_documents, self.mesh)
        out = np.zeros((len(documents), self.config.model.text.hidden_size), np.float32)
        windows = (documents[start : start + size] for start in range(0, len(documents), size))
        for part in self.parts(params, windows):
            out[part.window * size + part.rows] = part.vectors
        return out

    def parts(
        self,
        params: Any,
        windows: Iterable[Sequence[Document | None]],
        *,
        start: tuple[int, int] = (0, 0),
        batch_documents: int = 0,
        on_error: str = "",
        whole: bool = False,
        alike: bool = False,
    ) -> Iterator[Part]:
        """Yields the vectors batch by batch, on every process; while one is computed, the next ones are prepared.

        Each window is sorted and cut into batches by itself: the same window gives the same batches and bits.

        Args:
            params: as for `embed`.
            windows: documents that may be put into any order, None where there is nothing to embed.
            start: (number of the first window in `windows`, its first batch that is wanted).
            batch_documents: of a shard of a batch; 0 = `config.eval.batch_documents`.
            on_error: instead of `config.data.on_error`.
            whole: see `DocumentBatches`.
            alike: so is this.

        Raises:
            DataError: from `windows`, or a picture cannot be read.
        """
        data = dataclasses.replace(self.config.data, on_error=on_error or self.config.data.on_error)
        config, windows = dataclasses.replace(self.config, data=data), iter(windows)

        def plan() -> tuple[list[int], DocumentBatches] | None:
            window = next(windows, None)
            if window is None:
                return None
            places = [place for place, document in enumerate(window) if document is not None]
            return places, DocumentBatches(
                [window[place] for place in places], self.tokenizer, config, batch_shards(self.mesh),
                host_shards(self.mesh), batch_documents=batch_documents, whole=whole, alike=alike,
            )  # fmt: skip

        number, first = start
        waiting = None  # the batch that the devices compute while the one before is handed out
        with concurrent.futures.ThreadPoolExecutor(1) as planner:
            planned = planner.submit(plan)
            while (found := planned.result()) is not None:
                planned = planner.submit(plan)
                numbers, batches = found
                _check_same_plan(batches)
                for step, batch in stream(batches, first, len(batches), 0, config.data.prefetch):
                    out = self._run(params, len(batches.rows[step]) // batch_shards(self.mesh), batch.arrays)
                    if waiting is not None:
                        yield _fetch(*waiting)
                    rows = np.append(numbers, -1).astype(np.int64)[batches.rows[step]]
                    left_out = {numbers[i]: why for i, why in batch.left_out.items()}
                    waiting = out, rows, left_out, batch.info, number, step
                number, first = number + 1, 0
        if waiting is not None:
            yield _fetch(*waiting)

    def _run(self, params: Any, documents: int, arrays: Mapping[str, np.ndarray]) -> jax.Array:
        with jax.set_mesh(self.mesh), exact(self.config.model.dtype):
            return self._forward(documents, params, place_batch(arrays, self.mesh))


def window_documents(batch_documents: int, mesh: Mesh) -> int:
    """Returns how many documents a window should have, for `batch_documents` of a shard of a batch."""
    return WINDOW_BATCHES * batch_documents * batch_shards(mesh)


def exact(dtype: str) -> contextlib.AbstractContextManager:
    """Returns a context in which float32 products have float32 precision, which accelerators do not have by default."""
    return jax.default_matmul_precision("highest") if dtype == "float32" else contextlib.nullcontext()


def _fetch(
    out: jax.Array,
    rows: Int[np.ndarray, " places"],
    left_out: Mapping[int, str],
    info: Mapping[str, int],
    window: int,
    number: int,
) -> Part:
    """Returns the vectors of a batch, once they are computed.

    Args:
        out: [G, E, d].
        rows: place in the window of the document in each of the G * E places, -1 = none.
        left_out: why, by place in the window, as far as this process knows.
        info: counts of this process.
        window: number of the window.
        number: of the batch in it.

    Raises:
        EmbeddingError: a vector is not finite.
    """
    vectors = np.asarray(multihost_utils.process_allgather(out, tiled=True)).reshape(-1, out.shape[-1])
    rows, vectors = rows[rows >= 0], vectors[rows >= 0]
    if (bad := ~np.isfinite(vectors).all(axis=1)).any():
        raise EmbeddingError(
            f"{bad.sum()} of {len(bad)} vectors of a batch are not finite: are the weights what they should be?"
        )
    left_out = {int(row): left_out.get(int(row), _ELSEWHERE) for row in rows[~vectors.any(axis=1)]}
    return Part(window, number, rows, vectors, left_out, total(info, out.sharding.mesh))


def _check_same_plan(batches: DocumentBatches) -> None:
    """Checks that all processes have planned the same batches; they read the same files, each for itself."""
    if not same(zlib.crc32(repr(batches.buckets).encode()) >> 1):
        raise DataError("the processes do not see the same picture files: do all machines mount the same disk?")
