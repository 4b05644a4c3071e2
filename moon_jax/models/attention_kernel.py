"""What attention kernels from a library need around them: whole blocks of tokens, and a way past `check_vma`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from moon_jax.parallel.collectives import varying

Kernel = Callable[[Array, Array, Array, Array], Array]
"""(q, k, v, segment_ids) -> what the queries find."""


def pad_tokens(
    q: Float[Array, "b s k g h"],
    k: Float[Array, "b s k h"],
    v: Float[Array, "b s k h"],
    ids: Int[Array, "b s"],
    to: int,
) -> tuple[Array, Array, Array, Array]:
    """Returns the four with rows of `to` tokens; the new ones are zeros, in segment 0."""
    more = to - q.shape[1]
    return tuple(jnp.pad(x, [(0, 0), (0, more)] + [(0, 0)] * (x.ndim - 2)) for x in (q, k, v, ids))


def round_up(length: int, block: int) -> int:
    """Returns the smallest multiple of `block` that is not below `length`."""
    return -(-length // block) * block


def without_vma(kernel: Kernel) -> Kernel:
    """Returns the kernel with its gradient, callable inside a shard_map that checks over which axes a value varies.

    The outputs of library kernels do not say over which mesh axes they vary, which `check_vma` refuses. So the kernel
    and its backward pass each run in a nested shard_map over no new axis, with the check off; what comes out is marked
    as varying over every axis that an input varies over. That is what it does: the kernel is local to the device.

    Args:
        kernel: differentiable in its first three arguments.
    """

    def call(*inputs: Array) -> Array:
        if not jax.sharding.get_abstract_mesh().manual_axes:
            return kernel(*inputs)
        axes = frozenset().union(*(varying(x) for x in inputs))
        return _apart(kernel, axes)(*(_vary(x, axes) for x in inputs))

    return call


def _apart(kernel: Kernel, axes: frozenset[str]) -> Kernel:
    @jax.custom_vjp
    def apart(q, k, v, ids):
        return _unchecked(kernel, axes)(q, k, v, ids)

    def forward(q, k, v, ids):
        return _unchecked(lambda q, k, v, ids: jax.vjp(lambda *qkv: kernel(*qkv, ids), q, k, v), axes)(q, k, v, ids)

    def backward(pullback, gradient):
        return *_unchecked(lambda pullback, gradient: pullback(gradient), axes)(pullback, gradient), None

    apart.defvjp(forward, backward)
    return apart


def _unchecked(function: Callable, axes: frozenset[str]) -> Callable:
    def unmarked(*args):
        return function(*jax.tree.map(_unmark, args))

    run = jax.shard_map(unmarked, in_specs=P(), out_specs=P(), check_vma=False)
    return lambda *args: jax.tree.map(lambda x: _vary(x, axes), run(*args))


def _unmark(x: Array) -> Array:
    """Returns x without its varying axes: with the check off, any operation drops them; this one costs nothing."""
    return lax.squeeze(lax.expand_dims(x, (0,)), (0,))


def _vary(x: Array, axes: frozenset[str]) -> Array:
    return lax.pcast(x, tuple(sorted(axes - varying(x))), to="varying")
