"""Documents in, unit vectors out: the one path that evaluation and embedding share with training."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array, Float

from moon_jax.config import Config
from moon_jax.data.documents import Document
from moon_jax.data.pipeline import DocumentBatches, stream
from moon_jax.data.tokenizer import Tokenizer
from moon_jax.models import moon
from moon_jax.parallel.mesh import BATCH_SPEC, batch_shards, host_shards, place_batch


class Encoder:
    """Embeds documents with parameters that lie on the mesh; compiles once for each number of pictures per document.

    Routing is always dropless here, whatever capacity training uses, so that an embedding does not depend on what else
    is in the batch.
    """

    def __init__(self, config: Config, mesh: Mesh, tokenizer: Tokenizer):
        """Prepares the compiled function; parameters are given to each call."""
        self.config, self.mesh, self.tokenizer = config, mesh, tokenizer
        moe = dataclasses.replace(config.moe, capacity_factor=0.0, guided_capacity=0.0)
        self._graphdef, _, self._specs = moon.abstract(config.model, moe)
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
        batches = DocumentBatches(
            documents, self.tokenizer, self.config, batch_shards(self.mesh), host_shards(self.mesh)
        )
        forward = functools.partial(self._forward, batches.shape.documents)
        parts = []
        with jax.set_mesh(self.mesh):
            for _, batch in stream(batches, 0, len(batches), self.config.data.workers, self.config.data.prefetch):
                out = forward(params, place_batch(batch.arrays, self.mesh))
                out = multihost_utils.process_allgather(out, tiled=True)
                parts.append(np.asarray(out).reshape(-1, out.shape[-1]))
        width = self.config.model.text.hidden_size
        return np.concatenate(parts)[: len(documents)] if parts else np.zeros((0, width), np.float32)
