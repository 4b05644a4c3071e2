"""The optimizer against the formula: warm-up, cosine, decay of matrices only, clipping, routers that join later."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from moon_jax.config import TrainConfig
from moon_jax.training.optim import hold_routers, optimizer, schedule


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


LATE = TrainConfig(steps=12, lr=0.1, warmup_ratio=0.25, weight_decay=0.3, clip_norm=2.0, b1=0.9, b2=0.98)


def adamw(config, gradients, params, routers_from):
    """Returns the parameters after each step in float64, by the formula; name -> [steps, ...]."""
    params = {name: np.asarray(p, np.float64) for name, p in params.items()}
    m, v = ({name: np.zeros_like(p) for name, p in params.items()} for _ in range(2))
    count, out = dict.fromkeys(params, 0), []
    for step, gradient in enumerate(gradients):
        learns = [name for name in params if name != "router" or step >= routers_from]
        norm = math.sqrt(sum((np.asarray(gradient[name], np.float64) ** 2).sum() for name in learns))
        for name in learns:
            g = gradient[name] * min(1.0, config.clip_norm / norm)
            count[name] += 1
            m[name] = config.b1 * m[name] + (1 - config.b1) * g
            v[name] = config.b2 * v[name] + (1 - config.b2) * g**2
            update = m[name] / (1 - config.b1 ** count[name])
            update = update / (np.sqrt(v[name] / (1 - config.b2 ** count[name])) + 1e-8)
            decay = 0.0 if "norm" in name else config.weight_decay * params[name]
            params[name] = params[name] - float(schedule(config)(step)) * (update + decay)
        out.append(params)
        params = dict(params)
    return out


@pytest.mark.parametrize("routers_from", [0, 1, 4, 99])
def test_routers_join_later(routers_from):
    """Until then no update, no decay, no share of the norm, no moments; after it the rate of all and fresh moments."""
    r = np.random.default_rng(0)
    shapes = {"router": (3, 4), "gate": (2, 3), "norm1": (3,)}
    draw = lambda: {name: jnp.asarray(r.normal(size=shape), jnp.float32) for name, shape in shapes.items()}  # noqa: E731
    params, gradients = draw(), [draw() for _ in range(8)]
    transform = optimizer(LATE, routers_from)

    @jax.jit
    def update(step, state, params, gradient):
        gradient = hold_routers(gradient, step, routers_from)
        updates, state = transform.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, optax.tree.norm(gradient)

    state, before, now = transform.init(params), params, params
    for step, want in enumerate(adamw(LATE, gradients, params, routers_from)):
        now, state, norm = update(jnp.int32(step), state, now, gradients[step])
        learns = [name for name in shapes if name != "router" or step >= routers_from]
        squares = sum((np.asarray(gradients[step][name], np.float64) ** 2).sum() for name in learns)
        assert float(norm) == pytest.approx(math.sqrt(squares), rel=1e-5)
        for name in shapes:
            np.testing.assert_allclose(now[name], want[name], rtol=0, atol=3e-6, err_msg=f"{name} after step {step}")
        if step < routers_from:
            np.testing.assert_array_equal(now["router"], before["router"])
            moments = [x for x in jax.tree.leaves(state) if jnp.shape(x) == shapes["router"]]
            assert len(moments) == 2
            assert not any(np.any(x) for x in moments)
    assert (now["router"] != before["router"]).any() == (routers_from < 8)


def test_without_routers_to_hold_nothing_changes():
    """Without the warm-up the state is that of optax.adamw; with it, a model without experts learns as ever."""
    params = {"gate": jnp.ones((2, 3)), "router": jnp.ones((3, 4))}
    adamw = optax.adamw(schedule(LATE), mask={"gate": True, "router": True})
    plain = optax.chain(optax.clip_by_global_norm(2.0), adamw)
    assert jax.tree.structure(optimizer(LATE).init(params)) == jax.tree.structure(plain.init(params))
    dense = {"gate": jnp.ones((2, 3))}
    update, _ = optimizer(LATE, 3).update(dense, optimizer(LATE, 3).init(dense), dense)
    expected, _ = optimizer(LATE).update(dense, optimizer(LATE).init(dense), dense)
    np.testing.assert_array_equal(update["gate"], expected["gate"])
