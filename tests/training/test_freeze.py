"""Frozen parameters: the same bits after the step, no gradient, no moments, nothing of them crosses between devices."""

import functools
import math
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fake_batch import fake_batch, regroup, tiny_config
from meshes import QUICK, assert_close, draw, mesh_of

from moon_jax import config_rules
from moon_jax.models import moon
from moon_jax.parallel.mesh import batch_shards, place_batch
from moon_jax.training.optim import FREEZE, join, split_frozen
from moon_jax.training.state import Trainer
from moon_jax.weights.source import Leaf, named

SHAPE = (1, 2, 2, 2)  # every axis that splits a parameter does
MERGER = {f"vision/merger/{name}" for name in ("norm", "fc1", "fc1_bias", "fc2", "fc2_bias")}
EXPERTS = {f"text/layers/moe/{name}" for name in ("router", "gate", "up", "down")}


def config_of(freeze):
    return tiny_config(
        train__clip_norm=1e9, train__warmup_ratio=0.0, train__freeze=freeze, model__path="checkpoint",
        moe__balance_loss=0.1, moe__z_loss=0.01,
    )  # fmt: skip


def parameters():
    config = config_of("")
    return set(named(moon.abstract_params(config.model, config.moe)))


def learning(freeze):
    """What learns, written out by hand."""
    names = parameters()
    return {
        "": names,
        "vision": MERGER | {name for name in names if name.startswith("text/")},
        "llm": {name for name in names if name.startswith("vision/")},
        "backbone": MERGER | EXPERTS,
        "vision,llm": MERGER,
    }[freeze]


class Drawn:
    """A source of parameters with nothing at a special value."""

    def __init__(self, shapes):
        self.arrays = named(draw(shapes))
        self.leaves = {name: Leaf(array.shape, array.dtype) for name, array in self.arrays.items()}

    def read(self, name, index=()):
        return self.arrays[name][index].copy()


@functools.cache
def run(freeze):
    """Returns (trainer, the parameters, the state before, after one step, after two, their metrics, the program)."""
    mesh = mesh_of(SHAPE)
    trainer = Trainer(config_of(freeze), mesh)
    source = Drawn(trainer.shapes)
    batch = place_batch(
        regroup(fake_batch(8, 1, rows=2, row_tokens=32, patch_dim=48, vocab=96), batch_shards(mesh)), mesh
    )
    with jax.set_mesh(mesh):
        state = trainer.start(source)
        before = jax.tree.map(np.array, state)
        step = trainer.train_step(24 // batch_shards(mesh)).lower(state, batch).compile(compiler_options=QUICK)
        states, metrics = [before], []
        for _ in range(2):
            state, numbers = step(state, batch)
            states.append(jax.tree.map(np.array, state))
            metrics.append(jax.tree.map(np.array, numbers))
    return trainer, source, states, metrics, step.as_text()


def first_gradients(freeze):
    return {name: mu / 0.1 for name, mu in named(moments(run(freeze)[2][1])).items()}


def moments(state):
    return optax.tree_utils.tree_get(state.opt_state, "mu")


def test_a_start_is_the_source_with_fresh_moments_and_an_empty_ring():
    trainer, source, (state, *_), *_ = run("backbone")
    for name, leaf in named(state.params).items():
        np.testing.assert_array_equal(leaf, source.arrays[name], err_msg=name)
    assert int(state.step) == 0
    assert not any(np.any(x) for x in jax.tree.leaves(state.opt_state))
    assert int(state.ring.pushed) == 0
    fresh = trainer.init(0)
    assert jax.tree.structure(fresh) == jax.tree.structure(trainer.abstract_state())
    with jax.set_mesh(trainer.mesh):
        started = trainer.start(source)
    for a, b, c in zip(
        jax.tree.leaves(fresh), jax.tree.leaves(started), jax.tree.leaves(trainer.abstract_state()), strict=True
    ):
        assert (a.shape, a.dtype, a.sharding) == (b.shape, b.dtype, b.sharding) == (c.shape, c.dtype, c.sharding)


@pytest.mark.parametrize("freeze", ["vision", "llm", "backbone"])
def test_frozen_parameters_stay_to_the_bit_and_the_others_learn_as_without(freeze):
    _, source, (_, first, second), metrics, _ = run(freeze)
    everything, learns = run(""), learning(freeze)
    for name, leaf in named(second.params).items():
        if name in learns:
            assert (leaf != source.arrays[name]).any(), name
        else:
            np.testing.assert_array_equal(leaf, source.arrays[name], err_msg=name)
    assert float(metrics[0]["loss"]) == pytest.approx(float(everything[3][0]["loss"]), rel=1e-6)
    np.testing.assert_allclose(first.ring.embeddings, everything[2][1].ring.embeddings, rtol=0, atol=1e-6)
    gradients, expected = first_gradients(freeze), first_gradients("")
    assert gradients.keys() == learns
    for name, gradient in gradients.items():
        assert_close(gradient, expected[name], 1e-5, name)
    norm = math.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in gradients.values()))
    assert float(metrics[0]["grad_norm"]) == pytest.approx(norm, rel=1e-5)
    assert float(metrics[0]["grad_norm"]) < 0.99 * float(everything[3][0]["grad_norm"])
    assert int(second.ring.pushed) == 2, "the ring turns as ever"


