"""MOON: documents of pictures and text -> unit vectors (paper 3.1)."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import Array, Float, Int, Key

from moon_jax.config import ModelConfig, MoEConfig
from moon_jax.models import head as heads
from moon_jax.models.text import TextModel
from moon_jax.models.vision import VisionTower
from moon_jax.models.vision_intern import InternTower
from moon_jax.parallel.mesh import partition_spec

# By `VisionConfig.kind`: (patches, pictures, windows, positions) of a batch shard -> its visual tokens.
TOWERS = {"qwen2_5_vl": VisionTower, "qwen2_vl": VisionTower, "internvl": InternTower}


class Moon(nnx.Module):
    """Vision tower and language model; `embed` pools the last hidden states of every document of a batch shard."""

    def __init__(self, config: ModelConfig, moe: MoEConfig, rngs: nnx.Rngs):
        self.vision = TOWERS[config.vision.kind](config, rngs)
        self.text = TextModel(config, moe, rngs)

    def hidden(
        self, batch: Mapping[str, Array], noise_key: Key[Array, ""] | None = None
    ) -> tuple[Float[Array, "r s d"], Any]:
        """Returns the last hidden states [R, S, D] of one batch shard and the router statistics [layers, ...].

        Args:
            batch: one shard of a packed batch.
            noise_key: of the router noise of this training step; None = no noise.
        """
        return self.text(
            batch["tokens"],
            self.visual(batch),
            batch["image_slots"],
            batch["segment_ids"],
            batch["positions"],
            batch["roles"],
            noise_key,
        )

    def visual(self, batch: Mapping[str, Array]) -> Float[Array, "v d"]:
        """Returns the visual tokens [I * P / merge_unit, D] of one batch shard."""
        return self.vision(batch["patches"], batch["patch_picture"], batch["patch_window"], batch["patch_positions"])

    def next_token_loss(
        self,
        batch: Mapping[str, Array],
        head: Float[Array, "v d_shard"] | None = None,
        noise_key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, ""], Float[Array, ""], Any]:
        """Returns (loss, number of predicted tokens, router statistics); the first two are of the global batch.

        Args:
            batch: one shard, with "chosen" [R, S]: which tokens are to be predicted from those before them.
            head: local shard of an untied output head; None = the token embedding.
            noise_key: of the router noise of this training step; None = no noise.
        """
        hidden, stats = self.hidden(batch, noise_key)
        head = heads.gather_head(self.text.embed[...] if head is None else head, jnp.float32)
        fields = (batch[name] for name in ("tokens", "segment_ids", "chosen"))
        return *heads.next_token_loss(hidden, head, *fields), stats

    def embed(
        self, batch: Mapping[str, Array], documents: int, noise_key: Key[Array, ""] | None = None
    ) -> tuple[Float[Array, "e d"], Any]:
        """Returns float32 unit vectors [E, D] of the shard's documents (zeros for absent ones) and router statistics.

        Args:
            batch: one shard of a packed batch (the fields of data/packing.py without their shard axis).
            documents: E, the shard's places for documents.
            noise_key: of the router noise of this training step; None = no noise.
        """
        hidden, stats = self.hidden(batch, noise_key)
        document = jnp.take_along_axis(batch["document_of_segment"], batch["segment_ids"], axis=1)
        return normalize(mean_pool(hidden, document, documents)), stats


def mean_pool(hidden: Float[Array, "r s d"], document: Int[Array, "r s"], documents: int) -> Float[Array, "e d"]:
    """Returns the float32 mean of each document's hidden states; zeros for a document without tokens.

    A one-hot product: on accelerators it is one matrix product, and on CPU too it beats a segment sum.

    Args:
        hidden: last hidden states.
        document: index of each token's document, -1 = padding.
        documents: E.
    """
    one_hot = jax.nn.one_hot(document, documents, dtype=jnp.float32)
    total = jnp.einsum("rse,rsd->ed", one_hot, hidden.astype(jnp.float32), precision=lax.Precision.HIGHEST)
    return total / jnp.maximum(one_hot.sum((0, 1)), 1.0)[:, None]


def normalize(x: Float[Array, "e d"]) -> Float[Array, "e d"]:
    """Returns x / |x|; a zero row stays zero, and nothing in its gradient is NaN."""
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * lax.rsqrt(jnp.where(square > 0, square, 1.0))


def build(config: ModelConfig, moe: MoEConfig, key: jax.Array) -> tuple[nnx.GraphDef, dict[str, Any]]:
    """Returns (graphdef, params): the structure of the model and its freshly drawn parameters as nested dicts.

    `nnx.merge(graphdef, params)` gives the model back, from whole arrays or, inside the shard_map, from local shards.
    """
    graphdef, state = nnx.split(Moon(config, moe, nnx.Rngs(params=key)))
    return graphdef, nnx.to_pure_dict(state)


def _abstract(config: ModelConfig, moe: MoEConfig) -> tuple[nnx.GraphDef, nnx.State]:
    return nnx.split(nnx.eval_shape(lambda: Moon(config, moe, nnx.Rngs(params=0))))


def _of_every_param(function: Callable[[nnx.Variable], Any], state: nnx.State) -> dict[str, Any]:
    is_param = lambda x: isinstance(x, nnx.Variable)  # noqa: E731
    return nnx.to_pure_dict(jax.tree.map(lambda p: p.replace(function(p)), state, is_leaf=is_param))


def abstract_params(config: ModelConfig, moe: MoEConfig) -> dict[str, Any]:
    """Returns the ShapeDtypeStructs of all parameters, without allocating."""
    return nnx.to_pure_dict(_abstract(config, moe)[1])


def logical_axes(config: ModelConfig, moe: MoEConfig) -> dict[str, Any]:
    """Returns the logical axes (tuples) of all parameters, without those of leading stacked dimensions."""
    return _of_every_param(lambda p: p.get_metadata("axes"), _abstract(config, moe)[1])


def abstract(
    config: ModelConfig, moe: MoEConfig, mesh: Mesh | AbstractMesh
) -> tuple[nnx.GraphDef, dict[str, Any], dict[str, Any]]:
    """Returns (graphdef, shapes, specs) without allocating: ShapeDtypeStructs and PartitionSpecs of every parameter."""
    graphdef, state = _abstract(config, moe)
    specs = _of_every_param(lambda p: partition_spec(p.get_metadata("axes"), p.shape, mesh), state)
    return graphdef, nnx.to_pure_dict(state), specs
