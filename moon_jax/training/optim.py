"""The optimizer of the paper: AdamW with warm-up and cosine decay (5.1)."""

from typing import Any

import jax
import optax

from moon_jax.config import TrainConfig


def schedule(config: TrainConfig) -> optax.Schedule:
    """Returns step -> learning rate: linear from 0 over the warm-up share of the steps, then cosine to 0."""
    warmup = round(config.warmup_ratio * config.steps)
    return optax.warmup_cosine_decay_schedule(
        0.0 if warmup else config.lr, config.lr, warmup, max(config.steps, warmup + 1)
    )


def optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Returns clipping by the global norm followed by AdamW; norms and biases do not decay."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(schedule(config), b1=config.b1, b2=config.b2, weight_decay=config.weight_decay, mask=_decays),
    )


def _decays(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not any(word in path[-1].key for word in ("norm", "bias")), params
    )
