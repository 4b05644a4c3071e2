"""What the guided MoE of one layer costs a device, counted in its traced program: true of every dispatch strategy."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from moon_jax.config import Config
from moon_jax.models.layers import scan_layers, stack
from moon_jax.moe.layer import GuidedMoE
from moon_jax.parallel.mesh import AXES, BATCH_SPEC, partition_spec
from moon_jax.planning.trace import Work, named_bytes, work_of


class MoEWork(NamedTuple):
    """Of one layer."""

    rows: float  # that its experts multiply with a whole expert's matrices, forward, on one device
    forward: Work  # without a backward pass
    step: Work  # forward, backward and what remat computes again
    arrivals: int  # bytes that dispatch marks as brought; with remat "layer" they are kept for the backward pass


def moe_work(config: Config, mesh: AbstractMesh, tokens: int) -> MoEWork:
    """Returns the work of one device in one MoE layer, its router and its gathers of weights over `fsdp` included.

    Args:
        config: sizes, strategy, placement, capacities, remat, dtype.
        mesh: the mesh.
        tokens: of one batch shard.
    """
    text, dtype = config.model.text, jnp.dtype(config.model.dtype)

    def make(rngs: nnx.Rngs) -> GuidedMoE:
        return GuidedMoE(text.hidden_size, text.intermediate_size, 2 * text.num_hidden_layers, config.moe, rngs)

    graphdef, state = nnx.split(nnx.eval_shape(lambda: stack(make, 1, nnx.Rngs(params=0))))
    is_param = lambda x: isinstance(x, nnx.Variable)  # noqa: E731
    specs = jax.tree.map(
        lambda p: p.replace(partition_spec(p.get_metadata("axes"), p.shape, mesh)), state, is_leaf=is_param
    )
    params, specs = nnx.to_pure_dict(state), nnx.to_pure_dict(specs)

    def local(params, x, roles):
        apply = lambda layer, x, _: (layer(x, roles)[0], None)  # noqa: E731
        y, _ = scan_layers(nnx.merge(graphdef, params), apply, x, None, dtype=dtype, remat=config.model.remat)
        return y

    layer = jax.shard_map(local, mesh=mesh, in_specs=(specs, BATCH_SPEC, BATCH_SPEC), out_specs=BATCH_SPEC)
    shards = mesh.size // mesh.shape["tensor"]
    place = lambda spec: jax.sharding.NamedSharding(mesh, spec)  # noqa: E731
    struct = jax.ShapeDtypeStruct
    args = (
        jax.tree.map(
            lambda p, s: struct(p.shape, p.dtype, sharding=place(s)), params, specs, is_leaf=lambda x: isinstance(x, P)
        ),
        struct((shards, tokens, text.hidden_size), dtype, sharding=place(BATCH_SPEC)),
        struct((shards, tokens), jnp.int32, sharding=place(BATCH_SPEC)),
    )
    assert tuple(mesh.axis_names) == AXES

    def loss(params, x, roles):
        return layer(params, x, roles).astype(jnp.float32).sum()

    with jax.sharding.use_abstract_mesh(mesh):
        program = jax.jit(layer).trace(*args).jaxpr
        forward = work_of(program, mesh.shape)
        step = work_of(jax.jit(jax.grad(loss, argnums=(0, 1))).trace(*args).jaxpr, mesh.shape)
    tensor = mesh.shape["tensor"]
    hidden = text.intermediate_size // tensor if text.intermediate_size % tensor == 0 else text.intermediate_size
    router = 2 * tokens * text.hidden_size * config.moe.experts
    return MoEWork(
        (forward.flops - router) / (6 * text.hidden_size * hidden), forward, step, named_bytes(program, "dispatched")
    )
