"""What every block is made of: parameters with logical axes, stacks of layers under one scan, norm."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from moon_jax.parallel.collectives import gather_weights


def normal(rngs: nnx.Rngs, shape: tuple[int, ...], axes: tuple[str, ...], fan_in: int) -> nnx.Param:
    """Returns a parameter drawn from N(0, 1 / fan_in), with its logical axes (see parallel/mesh.py)."""
    return nnx.Param(jax.random.normal(rngs.params(), shape) * fan_in**-0.5, axes=axes)


def zeros(shape: tuple[int, ...], axes: tuple[str, ...]) -> nnx.Param:
    """Returns a parameter of zeros: a bias."""
    return nnx.Param(jnp.zeros(shape), axes=axes)


def ones(width: int) -> nnx.Param:
    """Returns a parameter of ones: the weight of a norm."""
    return nnx.Param(jnp.ones(width), axes=("norm",))


def stack(make: Callable[[nnx.Rngs], nnx.Module], layers: int, rngs: nnx.Rngs) -> nnx.Module:
    """Returns one module whose parameters have a leading layer axis, for `scan_layers`."""
    return jax.vmap(lambda key: make(nnx.Rngs(params=key)))(jax.random.split(rngs.params(), layers))


def scan_layers(
    layers: nnx.Module,
    apply: Callable[[Any, Array, Any], tuple[Array, Any]],
    x: Array,
    per_layer: Any,
    *,
    dtype: Any,
    remat: str,
) -> tuple[Array, Any]:
    """Returns (x after all layers, what `apply` returned beside it, stacked over layers).

    One `lax.scan`, so that compile time does not grow with depth. The weights of a layer are gathered inside its
    remat, and so live only while it runs, in the backward pass too.

    Args:
        layers: a module made by `stack`.
        apply: (layer with whole weights, x, the layer's entry of per_layer) -> (x, output).
        x: the residual stream.
        per_layer: tree of arrays with a leading layer axis, or None.
        dtype: compute dtype of the gathered weights.
        remat: "full" recomputes a layer in the backward pass; "layer" too, but keeps what `checkpoint_name` marks as
            "dispatched", so that tokens travel to their experts only once; "none" keeps all activations.
    """
    graphdef, state = nnx.split(layers)

    def body(x, scanned):
        weights, extra = scanned
        return apply(nnx.merge(graphdef, gather_weights(weights, dtype)), x, extra)

    if remat != "none":
        keep = jax.checkpoint_policies.save_only_these_names("dispatched") if remat == "layer" else None
        body = jax.checkpoint(body, prevent_cse=False, policy=keep)
    return lax.scan(body, x, (state, per_layer))


def gathered(module: nnx.Module, dtype: Any) -> nnx.Module:
    """Returns a module that stands outside the scans with its weights gathered."""
    graphdef, state = nnx.split(module)
    return nnx.merge(graphdef, gather_weights(state, dtype))


def rms_norm(x: Float[Array, "*b d"], weight: Float[Array, " d"], eps: float) -> Float[Array, "*b d"]:
    """Returns x / rms(x) in float32, cast back, THEN times the weight (the order of Qwen2RMSNorm)."""
    x32 = x.astype(jnp.float32)
    x32 = x32 * lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return x32.astype(x.dtype) * weight.astype(x.dtype)


def layer_norm(
    x: Float[Array, "*b d"], weight: Float[Array, " d"], bias: Float[Array, " d"], eps: float
) -> Float[Array, "*b d"]:
    """Returns (x - mean) / deviation * weight + bias, all of it in float32, cast back (torch's LayerNorm)."""
    x32 = x.astype(jnp.float32)
    x32 = x32 - jnp.mean(x32, axis=-1, keepdims=True)
    x32 = x32 * lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return (x32 * weight.astype(jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)
