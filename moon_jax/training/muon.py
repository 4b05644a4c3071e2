"""Muon: momentum whose matrices are made orthogonal, for training from scratch (Jordan et al., 2024; Liu et al., 2025).

Every hidden matrix takes a step whose singular values are all about 1, however unequal those of its gradient are, so
that directions which few examples ask for are learned as fast as the common ones. Embeddings, routers, norms and biases
stay with AdamW. The step is as large as AdamW's (root mean square 0.2), so both take the same rates and decay.

Orthogonality needs whole matrices. A stack is taken layer by layer and gathered over `fsdp` and `tensor`; its experts
stay where they are. Beside the state, a device holds one layer's share of one kind of matrix.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float32

MOMENTUM = 0.95
RMS = 0.2  # of a step: what AdamW's come to in practice (Liu et al., 2025, 2.2)
_ITERATIONS = 5
_QUINTIC = 3.4445, -4.7750, 2.0315  # steep at 0, so that five steps bring all but tiny singular values near 1

Axes = Mapping[str, tuple[str, ...]]


def is_matrix(name: str, axes: tuple[str, ...]) -> bool:
    """Returns whether a parameter that decays is a hidden matrix: neither a table of embeddings nor a router.

    Args:
        name: joined by "/".
        axes: its logical axes, without those of stacked layers.
    """
    return name.rsplit("/", 1)[-1] not in ("embed", "lm_head", "router") and len(_without_experts(axes)) > 1


def scale_by_muon(axes: Axes) -> optax.GradientTransformation:
    """Returns Nesterov momentum followed by orthogonality, for parameters of which all are matrices.

    Args:
        axes: name -> logical axes of every parameter, without those of stacked layers.
    """

    def turned(updates: Any, params: Any = None) -> Any:
        del params
        return jax.tree_util.tree_map_with_path(
            lambda path, u: orthogonal(u, axes["/".join(key.key for key in path)]), updates
        )

    return optax.chain(optax.trace(MOMENTUM, nesterov=True), optax.stateless(turned))


def orthogonal(update: Float32[Array, "..."], axes: tuple[str, ...]) -> Float32[Array, "..."]:
    """Returns U V^T of every matrix U S V^T, roughly, at the root mean square `RMS`.

    Args:
        update: any number of stacked layers, then `axes`; sharded in any way over axes of explicit type.
        axes: logical. Experts are matrices of their own. Of the others the model's width is one side of the matrix, the
            rest is the other one: heads are not taken apart.
    """
    if update.ndim > len(axes):
        return jax.lax.map(lambda layer: orthogonal(layer, axes), update)
    spec = tuple(jax.typeof(update).sharding.spec)
    stacked = len(axes) - len(_without_experts(axes))
    x = jax.sharding.reshard(update, P(*spec[:stacked]))
    first = stacked if axes[stacked].endswith("embed") else len(axes) - 1
    x = jnp.moveaxis(x, first, stacked)
    shape = x.shape
    x = x.reshape(*shape[: stacked + 1], int(np.prod(shape[stacked + 1 :])))
    x = _newton_schulz(x) * (RMS * max(x.shape[-2:]) ** 0.5)
    return jax.sharding.reshard(jnp.moveaxis(x.reshape(shape), stacked, first), P(*spec))


def _newton_schulz(x: Float32[Array, "*b m n"]) -> Float32[Array, "*b m n"]:
    if x.shape[-2] > x.shape[-1]:
        return jnp.swapaxes(_newton_schulz(jnp.swapaxes(x, -1, -2)), -1, -2)
    a, b, c = _QUINTIC
    x = x / (jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + 1e-7)
    for _ in range(_ITERATIONS):
        square = x @ jnp.swapaxes(x, -1, -2)
        x = a * x + (b * square + c * square @ square) @ x
    return x


def _without_experts(axes: tuple[str, ...]) -> tuple[str, ...]:
    return axes[1:] if axes[0].endswith("experts") else axes
