"""A model whose sizes do not all divide over `tensor`, and a batch for it."""

import functools

import numpy as np
from fake_batch import fake_batch, tiny_config

from moon_jax.config import Config

# By 4: the kv heads (2), the vision FFN (42) and the vocabulary (94) do not divide; each kv head's 4 query heads do.
# By 8: neither do those, the experts' FFN (44) and the vision heads (4): of attention nothing is split.
ODD = {
    "model__text__num_attention_heads": 8, "model__text__vocab_size": 94, "model__text__intermediate_size": 44,
    "model__vision__num_heads": 4, "model__vision__intermediate_size": 42,
    "train__clip_norm": 1e9, "train__warmup_ratio": 0.0, "moe__balance_loss": 0.1, "moe__z_loss": 0.01,
}  # fmt: skip


@functools.cache
def odd_config(**settings) -> Config:
    return tiny_config(**ODD | settings)


@functools.cache
def odd_batch() -> dict[str, np.ndarray]:
    return fake_batch(8, 1, rows=2, row_tokens=32, patch_dim=48, vocab=94)
