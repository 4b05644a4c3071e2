"""One whole train step: the same numbers on every mesh, and sane ones on batches that lack pictures or texts."""

import functools

import jax
import numpy as np
import pytest
from fake_batch import fake_batch, tiny_config
from flax import nnx
from meshes import EIGHT, ONE, QUICK, Step, assert_close, draw, leaves, mesh_of, name_of, step_on

from moon_jax.config import Role
from moon_jax.models import moon
from moon_jax.parallel.mesh import BATCH_SPEC
from moon_jax.training.state import Trainer

SHAPES = ((2, 1, 1, 1), (1, 4, 1, 1), *EIGHT)


@functools.cache
def config_of(**overrides):
    settings = {
        "train__clip_norm": 1e9, "train__warmup_ratio": 0.0, "moe__balance_loss": 0.1, "moe__z_loss": 0.01,
    }  # fmt: skip
    return tiny_config(**settings | overrides)


@functools.cache
def batch():
    made = fake_batch(8, 1, rows=2, row_tokens=32, patch_dim=48, vocab=96)
    made["negative_product"][3] = made["positive_product"][5]  # repeats, so that the mask has work across shards
    made["negative_product"][6] = made["negative_product"][1]
    return made


@functools.cache
def on_one_device():
    return step_on(config_of(), ONE).run(batch(), steps=3)


def assert_same_step(got, want):
    assert got.loss == pytest.approx(want.loss, rel=3e-6)
    assert set(got.metrics) == set(want.metrics)
    for name, value in want.metrics.items():
        np.testing.assert_allclose(got.metrics[name], value, rtol=2e-5, atol=1e-6, err_msg=name)
    for name, value in want.gradients.items():
        assert_close(got.gradients[name], value, 1e-4, name)  # float32 and scores over tau = 0.05
    if want.ring is not None:
        np.testing.assert_allclose(got.ring.embeddings, want.ring.embeddings, rtol=0, atol=2e-6)
        np.testing.assert_array_equal(got.ring.products, want.ring.products)
        assert int(got.ring.pushed) == int(want.ring.pushed)


@pytest.mark.parametrize("shape", SHAPES, ids=name_of)
def test_equals_one_device(shape):
    """Loss, metrics, gradients and ring of a first step; the loss of two more, after updates and with the ring."""
    results, expected = step_on(config_of(), shape).run(batch(), steps=3), on_one_device()
    assert_same_step(results[0], expected[0])
    for step in (1, 2):
        assert results[step].loss == pytest.approx(expected[step].loss, rel=3e-4)
        for name in ("negatives", "possible_negatives", "ring_fill", "lr"):
            np.testing.assert_allclose(results[step].metrics[name], expected[step].metrics[name], rtol=1e-6)


def test_every_parameter_learns():
    """No leaf is left out of the gradient; the guided experts and the vision tower are part of it."""
    first = on_one_device()[0]
    assert all(np.isfinite(g).all() for g in first.gradients.values())
    assert [name for name, g in first.gradients.items() if np.abs(g).max() < 1e-6] == []
    for name in ("gate", "up", "down"):
        per_expert = np.abs(first.gradients[f"text.layers.moe.{name}"]).max(axis=(2, 3))
        assert (per_expert > 0).all()


def test_gradients_are_the_slope_of_the_loss():
    """By central differences along the gradient itself, on the mesh that splits everything."""
    step = step_on(config_of(), (1, 2, 2, 2))
    params = draw(step.trainer.shapes)
    gradients = step.run(batch())[0].gradients
    norm = np.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in gradients.values()))
    size = 2e-4
    flat, tree = jax.tree.flatten(params)
    losses = []
    for sign in (1, -1):
        moved = [p + sign * size / norm * g for p, g in zip(flat, gradients.values(), strict=True)]
        losses.append(step.run(batch(), params=tree.unflatten(moved))[0].loss)
    assert (losses[0] - losses[1]) / (2 * size) == pytest.approx(norm, rel=0.02)


