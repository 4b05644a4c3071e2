"""Documents in, the attention of their embeddings out: one map for every layer and head, by token."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Float32, Float64, Int32

from moon_jax.config import Config, Role
from moon_jax.data import images
from moon_jax.data.document_batches import DocumentBatches
from moon_jax.data.documents import Document
from moon_jax.data.tokenizer import Tokenizer
from moon_jax.models import moon
from moon_jax.models.attention_map import METHODS, attention_maps
from moon_jax.parallel.mesh import BATCH_AXES, BATCH_SPEC, batch_shards, host_shards, place_batch
from moon_jax.training.embedder import EmbeddingError, exact

_FIELDS = ("tokens", "roles", "segment_ids", "document_of_segment")


@dataclasses.dataclass(frozen=True)
class AttentionMap:
    """The attention of one document's embedding to its n tokens, as `models/attention_map.py` defines it.

    Attributes:
        tokens: token ids.
        roles: `Role` of each.
        weights: adds up to 1 over the tokens; heads in the order of Hugging Face. "rollout" has one layer and head.
        pictures: visual tokens (high, wide) and role of every picture, in the order of the document; the visual tokens
            of a picture are a run in raster order.
    """

    tokens: Int32[np.ndarray, " n"]
    roles: Int32[np.ndarray, " n"]
    weights: Float32[np.ndarray, "layers heads n"]
    pictures: tuple[tuple[tuple[int, int], Role], ...]


class AttentionMapper:
    """Computes the maps of documents with parameters that lie on the mesh; compiles once for each shape of a batch."""

    def __init__(self, config: Config, mesh: Mesh, tokenizer: Tokenizer, method: str = "attention"):
        """Prepares the compiled function; parameters are given to each call.

        Args:
            config: `model`, `moe` and `data`.
            mesh: where the parameters lie.
            tokenizer: of the model.
            method: one of `METHODS`.
        """
        if method not in METHODS:
            raise ValueError(f"the method is one of {', '.join(METHODS)}, not {method!r}")
        self.config, self.mesh, self.tokenizer, self._method = config, mesh, tokenizer, method
        moe = dataclasses.replace(config.moe, capacity_factor=0.0, guided_capacity=0.0)  # dropless, as in `Embedder`
        self._graphdef, _, self._specs = moon.abstract(config.model, moe, mesh)
        self._jitted = jax.jit(self._forward)

    def _forward(self, params: Any, batch: Mapping[str, Array]) -> Float[Array, "g l r k group s"]:
        def shard(params, batch):
            batch = {name: array[0] for name, array in batch.items()}  # the shard axis, of length 1 in here
            return attention_maps(nnx.merge(self._graphdef, params), batch, self._method)[None]

        kv, group = self._specs["text"]["layers"]["q"][-3:-1] if self._method == "attention" else (None, None)
        out = P(BATCH_AXES, None, None, kv, group, None)
        return jax.shard_map(shard, mesh=self.mesh, in_specs=(self._specs, BATCH_SPEC), out_specs=out)(
            params, dict(batch)
        )

    def maps(
        self, params: Any, documents: Sequence[Document], batch_documents: int = 1
    ) -> Iterator[tuple[int, AttentionMap]]:
        """Yields (number of a document, its map) batch by batch, on every process.

        Args:
            params: the model's parameters, sharded as `moon.abstract` says.
            documents: alike ones share a batch.
            batch_documents: of a shard of a batch.

        Raises:
            DataError: a picture cannot be read.
            EmbeddingError: a weight is not finite.
        """
        data = dataclasses.replace(self.config.data, on_error="raise")
        batches = DocumentBatches(
            documents, self.tokenizer, dataclasses.replace(self.config, data=data), batch_shards(self.mesh),
            host_shards(self.mesh), batch_documents=batch_documents,
        )  # fmt: skip
        for step in range(len(batches)):
            arrays = batches[step].arrays
            with jax.set_mesh(self.mesh), exact(self.config.model.dtype):
                placed = place_batch(arrays, self.mesh)
                fields = {name: placed[name] for name in _FIELDS} | {"maps": self._jitted(params, placed)}
                fields = {name: multihost_utils.process_allgather(x, tiled=True) for name, x in fields.items()}
            places = batches.rows[step].reshape(batch_shards(self.mesh), -1)
            for shard, place in np.argwhere(places >= 0).tolist():
                number = int(places[shard, place])
                yield number, self._of_document(fields, shard, place, documents[number])

    def _of_document(
        self, fields: Mapping[str, np.ndarray], shard: int, place: int, document: Document
    ) -> AttentionMap:
        (row,), (segment,) = np.nonzero(fields["document_of_segment"][shard] == place)
        there = fields["segment_ids"][shard, row] == segment
        weights = fields["maps"][shard, :, row][..., there]
        if not np.isfinite(weights).all():
            raise EmbeddingError(f"{document.name}: attention that is not finite: are the weights what they should be?")
        merge = self.config.model.vision.spatial_merge_size
        grids = images.grids(document, self.config.data, self.config.model.vision)
        return AttentionMap(
            fields["tokens"][shard, row][there],
            fields["roles"][shard, row][there],
            weights.reshape(len(weights), -1, there.sum()),
            tuple(((high // merge, wide // merge), role) for (high, wide), role in grids),
        )


def even_attention(tokens: int, causal: bool, rollout_layers: int = 0) -> Float64[np.ndarray, " n"]:
    """Returns the map of a document whose every token attends alike to all tokens that it sees.

    Bidirectional: 1 / n. Causal: a_j = (1 / n) sum_{i >= j} 1 / (i + 1), many times more at the start than at the end,
    which says nothing about what the document holds.

    Args:
        tokens: n.
        causal: whether a token sees only itself and what is before it.
        rollout_layers: of a rollout; 0 = the attention of one layer.
    """
    even = np.full(tokens, 1 / tokens)
    if causal:
        below = lambda weights: np.cumsum((weights / np.arange(1, tokens + 1))[::-1])[::-1]  # noqa: E731
        even = below(even) if not rollout_layers else even
        for _ in range(rollout_layers):
            even = (even + below(even)) / 2
    return even


def visual_runs(attention: AttentionMap) -> list[slice]:
    """Returns where the visual tokens of each picture are.

    Raises:
        ValueError: the runs of visual tokens are not those of the pictures.
    """
    visual = np.isin(attention.roles, (Role.IMAGE, Role.CORE))
    edges = np.flatnonzero(np.diff(np.concatenate([[0], visual, [0]]).astype(int)))
    runs = [slice(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]
    sizes = [math.prod(grid) for grid, _ in attention.pictures]
    if [run.stop - run.start for run in runs] != sizes:
        raise ValueError(f"runs of visual tokens {runs} do not fit pictures of {sizes} tokens")
    return runs
