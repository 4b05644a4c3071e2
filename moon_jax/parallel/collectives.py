"""The collectives of the dense model, each a line of ours; MoE dispatch and the loss have their own.

All of it runs inside the one shard_map over all mesh axes, where `check_vma` tracks over which axes a value varies.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from moon_jax.parallel.mesh import BATCH_AXES, mesh_axes


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
    entries = [mesh_axes(name) for name in axes]
    dims = [i + shard.ndim - len(axes) for i, entry in enumerate(entries) if "fsdp" in entry]
    replicas = tuple(axis for axis in BATCH_AXES if not any(axis in entry for entry in entries))
    return _gather(shard, dims[0] if dims else None, replicas, dtype)


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
        axes = weight.get_metadata("axes")
        of_experts = "experts" in axes or "split_experts" in axes
        return weight if of_experts else weight.replace(gather_param(weight, dtype))

    return jax.tree.map(gather, state, is_leaf=lambda x: isinstance(x, nnx.Variable))


def over_tensor(x: jax.Array) -> bool:
    """Returns whether x differs over `tensor`: a weight that is split there, or what was computed with one."""
    return "tensor" in varying(x)


def varying(x: jax.Array) -> frozenset[str]:
    """Returns the mesh axes over which x differs, as the shard_map's check tracks them."""
    return jax.typeof(x).mat.varying


def enter_tensor(x: jax.Array, weight: jax.Array) -> jax.Array:
    """Returns x marked as varying over `tensor`, once per tensor-split block; as it is if the weight is not split.

    Its backward is one psum; without it, a psum is emitted at every use of x inside the block.

    Args:
        x: what enters the block.
        weight: the first weight of the block that may be split.
    """
    return lax.pcast(x, "tensor", to="varying") if over_tensor(weight) and not over_tensor(x) else x


def leave_tensor(x: jax.Array) -> jax.Array:
    """Returns the sum over `tensor` of the partial results of a tensor-split block; x itself if it is not split."""
    return lax.psum(x, "tensor") if over_tensor(x) else x
