"""The optimizer of the paper: AdamW with warm-up and cosine decay (5.1); and which parameters it leaves alone when."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from moon_jax.config import TrainConfig
from moon_jax.weights.source import named, nested

# What each word of config.train.freeze stands for. The merger is the projector from pictures to text: it always learns.
FREEZE: dict[str, Callable[[str], bool]] = {
    "vision": lambda name: name.startswith("vision/") and not name.startswith("vision/merger/"),
    "llm": lambda name: name.startswith("text/"),
    "backbone": lambda name: not name.startswith(("text/layers/moe/", "vision/merger/")),
}


_VECTORS = ("norm", "bias", "layer_scale", "class_token", "position_table")  # do not decay


def split_frozen(params: Any, words: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns (what learns, what does not): two trees of nested dicts that hold each leaf of `params` once.

    Args:
        params: nested dicts of anything: arrays, shapes, PartitionSpecs.
        words: of `FREEZE`, from `TrainConfig.frozen`.
    """
    frozen: dict[str, Any] = {}
    learning: dict[str, Any] = {}
    for name, leaf in named(params).items():
        (frozen if any(FREEZE[word](name) for word in words) else learning)[name] = leaf
    return nested(learning), nested(frozen)


def join(learning: dict[str, Any], frozen: dict[str, Any]) -> dict[str, Any]:
    """Returns the tree of which `split_frozen` made the two."""
    return nested(named(learning) | named(frozen))


def schedule(config: TrainConfig) -> optax.Schedule:
    """Returns step -> learning rate: linear from 0 over the warm-up share of the steps, then cosine to 0."""
    warmup = round(config.warmup_ratio * config.steps)
    return optax.warmup_cosine_decay_schedule(
        0.0 if warmup else config.lr, config.lr, warmup, max(config.steps, warmup + 1)
    )


def optimizer(config: TrainConfig, frozen_router_steps: int = 0) -> optax.GradientTransformation:
    """Returns clipping by the global norm followed by AdamW; norms and biases do not decay.

    Args:
        config: rates, decay and steps.
        frozen_router_steps: the routers join so many steps after the others: until then no update, no decay and no
            moments; their bias correction then counts from there, while the learning rate is that of all. Their
            gradients still count in the norm unless `hold_routers` takes them out.
    """
    adam = (
        optax.scale_by_adam(b1=config.b1, b2=config.b2),
        optax.add_decayed_weights(config.weight_decay, mask=_decays),
    )
    if frozen_router_steps:
        late = optax.conditionally_mask(optax.chain(*adam), lambda step: step >= frozen_router_steps)
        others = lambda tree: jax.tree.map(lambda router: not router, _routers(tree))  # noqa: E731
        adam = (optax.masked(optax.chain(*adam), others), optax.masked(late, _routers))
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm), optax.chain(*adam, optax.scale_by_learning_rate(schedule(config)))
    )


def hold_routers(gradients: Any, step: Int[Array, ""], frozen_router_steps: int) -> Any:
    """Returns the gradients with those of the routers as zeros in the first steps, so that no norm sees them."""
    if not frozen_router_steps:
        return gradients
    learns = step >= frozen_router_steps
    return jax.tree.map(lambda g, router: jnp.where(learns, g, 0) if router else g, gradients, _routers(gradients))


def _routers(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "router", params)


def _decays(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: not any(word in path[-1].key for word in _VECTORS), params)
