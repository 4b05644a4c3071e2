"""The optimizer of the paper: AdamW with warm-up and cosine decay (5.1); and which parameters it leaves alone when.

Or Muon for the hidden matrices (muon.py), with the same schedule.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from moon_jax.config import TrainConfig
from moon_jax.training import muon
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


def optimizer(
    config: TrainConfig, frozen_router_steps: int = 0, axes: muon.Axes | None = None
) -> optax.GradientTransformation:
    """Returns clipping by the global norm followed by AdamW or Muon; norms and biases do not decay.

    Args:
        config: rates, decay and steps.
        frozen_router_steps: the routers join so many steps after the others: until then no update, no decay and no
            moments; their bias correction then counts from there, while the learning rate is that of all. Their
            gradients still count in the norm unless `hold_routers` takes them out.
        axes: name -> logical axes of every parameter, for Muon.
    """
    decay = optax.add_decayed_weights(config.weight_decay, mask=_decays)
    steps = (optax.scale_by_adam(b1=config.b1, b2=config.b2), decay)
    rules = {"adam": optax.chain(*steps)}
    if config.optimizer == "muon":
        rules["muon"] = optax.chain(muon.scale_by_muon(axes), decay)
    if frozen_router_steps:
        rules["late"] = optax.conditionally_mask(rules["adam"], lambda step: step >= frozen_router_steps)

    def rule(path: Sequence[Any], _: Any) -> str:
        name = "/".join(key.key for key in path)
        if "late" in rules and _is_router(path):
            return "late"
        return "muon" if "muon" in rules and _is_decayed(path) and muon.is_matrix(name, axes[name]) else "adam"

    if len(rules) > 1:
        steps = (optax.partition(rules, lambda params: jax.tree_util.tree_map_with_path(rule, params)),)
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm), optax.chain(*steps, optax.scale_by_learning_rate(schedule(config)))
    )


def hold_routers(gradients: Any, step: Int[Array, ""], frozen_router_steps: int) -> Any:
    """Returns the gradients with those of the routers as zeros in the first steps, so that no norm sees them."""
    if not frozen_router_steps:
        return gradients
    learns = step >= frozen_router_steps
    return jax.tree.map(lambda g, router: jnp.where(learns, g, 0) if router else g, gradients, _routers(gradients))


def _routers(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: _is_router(path), params)


def _decays(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: _is_decayed(path), params)


def _is_router(path: Sequence[Any]) -> bool:
    return path[-1].key == "router"


def _is_decayed(path: Sequence[Any]) -> bool:
    return not any(word in path[-1].key for word in _VECTORS)
