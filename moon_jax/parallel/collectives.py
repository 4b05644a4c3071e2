"""The collectives of the dense model, each a line of ours; MoE dispatch and the loss have their own.

All of it runs inside the one shard_map over all mesh axes, where `check_vma` tracks over which axes a value varies.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from moon_jax.parallel.mesh import BATCH_AXES, partition_spec


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gather(shard: jax.Array, dim: int | None, replicas: tuple[str, ...], dtype: Any) -> jax.Array:
    weight = lax.pcast(shard.astype(dtype), replicas, to="varying") if replicas else shard.astype(dtype)
    return weight if dim is None else lax.all_gather(weight, "fsdp", axis=dim, tiled=True)


def _gather_forward(shard, dim, replicas, dtype):
    return _gather(shard, dim, replicas, dtype), jnp.zeros((0,), shard.dtype)


def _gather_backward(dim, replicas, dtype, like, gradient):
    gradient = gradient.astype(jnp.float32)
    if dim is not None:
        gradient = lax.psum_scatter(gradient, "fsdp", scatter_dimension=dim, tiled=True)
    if replicas:
        gradient = lax.psum(gradient, replicas)
    return (gradient.astype(like.dtype),)


_gather.defvjp(_gather_forward, _gather_backward)


def gather_weight(shard: jax.Array, axes: tuple[str, ...], dtype: Any) -> jax.Array:
    """Returns the whole weight (still split over `tensor` and `expert`) in the compute dtype, from its fsdp shard.

    Backward: reduce-scatter over fsdp, then a psum of the small shard over the other batch axes, in float32
    whatever the compute dtype, so that gradients of many devices do not add up in bfloat16.

    Args:
        shard: the local shard as it is stored.
        axes: its logical axes, without leading stacked ones.
        dtype: the compute dtype.
    """
    spec = tuple(partition_spec(axes, shard.ndim))
    dim = spec.index("fsdp") if "fsdp" in spec else None
    replicas = tuple(name for name in BATCH_AXES if name not in spec)
    return _gather(shard, dim, replicas, dtype)


def gather_param(param: nnx.Variable, dtype: Any) -> jax.Array:
    """Returns the whole weight of one parameter, by the logical axes that it carries; a router stays float32."""
    axes = param.get_metadata("axes")
    return gather_weight(param[...], axes, jnp.float32 if "routes" in axes else dtype)


def gather_weights(state: nnx.State, dtype: Any) -> nnx.State:
    """Returns the state of a block with every dense weight gathered; expert weights stay as stored.

    Called once per block, inside its remat: the backward pass gathers again instead of keeping the weights.
    Experts are gathered by the dispatch strategy, which may not need them whole.
    """

    def gather(weight: nnx.Variable) -> nnx.Variable:
        return weight if "experts" in weight.get_metadata("axes") else weight.replace(gather_param(weight, dtype))

    return jax.tree.map(gather, state, is_leaf=lambda x: isinstance(x, nnx.Variable))


def enter_tensor(x: jax.Array) -> jax.Array:
    """Returns x marked as varying over `tensor`, once per tensor-split block.

    Its backward is one psum; without it, a psum is emitted at every use of x inside the block.
    """
    return lax.pcast(x, "tensor", to="varying")


def leave_tensor(x: jax.Array) -> jax.Array:
    """Returns the sum over `tensor` of the partial results of a tensor-split block."""
    return lax.psum(x, "tensor")
