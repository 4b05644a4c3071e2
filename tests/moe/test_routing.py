"""Routing against a loop over tokens that follows the sentences of the paper."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moon_jax.config import MoEConfig, Role
from moon_jax.moe.routing import CATEGORY_EXPERT, attribute_expert, general_experts, route

T = 200


def route_token(logits, role, config):
    """Returns {expert: weight} of one token in float64."""
    n = len(logits)
    guided = {Role.CATEGORY: 0, Role.ATTRIBUTE: n // 2}
    if role == Role.PADDING:
        return {}
    general = [e for e in range(n) if e not in guided.values()]
    active = sorted(general, key=lambda e: (-logits[e], e))[: config.top_k]
    if role in guided:
        active = [guided[role]] if config.guided == "exclusive" else [*active, guided[role]]
    total = active if config.gate == "softmax_active" else range(n)
    z = sum(math.exp(logits[e]) for e in total)
    return {e: math.exp(logits[e]) / z for e in active}


def draw(n, seed=0):
    r = np.random.default_rng(seed)
    return r.normal(size=(T, n)).astype(np.float32) * 2, r.integers(0, len(Role), T).astype(np.int32)


@pytest.mark.parametrize("gate", ["softmax_active", "softmax_all"])
@pytest.mark.parametrize("guided", ["add", "exclusive"])
@pytest.mark.parametrize(("experts", "top_k"), [(8, 2), (8, 6), (3, 1), (5, 2)])
def test_equals_a_loop_over_tokens(gate, guided, experts, top_k):
    config = MoEConfig(experts=experts, top_k=top_k, gate=gate, guided=guided)
    logits, roles = draw(experts)
    ids, weights = jax.jit(route, static_argnums=2)(logits, roles, config)
    assert ids.shape == weights.shape == (T, top_k + 1)
    assert ids.dtype == jnp.int32
    assert weights.dtype == jnp.float32
    for t in range(T):
        taken = [(int(e), float(w)) for e, w in zip(ids[t], weights[t], strict=True) if e < experts]
        assert len(dict(taken)) == len(taken), "an expert is visited twice"
        assert dict(taken) == pytest.approx(route_token(logits[t], roles[t], config), rel=1e-5)
        idle = [float(w) for e, w in zip(ids[t], weights[t], strict=True) if e == experts]
        assert idle == [0.0] * (top_k + 1 - len(taken))
        assert int(ids[t].max()) <= experts


@pytest.mark.parametrize("guided", ["add", "exclusive"])
def test_active_weights_sum_to_one(guided):
    logits, roles = draw(8)
    _, weights = route(jnp.asarray(logits), jnp.asarray(roles), MoEConfig(guided=guided))
    np.testing.assert_allclose(weights.sum(axis=1), (roles != Role.PADDING).astype(np.float32), atol=1e-6)


def test_the_routes_in_their_order():
    """Routes 0..top_k-1: the general experts from the best; the last route: the guided expert or nothing (8)."""
    logits = np.float32([[9, 1, 2, 3, 9, 6, 5, 4]] * 4)
    roles = np.int32([Role.TITLE, Role.CATEGORY, Role.ATTRIBUTE, Role.PADDING])
    ids, _ = route(jnp.asarray(logits), jnp.asarray(roles), MoEConfig())
    assert ids.tolist() == [[5, 6, 8], [5, 6, 0], [5, 6, 4], [8, 8, 8]]
    ids, weights = route(jnp.asarray(logits), jnp.asarray(roles), MoEConfig(guided="exclusive"))
    assert ids.tolist() == [[5, 6, 8], [8, 8, 0], [8, 8, 4], [8, 8, 8]]
    assert weights[1].tolist() == [0, 0, 1]


def test_the_guided_experts_are_closed_to_all_other_roles():
    """However much the router wants them."""
    logits, _ = draw(8)
    logits[:, [0, 4]] += 50
    for role in Role:
        ids, _ = route(jnp.asarray(logits), jnp.full(T, int(role), jnp.int32), MoEConfig())
        visits = np.bincount(np.asarray(ids).reshape(-1), minlength=9)
        assert visits[0] == (T if role == Role.CATEGORY else 0)
        assert visits[4] == (T if role == Role.ATTRIBUTE else 0)


@pytest.mark.parametrize("experts", [3, 4, 8, 16, 64])
def test_physical_order(experts):
    guided = {CATEGORY_EXPERT, attribute_expert(experts)}
    assert len(guided) == 2
    assert sorted([*guided, *general_experts(experts).tolist()]) == list(range(experts))
    for shards in range(2, experts + 1):
        if experts % shards == 0:  # on different shards of the expert axis
            assert len({number // (experts // shards) for number in guided}) == 2


def test_no_gradient_of_an_expert_that_is_not_visited():
    logits, roles = draw(8)
    config = MoEConfig()
    _, weights = route(jnp.asarray(logits), jnp.asarray(roles), config)
    to = np.random.default_rng(1).normal(size=weights.shape).astype(np.float32)
    gradient = jax.grad(lambda x: (route(x, jnp.asarray(roles), config)[1] * to).sum())(jnp.asarray(logits))
    gradient = np.asarray(gradient)
    assert np.isfinite(gradient).all()
    for t in range(T):
        visited = route_token(logits[t], roles[t], config)
        idle = [e for e in range(8) if e not in visited]
        assert not gradient[t, idle].any()
        if len(visited) > 1:
            assert gradient[t, list(visited)].any()


def test_huge_logits_stay_finite():
    logits, roles = draw(8)
    for gate in ("softmax_active", "softmax_all"):
        config = dataclasses.replace(MoEConfig(), gate=gate)
        _, weights = route(jnp.asarray(logits) * 1e4, jnp.asarray(roles), config)
        assert np.isfinite(weights).all()


@pytest.mark.parametrize("gate", ["softmax_active", "softmax_all"])
def test_noise_chooses_and_does_not_weigh(gate):
    """The same experts as for the noisy logits, with the weights of the raw ones."""
    config = MoEConfig(gate=gate)
    logits, roles = draw(8, seed=3)
    noise = np.random.default_rng(4).normal(size=(T, 6)).astype(np.float32) * 3
    general = general_experts(8)
    noisy = logits.copy()
    noisy[:, general] += noise
    ids, weights = route(jnp.asarray(logits), jnp.asarray(roles), config, jnp.asarray(noise))
    chosen, _ = route(jnp.asarray(noisy), jnp.asarray(roles), config)
    np.testing.assert_array_equal(ids, chosen)
    quiet, _ = route(jnp.asarray(logits), jnp.asarray(roles), config)
    assert (np.asarray(ids) != np.asarray(quiet)).any()
    for t in range(T):
        taken = [int(e) for e in ids[t] if e < 8]
        total = math.fsum(math.exp(logits[t, e]) for e in (taken if gate == "softmax_active" else range(8)))
        want = [math.exp(logits[t, e]) / total if e < 8 else 0.0 for e in ids[t].tolist()]
        assert weights[t].tolist() == pytest.approx(want, rel=1e-5)


def test_the_choice_has_no_gradient():
    """With noise or without: the slope of the weights at fixed choices, by central differences in float64."""
    logits, roles = draw(8, seed=5)
    noise = np.random.default_rng(6).normal(size=(T, 6)).astype(np.float32)
    to = np.random.default_rng(7).normal(size=(T, 3))
    ids = np.asarray(route(jnp.asarray(logits), jnp.asarray(roles), MoEConfig(), jnp.asarray(noise))[0])

    def value(x):
        exp = np.where(ids < 8, np.exp(np.take_along_axis(x, np.minimum(ids, 7), axis=1)), 0)
        return (exp / np.maximum(exp.sum(1, keepdims=True), 1e-30) * to).sum()

    gradient = jax.grad(lambda x: (route(x, jnp.asarray(roles), MoEConfig(), jnp.asarray(noise))[1] * to).sum())
    direction = np.random.default_rng(8).normal(size=logits.shape)
    x = logits.astype(np.float64)
    slope = (value(x + 1e-5 * direction) - value(x - 1e-5 * direction)) / 2e-5
    assert float((np.asarray(gradient(jnp.asarray(logits))) * direction).sum()) == pytest.approx(slope, rel=1e-4)