def test_grad_norm_and_metrics():
    first, second, third = on_one_device()
    norm = np.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in first.gradients.values()))
    assert float(first.metrics["grad_norm"]) == pytest.approx(norm, rel=1e-4)
    auxiliary = 0.1 * first.metrics["router/balance_loss"] + 0.01 * first.metrics["router/z_loss"]
    assert first.loss == pytest.approx(float(first.metrics["contrastive_loss"] + auxiliary), rel=1e-6)
    assert [float(r.metrics["ring_fill"]) for r in (first, second, third)] == [0, 1, 2]
    assert [float(r.metrics["possible_negatives"]) for r in (first, second, third)] == [15, 31, 47]
    # one repeat masked for all, the same batch again is masked as a repeat entirely
    assert float(second.metrics["negatives"]) == float(first.metrics["negatives"])
    assert float(first.metrics["router/dropped"].sum()) == 0
    tokens = (batch()["roles"] != Role.PADDING).sum()
    assert first.metrics["router/category_tokens"].tolist() == [(batch()["roles"] == Role.CATEGORY).sum()] * 2
    assert first.metrics["router/attribute_tokens"].tolist() == [(batch()["roles"] == Role.ATTRIBUTE).sum()] * 2
    general = first.metrics["router/load"][:, [1, 2, 3, 5, 6, 7]].sum(axis=1) * tokens
    np.testing.assert_allclose(general, 2 * tokens, rtol=1e-5)


def test_the_ring_holds_embeddings_of_before_the_update():
    """And in the order of the global batch: positives, hard negatives, newest batch in the place of the oldest."""
    config = config_of()
    step = step_on(config, ONE)
    results = on_one_device()
    graphdef, shapes, specs = moon.abstract(config.model, config.moe, step.mesh)
    shards = step.place(batch())
    host = jax.tree.map(np.asarray, shards)
    before = draw(shapes)
    after = jax.tree.unflatten(jax.tree.structure(before), results[0].params.values())
    with jax.set_mesh(step.mesh):
        forward = jax.shard_map(
            lambda params, batch: nnx.merge(graphdef, params).embed({k: a[0] for k, a in batch.items()}, 24)[0],
            mesh=step.mesh, in_specs=(specs, BATCH_SPEC), out_specs=BATCH_SPEC,
        )  # fmt: skip
        embed = jax.jit(forward).lower(step.state(before).params, shards)
        embed = embed.compile(compiler_options=QUICK)
        for result, params, place in ((results[0], before, 0), (results[1], after, 1)):
            vectors = np.asarray(embed(step.state(params).params, shards))
            np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
            want = np.stack([vectors[host["positive"][0]], vectors[host["negative"][0]]])
            np.testing.assert_allclose(result.ring.embeddings[place], want, rtol=0, atol=2e-6)
    assert np.abs(results[1].ring.embeddings[1] - results[1].ring.embeddings[0]).max() > 1e-3, "the update moves them"
    np.testing.assert_array_equal(
        results[0].ring.products[0], np.stack([host["positive_product"][0], host["negative_product"][0]])
    )
    assert int(results[2].ring.pushed) == 3


def test_a_step_is_repeated_to_the_bit():
    again = step_on(config_of(), ONE).run(batch())[0]
    first = on_one_device()[0]
    assert again.loss == first.loss
    for name, value in first.params.items():
        np.testing.assert_array_equal(again.params[name], value)


def test_learns_one_batch_by_heart():
    losses = [r.metrics["contrastive_loss"] for r in step_on(config_of(), (8, 1, 1, 1)).run(batch(), steps=12)]
    assert losses[-1] < 0.5 * losses[0]


def only(kind):
    made = {name: a.copy() for name, a in batch().items()}
    real = made["segment_ids"] > 0
    if kind == "text":
        made["roles"] = np.where(made["roles"] == Role.IMAGE, Role.TITLE, made["roles"]).astype(np.int32)
        made["image_slots"][:] = -1
        made["patch_picture"][:] = 0
        made["patches"][:] = 0
    else:
        made["roles"] = np.where(real, Role.IMAGE, Role.PADDING).astype(np.int32)
        visual = made["patches"].shape[1] * made["patches"].shape[2] // 4
        order = np.cumsum(real.reshape(len(real), -1), axis=1).reshape(real.shape) % visual
        made["image_slots"] = np.where(real, order, -1).astype(np.int32)
    return made


def test_text_only_on_eight_devices():
    step = step_on(config_of(), (8, 1, 1, 1))
    for result in step.run(only("text"), steps=2):
        assert np.isfinite(result.loss)
        assert all(np.isfinite(p).all() for p in (*result.gradients.values(), *result.params.values()))
        for name, gradient in result.gradients.items():
            if name.startswith("vision."):
                assert not gradient.any(), name
    assert np.abs(result.gradients["text.embed"]).max() > 0


def test_pictures_in_one_shard_only():
    """The others wait at the same collectives: neither a hang nor a change of the sum."""
    mixed = {name: a.copy() for name, a in only("text").items()}
    for name in ("roles", "image_slots", "patch_picture", "patches"):
        mixed[name][2] = batch()[name][2]
    result, expected = (step_on(config_of(), shape).run(mixed)[0] for shape in ((8, 1, 1, 1), ONE))
    assert_same_step(result, expected)
    assert np.abs(result.gradients["vision.patch_embed"]).max() > 0


