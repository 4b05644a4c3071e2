"""The router in training: noise that is drawn anew in every step, and a start in which the routers stand still."""

import functools
import itertools

import jax
import numpy as np
import pytest
from fake_batch import fake_batch, tiny_config
from jax.sharding import PartitionSpec as P
from meshes import ONE, Step, leaves, mesh_of

from moon_jax.moe.routing import noise_keys
from moon_jax.parallel.mesh import BATCH_AXES
from moon_jax.training.checkpoint import Checkpoints

HELD = 2  # steps
ROUTER = "text.layers.moe.router"
SPLIT = (1, 1, 1, 2)  # the same batch shard on two devices of `tensor`


@functools.cache
def runs(shape):
    """Returns what 4 steps on one batch gave; the rate does not warm up, the other parameters move at once.

    That is: (params, moments, metrics) before and after each step; the metrics of a step 1 with the parameters of the
    start; the trainer and its last state.
    """
    config = tiny_config(
        train__clip_norm=1e9, train__warmup_ratio=0.0, train__weight_decay=0.5, moe__balance_loss=0.1, moe__z_loss=0.01,
        moe__router_noise=0.5, moe__frozen_router_steps=HELD,
    )  # fmt: skip
    step = Step(config, shape)
    out = []
    with jax.set_mesh(step.mesh):
        batch = step.place(fake_batch(8, 1, rows=2, row_tokens=32, patch_dim=48, vocab=96))
        state = step.state()
        out.append((leaves(jax.tree.map(np.array, state.params)), None, None))
        compiled = step.compile(state, batch)
        for _ in range(4):
            state, metrics = compiled(state, batch)
            host = jax.tree.map(np.array, (state, metrics))
            moments = {name: leaf for name, leaf in leaves(host[0].opt_state).items() if ".mu." in name}
            out.append((leaves(host[0].params), moments, host[1]))
        later = step.state()._replace(step=jax.device_put(np.int32(1), step.trainer.abstract_state().step.sharding))
        again = jax.tree.map(np.array, compiled(later, batch)[1])
    return out, again, step.trainer, state


def test_routers_stand_still_to_the_bit_and_then_learn():
    states = runs(ONE)[0]
    for step, ((before, *_), (after, moments, metrics)) in enumerate(itertools.pairwise(states)):
        moved = {name for name in after if (after[name] != before[name]).any()}
        assert moved == set(after) - ({ROUTER} if step < HELD else set()), f"step {step}"
        of_router = [mu for name, mu in moments.items() if name.endswith("moe.router")]
        assert len(of_router) == 1
        assert of_router[0].any() == (step >= HELD)
        if step == 0:  # Adam's first moments are 0.1 times the gradients: the norm is of the others'
            squares = sum(float(((mu.astype(np.float64) / 0.1) ** 2).sum()) for mu in moments.values())
            assert float(metrics["grad_norm"]) == pytest.approx(squares**0.5, rel=1e-5)


def test_the_state_is_saved_and_restored_with_the_moments_of_the_routers(tmp_path):
    *_, trainer, state = runs(SPLIT)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(4, state, {})
    checkpoints.wait()
    restored = leaves(checkpoints.restore(trainer.abstract_state())[0])
    for name, leaf in leaves(state).items():
        np.testing.assert_array_equal(np.asarray(restored[name]), np.asarray(leaf), err_msg=name)
        assert restored[name].sharding.is_equivalent_to(leaf.sharding, leaf.ndim), name
    specs = {name: spec for name, spec in leaves(trainer.state_specs.opt_state).items() if ".mu." in name}
    assert len(specs) == len(leaves(trainer.specs))
    for name, spec in specs.items():
        assert spec == leaves(trainer.specs)[name.split(".mu.")[1]]


def test_every_step_has_noise_of_its_own():
    """The same parameters and tokens in step 0 and in step 1; what does not know the noise is the same."""
    states, again, *_ = runs(ONE)
    first = states[1][2]
    assert (first["router/load_by_role"] != again["router/load_by_role"]).any(axis=(1, 2)).all()
    assert float(first["router/entropy"][0]) == float(again["router/entropy"][0])  # of the first layer
    np.testing.assert_array_equal(first["router/role_tokens"], again["router/role_tokens"])


def test_a_step_with_noise_equals_that_on_devices_that_split_the_heads():
    for got, want in zip(runs(SPLIT)[0][1:3], runs(ONE)[0][1:3], strict=True):
        assert float(got[2]["loss"]) == pytest.approx(float(want[2]["loss"]), rel=3e-5)
        np.testing.assert_array_equal(got[2]["router/load_by_role"], want[2]["router/load_by_role"])


def test_every_layer_and_batch_shard_has_its_own_key():
    mesh = mesh_of((2, 1, 2, 2))
    local = lambda key: jax.random.key_data(noise_keys(key, 3))[None]  # noqa: E731
    with jax.set_mesh(mesh):  # the result must not differ over `tensor`, or this raises
        fn = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=P(), out_specs=P(BATCH_AXES)))
        keys = np.asarray(fn(jax.random.key(3)))
    assert keys.shape[:2] == (4, 3)
    assert len({tuple(key) for key in keys.reshape(12, -1).tolist()}) == 12
