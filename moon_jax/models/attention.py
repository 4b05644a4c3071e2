"""Attention within segments, with the implementation named by the config and never chosen silently; and on a cache."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from moon_jax.config import ConfigError, ModelConfig

MASKED = -1e30  # finite: a fully masked row (padding) gives a harmless mean, where -inf gives NaN in the gradient
PLATFORMS = ("cpu", "gpu", "tpu")  # as `jax.default_backend()` names them


def attention(
    q: Float[Array, "b s k g h"],
    k: Float[Array, "b s k h"],
    v: Float[Array, "b s k h"],
    segment_ids: Int[Array, "b s"],
    *,
    causal: bool,
    impl: str,
) -> Float[Array, "b s k g h"]:
    """Returns softmax(q k / sqrt(h)) v, each token attending within its own segment.

    Args:
        q: queries, g of them for each of the k kv heads.
        k: keys.
        v: values.
        segment_ids: 0 = padding, which nothing attends to and whose own output means nothing.
        causal: whether a token sees only itself and what is before it.
        impl: a key of `IMPLEMENTATIONS`.

    Raises:
        ConfigError: no such implementation.
    """
    return _named(impl).attend(q, k, v, segment_ids, causal)


def check_attention(config: ModelConfig, platform: str) -> None:
    """Checks that the implementation that the config names can run this model here, before anything is compiled.

    Args:
        config: with the sizes of the model that will run.
        platform: what the program is compiled for, one of `PLATFORMS`.

    Raises:
        ConfigError: it cannot; says what can.
    """
    impl = config.attention_impl
    named, setting = _named(impl), f"config.model.attention_impl = {impl!r}"
    if platform not in PLATFORMS:
        raise ValueError(f"platform {platform!r} is not one of {', '.join(PLATFORMS)}")
    if platform not in named.platforms:
        here = [name for name, other in IMPLEMENTATIONS.items() if platform in other.platforms]
        raise ConfigError(
            f"{setting} runs on {' and '.join(named.platforms)}, not on {platform}, where there is {', '.join(here)}"
        )
    if config.dtype not in named.dtypes:
        raise ConfigError(
            f"{setting} computes in {' or '.join(named.dtypes)}: set config.model.dtype so, or use 'xla' with "
            f"{config.dtype}"
        )
    for name, head_dim in (("text", config.text.head_dim), ("vision", config.vision.head_dim)):
        if head_dim % named.head_multiple or head_dim > named.head_limit:
            raise ConfigError(
                f"{setting} needs a head dimension that is a multiple of {named.head_multiple} and at most "
                f"{named.head_limit}, and that of config.model.{name} is {head_dim}: use another implementation"
            )


def _xla(q, k, v, segment_ids, causal):
    scores = jnp.einsum("bskgh,btkh->bkgst", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    mask = (segment_ids[:, :, None] == segment_ids[:, None, :]) & (segment_ids > 0)[:, None, :]
    if causal:
        mask &= jnp.tri(q.shape[1], dtype=bool)
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, MASKED), axis=-1).astype(v.dtype)
    return jnp.einsum("bkgst,btkh->bskgh", weights, v)


# The kernels are imported by those who use them: each brings the Pallas compiler of its platform.


def _splash(q, k, v, segment_ids, causal):
    from moon_jax.models.attention_splash import splash

    return splash(q, k, v, segment_ids, causal)


def _triton(q, k, v, segment_ids, causal):
    from moon_jax.models.attention_triton import triton

    return triton(q, k, v, segment_ids, causal)


def _cudnn(q, k, v, segment_ids, causal):
    from moon_jax.models.attention_cudnn import cudnn

    return cudnn(q, k, v, segment_ids, causal)


class Implementation(NamedTuple):
    """One way to compute attention, and where it can."""

    attend: Callable[[Array, Array, Array, Array, bool], Array]  # (q, k, v, segment_ids, causal)
    platforms: tuple[str, ...] = PLATFORMS
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    head_multiple: int = 1
    head_limit: int = 1 << 30


IMPLEMENTATIONS = {
    "xla": Implementation(_xla),
    "splash": Implementation(_splash, ("tpu",)),
    "triton": Implementation(_triton, ("gpu",), ("bfloat16",), head_multiple=16, head_limit=128),
    "cudnn": Implementation(_cudnn, ("gpu",), ("bfloat16",), head_multiple=8, head_limit=128),
}


def _named(impl: str) -> Implementation:
    if impl not in IMPLEMENTATIONS:
        raise ConfigError(
            f"config.model.attention_impl {impl!r} does not exist; there are {', '.join(IMPLEMENTATIONS)}"
        )
    return IMPLEMENTATIONS[impl]


class Keys(NamedTuple):
    """Keys and values that are there already."""

    k: Float[Array, "b t k h"]
    v: Float[Array, "b t k h"]
    seen: Bool[Array, "b t"]  # false: not one of the row's tokens


def cached_attention(q: Float[Array, "b s k g h"], parts: Sequence[Keys]) -> Float[Array, "b s k g h"]:
    """Returns softmax(q k / sqrt(h)) v over the keys of all parts together: decoding.

    The parts are not put side by side in memory, so that the large one (the prompt) is only read.

    Args:
        q: queries of the new tokens, g of them for each of the k kv heads; each sees every key that is `seen`.
        parts: keys and values, the queries' own among them; each row has at least one that is seen.
    """

    def scores(part: Keys) -> Array:
        product = jnp.einsum("bskgh,btkh->bkgst", q, part.k, preferred_element_type=jnp.float32)
        return jnp.where(part.seen[:, None, None, None], product * q.shape[-1] ** -0.5, MASKED)

    ends = np.cumsum([part.k.shape[1] for part in parts])[:-1]
    weights = jax.nn.softmax(jnp.concatenate([scores(part) for part in parts], axis=-1), axis=-1).astype(q.dtype)
    found = [
        jnp.einsum("bkgst,btkh->bskgh", weight, part.v, preferred_element_type=jnp.float32)
        for weight, part in zip(jnp.split(weights, ends, axis=-1), parts, strict=True)
    ]
    return sum(found).astype(q.dtype)
