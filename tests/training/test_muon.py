"""Muon against a formula in numpy by singular values; which parameters it moves; the same step on every mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fake_batch import fake_batch, regroup, tiny_config
from jax.sharding import PartitionSpec as P
from meshes import ONE, QUICK, assert_close, mesh_of

from moon_jax.config import ConfigError, TrainConfig
from moon_jax.parallel.mesh import place_batch
from moon_jax.training import muon
from moon_jax.training.optim import optimizer, schedule
from moon_jax.training.state import Trainer
from moon_jax.weights.source import named

# name: (axes, shape, how a matrix lies in it: leading axes that are stacked, axes of its rows)
KINDS = {
    "gate": (("embed", "ffn"), (6, 10), 0, (0,)),
    "layers/down": (("ffn", "embed"), (3, 10, 6), 1, (1,)),
    "layers/moe/up": (("experts", "embed", "ffn"), (2, 4, 8, 6), 2, (2,)),
    "layers/moe/down": (("split_experts", "split_ffn", "embed"), (2, 4, 6, 8), 2, (2,)),
    "layers/q": (("embed", "kv", "group", "head_dim"), (2, 12, 2, 2, 4), 1, (1,)),
    "layers/o": (("kv", "group", "head_dim", "embed"), (2, 2, 2, 4, 12), 1, (1, 2, 3)),
    "patch_embed": (("frames", "patch", "vision_embed"), (2, 9, 8), 0, (0, 1)),
    "fc1": (("merge", "ffn"), (16, 6), 0, (0,)),
}


def by_singular_values(update, stacked, rows):
    """U f(S) V^T at root mean square 0.2, f five times the quintic polynomial; float64."""
    out = np.empty(update.shape)
    height = int(np.prod([update.shape[axis] for axis in rows]))
    for index in np.ndindex(update.shape[:stacked]):
        matrix = np.asarray(update[index], np.float64)
        flat = matrix.reshape(height, -1)
        u, s, vt = np.linalg.svd(flat, full_matrices=False)
        s = s / np.sqrt((s**2).sum())
        for _ in range(5):
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        out[index] = ((u * s) @ vt * 0.2 * np.sqrt(max(flat.shape))).reshape(matrix.shape)
    return out


def draw(name, seed=0):
    return np.random.default_rng([seed, *name.encode()]).normal(size=KINDS[name][1]).astype(np.float32)


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_matrix_is_made_orthogonal_by_itself(name):
    axes, _, stacked, rows = KINDS[name]
    with jax.set_mesh(mesh_of(ONE)):
        got = jax.jit(functools.partial(muon.orthogonal, axes=axes))(draw(name))
    np.testing.assert_allclose(got, by_singular_values(draw(name), stacked, rows), rtol=0, atol=2e-5)


def test_singular_values_come_near_one():
    """A hundredth of the largest one is lifted as well; the root mean square is that of the rule."""
    r = np.random.default_rng(0)
    u, v = (np.linalg.qr(r.normal(size=(n, 32)))[0] for n in (32, 64))
    matrix = ((u * np.geomspace(1, 0.01, 32)) @ v.T).astype(np.float32)
    with jax.set_mesh(mesh_of(ONE)):
        step = np.asarray(muon.orthogonal(jnp.asarray(matrix), ("embed", "ffn")))
    values = np.linalg.svd(step, compute_uv=False) / (0.2 * 8)
    assert 0.4 < values.min() < values.max() < 1.25
    assert np.sqrt((step**2).mean()) == pytest.approx(0.2, rel=0.2)


def test_steps_follow_the_formula():
    """Nesterov momentum of clipped gradients, orthogonal, decayed, times the rate; what is no matrix follows AdamW."""
    config = TrainConfig(steps=9, optimizer="muon", lr=0.1, warmup_ratio=0.25, weight_decay=0.3, clip_norm=2.0)
    axes = {"gate": ("embed", "ffn"), "embed": ("vocab", "embed"), "norm": ("norm",), "router": ("embed", "routes")}
    shapes = {"gate": (6, 10), "embed": (5, 6), "norm": (6,), "router": (6, 5)}
    r = np.random.default_rng(0)
    params = {name: r.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    gradients = [{name: r.normal(size=shape).astype(np.float32) for name, shape in shapes.items()} for _ in range(5)]
    transform, plain = optimizer(config, axes=axes), optimizer(TrainConfig(**vars(config) | {"optimizer": "adamw"}))
    state, plain_state, momentum = transform.init(params), plain.init(params), np.zeros((6, 10))
    for step, gradient in enumerate(gradients):
        with jax.set_mesh(mesh_of(ONE)):
            updates, state = transform.update(jax.tree.map(jnp.asarray, gradient), state, params)
        expected, plain_state = plain.update(gradient, plain_state, params)
        norm = np.sqrt(sum((np.asarray(g, np.float64) ** 2).sum() for g in gradient.values()))
        clipped = gradient["gate"] * min(1.0, 2.0 / norm)
        momentum = 0.95 * momentum + clipped
        turned = by_singular_values(clipped + 0.95 * momentum, 0, (0,))
        want = -float(schedule(config)(step)) * (turned + 0.3 * params["gate"])
        np.testing.assert_allclose(updates["gate"], want, rtol=0, atol=3e-6)
        for name in ("embed", "norm", "router"):
            np.testing.assert_allclose(updates[name], expected[name], rtol=1e-6, atol=1e-8)
        assert step == 0 or np.abs(updates["gate"] - expected["gate"]).max() > 1e-3


MATRICES = {
    *(f"text/layers/{name}" for name in ("q", "k", "v", "o", "moe/gate", "moe/up", "moe/down")),
    *(f"vision/blocks/{name}" for name in ("qkv", "proj", "gate", "up", "down")),
    *("vision/merger/fc1", "vision/merger/fc2", "vision/patch_embed"),
}
ROUTER = "text/layers/moe/router"


def config_of():
    return tiny_config(train__optimizer="muon", train__warmup_ratio=0.0, moe__frozen_router_steps=3)


def moments_of(trainer):
    """Returns the names of the parameters that have a momentum of Muon, and those that have two moments of Adam."""
    inner = trainer.abstract_state().opt_state[1][0].inner_states
    trace, adam = inner["muon"].inner_state[0][0].trace, inner["adam"].inner_state[0]
    names = lambda tree: {name for name, leaf in named(tree).items() if not isinstance(leaf, optax.MaskedNode)}  # noqa: E731
    assert names(adam.mu) == names(adam.nu)
    return names(trace), names(adam.mu)


def test_hidden_matrices_have_one_moment_and_all_others_two():
    trainer = Trainer(config_of(), mesh_of((1, 2, 2, 2)))
    on_muon, on_adam = moments_of(trainer)
    assert on_muon == MATRICES
    assert on_adam == set(named(trainer.shapes)) - MATRICES - {ROUTER}
    gate = trainer.state_specs.opt_state[1][0].inner_states["muon"].inner_state[0][0].trace["text"]["layers"]["moe"]
    assert gate["gate"] == trainer.specs["text"]["layers"]["moe"]["gate"] != P()


def stepped(shape):
    """Returns the parameters before and after a step of the same batch, name -> array."""
    config, mesh = config_of(), mesh_of(shape)
    trainer = Trainer(config, mesh)
    made = fake_batch(8, 1, rows=2, row_tokens=32, patch_dim=48, vocab=96)
    shards = mesh.shape["data"] * mesh.shape["fsdp"] * mesh.shape["expert"]
    batch = regroup(made, shards)
    state = trainer.init(0)
    before = {name: np.asarray(p) for name, p in named(state.params).items()}
    with jax.set_mesh(mesh):
        placed = place_batch(batch, mesh)
        step = trainer.train_step(3 * batch["query"].shape[1]).lower(state, placed).compile(compiler_options=QUICK)
        state, metrics = step(state, placed)
    assert np.isfinite(float(metrics["loss"]))
    return before, {name: np.asarray(p) for name, p in named(state.params).items()}


def test_a_step_where_every_axis_splits_matrices_equals_that_of_one_device():
    """While the routers, which AdamW moves, stay as they are."""
    before, after = stepped((1, 2, 2, 2))
    start, expected = stepped(ONE)
    for name in MATRICES:
        np.testing.assert_array_equal(before[name], start[name])
        assert_close(after[name] - before[name], expected[name] - start[name], 2e-3, name)
    np.testing.assert_array_equal(before[ROUTER], after[ROUTER])


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(ConfigError, match=r"config.train.optimizer is 'adam'; it must be one of adamw, muon"):
        tiny_config(train__optimizer="adam")
