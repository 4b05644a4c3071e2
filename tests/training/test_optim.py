"""The optimizer against the formula: warm-up, cosine, decay of matrices only, clipping."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moon_jax.config import TrainConfig
from moon_jax.training.optim import optimizer, schedule


def test_the_rate_warms_up_over_its_share_and_falls_as_a_cosine():
    rate = schedule(TrainConfig(steps=200, lr=0.5, warmup_ratio=0.05))
    assert [float(rate(step)) for step in (0, 5, 10)] == pytest.approx([0, 0.25, 0.5])
    for step in (10, 60, 105, 199):
        assert float(rate(step)) == pytest.approx(0.25 * (1 + math.cos(math.pi * (step - 10) / 190)), abs=1e-6)
    assert float(schedule(TrainConfig(steps=200, lr=0.5, warmup_ratio=0.0))(0)) == 0.5


def test_one_step_of_adamw_decays_matrices_and_clips_by_the_global_norm():
    config = TrainConfig(steps=10, lr=0.1, warmup_ratio=0.0, weight_decay=0.3, clip_norm=1.0, b1=0.9, b2=0.98)
    params = {"q": jnp.full((2, 2), 4.0), "q_bias": jnp.full(2, 4.0), "norm1": jnp.full(2, 4.0)}
    gradients = jax.tree.map(lambda p: jnp.full_like(p, 3.0), params)  # global norm 3 sqrt(8)
    update, state = optimizer(config).update(gradients, optimizer(config).init(params), params)
    adam = -0.1 * np.ones(2)  # the first step of Adam has the size of the rate
    np.testing.assert_allclose(update["norm1"], adam, rtol=1e-5)
    np.testing.assert_allclose(update["q_bias"], adam, rtol=1e-5)
    np.testing.assert_allclose(update["q"], -0.1 * (1 + 0.3 * 4.0) * np.ones((2, 2)), rtol=1e-5)
    moments = [x for x in jax.tree.leaves(state) if jnp.shape(x) == (2, 2)]
    np.testing.assert_allclose(moments[0], 0.1 * 3 / (3 * math.sqrt(8)) * np.ones((2, 2)), rtol=1e-5)