def test_image_only_on_eight_devices():
    result = step_on(config_of(), (8, 1, 1, 1)).run(only("image"))[0]
    assert np.isfinite(result.loss)
    assert all(np.isfinite(p).all() for p in (*result.gradients.values(), *result.params.values()))
    assert not result.gradients["text.embed"].any()
    assert result.metrics["router/category_tokens"].tolist() == [0, 0]
    for name in ("gate", "up", "down"):
        gradient = result.gradients[f"text.layers.moe.{name}"]
        assert not gradient[:, [0, 4]].any(), "guided experts without a token"
        assert gradient[:, [1, 2, 3, 5, 6, 7]].any()


def test_padding_counts_for_nothing():
    """Tokens, patches and positions at padded places are arbitrary."""
    r = np.random.default_rng(9)
    other = {name: a.copy() for name, a in batch().items()}
    empty = other["segment_ids"] == 0
    other["tokens"] = np.where(empty, r.integers(0, 96, empty.shape), other["tokens"]).astype(np.int32)
    noise = r.integers(0, 32, other["positions"].shape)
    other["positions"] = np.where(empty[:, None], noise, other["positions"]).astype(np.int32)
    result, expected = step_on(config_of(), ONE).run(other)[0], on_one_device()[0]
    assert_same_step(result, expected)
    for name, value in expected.gradients.items():
        assert_close(result.gradients[name], value, 2e-5, name)


def test_bfloat16_is_near_float32():
    result = step_on(config_of(model__dtype="bfloat16"), (2, 2, 2, 1)).run(batch(), steps=2)[0]
    expected = on_one_device()[0]
    assert result.loss == pytest.approx(expected.loss, rel=0.05)
    for gradient in result.gradients.values():
        assert gradient.dtype == np.float32
        assert np.isfinite(gradient).all()
    flat, want = (np.concatenate([g.ravel() for g in r.gradients.values()]) for r in (result, expected))
    assert flat @ want / np.linalg.norm(flat) / np.linalg.norm(want) > 0.9
    ring, want = result.ring.embeddings[0], expected.ring.embeddings[0]
    assert ring.dtype == np.float32
    assert (ring * want).sum(-1).min() > 0.98


def test_remat_changes_nothing():
    assert_same_step(step_on(config_of(model__remat="none"), ONE).run(batch())[0], on_one_device()[0])


def test_the_dense_ffn_without_a_ring():
    """experts = 0 and k = 0, sharded and with remat, against one device without remat; negatives within groups of 4."""
    dense = {"moe__experts": 0, "loss__ring_batches": 0, "loss__group_size": 4}
    result = step_on(config_of(**dense), (1, 2, 2, 2)).run(batch(), steps=2)[1]
    expected = step_on(config_of(model__remat="none", **dense), ONE).run(batch(), steps=2)[1]
    assert result.ring is None
    assert result.loss == pytest.approx(expected.loss, rel=3e-4)
    first, want = (step_on(config_of(**d), s).run(batch())[0] for d, s in (
        (dense, (1, 2, 2, 2)), ({"model__remat": "none", **dense}, ONE)))  # fmt: skip
    assert_same_step(first, want)
    assert not any(name.startswith("router") for name in first.metrics)
    assert float(first.metrics["possible_negatives"]) == 7
    assert all(np.abs(g).max() > 0 for name, g in first.gradients.items() if "k_bias" not in name)


def test_init_is_the_same_on_every_mesh():
    config = config_of()
    sharded = Trainer(config, mesh_of((2, 2, 2, 1))).init(3)
    key = jax.random.key(3)
    build = jax.jit(lambda key: moon.build(config.model, config.moe, key)[1])
    expected = build.lower(key).compile(compiler_options=QUICK)(key)
    for name, value in leaves(expected).items():
        np.testing.assert_allclose(leaves(sharded.params)[name], value, rtol=0, atol=1e-6, err_msg=name)
    assert int(sharded.step) == 0
    assert int(sharded.ring.pushed) == 0


def test_the_state_is_donated_and_keeps_its_shardings():
    step = Step(config_of(), (2, 2, 2, 1))
    step.compiled = step_on(config_of(), (2, 2, 2, 1)).compiled
    with jax.set_mesh(step.mesh):
        before, placed = step.state(), step.place(batch())
        after, _ = step.compile(before, placed)(before, placed)
    for name, leaf in leaves((after.params, after.opt_state, after.ring)).items():
        old = leaves((before.params, before.opt_state, before.ring))[name]
        assert old.is_deleted(), name
        assert leaf.sharding.is_equivalent_to(old.sharding, leaf.ndim), name
        assert leaf.dtype == old.dtype