@pytest.mark.parametrize("freeze", ["vision", "llm", "backbone"])
def test_frozen_parameters_have_no_moments(freeze):
    trainer, _, (state, *_), *_ = run(freeze)
    for name in ("mu", "nu"):
        assert named(optax.tree_utils.tree_get(state.opt_state, name)).keys() == learning(freeze)
    specs = named(optax.tree_utils.tree_get(trainer.state_specs.opt_state, "nu"))
    assert specs == {name: spec for name, spec in named(trainer.specs).items() if name in learning(freeze)}


def scattered(text, mesh, axis):
    """Returns Counter {elements of the result: how many} of the program's reduce-scatters over one mesh axis."""
    place = mesh.axis_names.index(axis)
    groups = np.moveaxis(np.vectorize(lambda d: d.id)(mesh.devices), place, -1).reshape(-1, mesh.shape[axis])
    wanted = {frozenset(map(int, group)) for group in groups}
    found = Counter()
    for line in text.splitlines():
        if re.search(r" reduce-scatter(-start)?\(", line):
            inside = re.search(r"replica_groups=\{(\{[\d,{} ]*\})\}", line)
            assert inside, f"cannot read: {line}"
            if {frozenset(map(int, g.split(","))) for g in re.findall(r"\{([\d, ]+)\}", inside[1])} == wanted:
                result = re.search(r"= (\(.*?\)|\S+) reduce-scatter", line)[1]
                found.update(
                    math.prod(int(n) for n in dims.split(",") if n) for dims in re.findall(r"\w+\[([\d,]*)\]", result)
                )
    return found


@pytest.mark.parametrize("freeze", ["", "vision", "llm", "backbone"])
def test_only_what_learns_is_reduced(freeze):
    """One reduce-scatter over fsdp for each sharded leaf that learns, none for the others."""
    trainer, *_, text = run(freeze)
    expected = Counter()
    for name in learning(freeze):
        spec, shape = named(trainer.specs)[name], named(trainer.shapes)[name].shape
        if "fsdp" in spec:
            size = math.prod(
                n // (trainer.mesh.shape[axis] if axis else 1) for n, axis in zip(shape, spec, strict=True)
            )
            expected[size // (shape[0] if "layers/" in name or "blocks/" in name else 1)] += 1
    assert expected.total() == {"": 17, "vision": 11, "llm": 8, "backbone": 6}[freeze]
    assert scattered(text, trainer.mesh, "fsdp") == expected


def test_every_word_and_their_union():
    assert set(FREEZE) == set(config_rules.FREEZE_WORDS)
    for freeze in ("", "vision", "llm", "backbone", "vision,llm"):
        tree = {name: jnp.zeros(()) for name in parameters()}
        learns, frozen = split_frozen(tree, tuple(freeze.split(",")) if freeze else ())
        assert set(named(learns)) == learning(freeze)
        assert set(named(frozen)) == parameters() - learning(freeze)
        assert set(named(join(learns, frozen))) == parameters()
    assert config_of(" vision , llm ").train.frozen == ("vision", "llm")
