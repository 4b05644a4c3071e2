"""The shapes of a training batch that fits every possible set of documents, without any data."""

import math

import numpy as np
from jax import ShapeDtypeStruct
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from moon_jax.config import Config
from moon_jax.data.packing import BatchShape, batch_shape, pack
from moon_jax.parallel.mesh import BATCH_SPEC, batch_shards

TRIPLET_FIELDS = ("query", "positive", "negative", "positive_product", "negative_product")


def planned_shape(config: Config, mesh: Mesh | AbstractMesh) -> BatchShape:
    """Returns the static sizes of one shard, from the config alone: the largest that training can need.

    A data set whose listings have fewer pictures or no texts gives a smaller one; `config.data.row_share`,
    `slot_share`, `rows`, `row_tokens` and `image_slots` set it by hand, here and in training.
    """
    return batch_shape(3 * config.train.batch_size // batch_shards(mesh), config.data, config.model.vision)


def abstract_batch(config: Config, mesh: Mesh | AbstractMesh) -> dict[str, ShapeDtypeStruct]:
    """Returns every field of a training batch as shapes with their shardings: what `train_step` is lowered with."""
    shards = batch_shards(mesh)
    fields = pack([], planned_shape(config, mesh), config.model.vision)
    fields |= dict.fromkeys(TRIPLET_FIELDS, np.zeros(config.train.batch_size // shards, np.int32))
    sharding = NamedSharding(mesh, BATCH_SPEC)
    return {n: ShapeDtypeStruct((shards, *a.shape), a.dtype, sharding=sharding) for n, a in fields.items()}


def batch_unit(config: Config, shards: int) -> int:
    """Returns the number of triplets of a shard that a batch can have multiples of: whole `loss.group_size` groups."""
    group = config.loss.group_size or 1
    return group // math.gcd(group, shards)
