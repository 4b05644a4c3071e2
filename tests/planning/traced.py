"""Train steps traced on meshes without devices, once per test session; the full model among them."""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
from recipes import recipe

from moon_jax.config import Config, MeshConfig, resolve
from moon_jax.data.packing import BatchShape
from moon_jax.parallel.mesh import AXES, abstract_mesh
from moon_jax.planning.batch import abstract_batch, planned_shape
from moon_jax.planning.moe_work import MoEWork, moe_work
from moon_jax.planning.trace import Work, work_of
from moon_jax.training.state import Trainer


class Traced(NamedTuple):
    """A train step, counted in its own program."""

    trainer: Trainer
    shape: BatchShape
    moe: MoEWork | None
    work: Work


@functools.cache
def traced(config: Config) -> Traced:
    """Returns the traced step of a config whose mesh has no -1."""
    mesh = abstract_mesh(config.mesh)
    trainer, shape = Trainer(config, mesh), planned_shape(config, mesh)
    moe = moe_work(config, mesh, shape.rows * shape.row_tokens) if config.moe.experts else None
    state, batch = trainer.abstract_state(), abstract_batch(config, mesh)
    with jax.sharding.use_abstract_mesh(mesh):
        program = trainer.train_step(shape.documents).trace(state, batch)
    return Traced(trainer, shape, moe, work_of(program.jaxpr, mesh.shape))


def moon_3b(mesh: tuple[int, int, int, int], moe: dict | None = None, **model) -> Config:
    """Returns the paper's recipe on a mesh, 4 triplets a shard.

    Every vision block attends to whole pictures: of a branch, `work_of` counts the one with more products.
    """
    c = recipe("moon_3b.py")
    c.mesh.update(dict(zip(AXES, mesh, strict=True)))
    c.train.batch_size = 4 * math.prod(mesh[:3])
    config = resolve(c)
    vision = dataclasses.replace(config.model.vision, fullatt_block_indexes=tuple(range(32)))
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, vision=vision, **model),
        moe=dataclasses.replace(config.moe, **moe or {}),
        mesh=MeshConfig(*mesh),
    )


FULL = {
    "1x16x4x1": moon_3b((1, 16, 4, 1)),
    "2x8x2x2-none": moon_3b((2, 8, 2, 2), remat="none"),
    "1x4x1x8-full": moon_3b((1, 4, 1, 8), remat="full"),  # kv heads and the vision FFN do not divide by 8
    "1x8x4x1-all_gather": moon_3b((1, 8, 4, 1), {"strategy": "all_gather"}, remat="full"),
    "1x8x4x2-split": moon_3b((1, 8, 4, 2), {"placement": "split"}),
    "1x4x2x2-dense": moon_3b((1, 4, 2, 2), {"experts": 0}),
}
