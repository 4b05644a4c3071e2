"""InfoNCE against a float64 loop over the paper's sets S_i, written from the formula, value and gradients."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from meshes import QUICK, assert_close, mesh_of, name_of

from moon_jax.config import LossConfig
from moon_jax.contrastive import ring as rings
from moon_jax.contrastive.loss import Triplets, info_nce
from moon_jax.parallel.mesh import BATCH_SPEC, shardings

B, D = 16, 12  # triplets of the global batch, width
MESHES = ((1, 1, 1, 1), (1, 2, 1, 1), (2, 1, 2, 1), (2, 2, 2, 1), (1, 2, 2, 2))


def oracle(triplets, past, config):
    """Returns (loss, gradients wrt query, positive, negative, metrics); `past` = [(vectors, products)] newest first.

    S_i is gathered candidate by candidate in the order of precedence, which starts with the query's own hard negative.
    """
    q, p, n = (np.asarray(t, np.float64) for t in triplets[:3])
    p_id, n_id = triplets[3:]
    batch = len(q)
    grads = {"q": np.zeros_like(q), "p": np.zeros_like(p), "n": np.zeros_like(n)}
    losses, counts, hits = [], [], []
    for i in range(batch):
        group = range(batch)
        if config.group_size:
            first = i - i % config.group_size
            group = range(first, first + config.group_size)
        candidates = [("n", i, n[i], n_id[i])]
        candidates += [("p", j, p[j], p_id[j]) for j in group if j != i]
        candidates += [("n", j, n[j], n_id[j]) for j in group if j != i]
        for vectors, products in past:
            candidates += [
                (None, None, v, c) for v, c in zip(vectors.reshape(-1, D), products.reshape(-1), strict=True)
            ]
        seen, kept = {p_id[i]}, []
        for candidate in candidates:
            if config.mask_false_negatives and candidate[3] in seen:
                continue
            seen.add(candidate[3])
            kept.append(candidate)
        terms = [("p", i, p[i], p_id[i]), *kept]
        scores = np.array([q[i] @ np.asarray(v, np.float64) for _, _, v, _ in terms]) / config.temperature
        top = scores.max()
        log_z = top + math.log(np.exp(scores - top).sum())
        losses.append(log_z - scores[0])
        counts.append(len(kept))
        hits.append(all(scores[0] > s for s, (kind, *_) in zip(scores[1:], kept, strict=True) if kind))
        for j, (kind, row, vector, _) in enumerate(terms):
            d_score = (math.exp(scores[j] - log_z) - (j == 0)) / config.temperature / batch
            grads["q"][i] += d_score * np.asarray(vector, np.float64)
            if kind:
                grads[kind][row] += d_score * q[i]
    possible = 2 * (config.group_size or batch) * (len(past) + 1) - 1
    metrics = {
        "negatives": np.mean(counts),
        "possible_negatives": possible,
        "masked_fraction": 1 - np.mean(counts) / possible,
        "in_batch_accuracy": np.mean(hits),
        "ring_fill": len(past),
    }
    return np.mean(losses), grads, metrics


def unit(r, *shape):
    x = r.normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def draw(seed, catalogue, batch=B):
    """Triplets whose queries lean to their positives; few products in the catalogue mean many repeats."""
    r = np.random.default_rng(seed)
    p = unit(r, batch, D)
    q = p + 2 * unit(r, batch, D)
    q = (q / np.linalg.norm(q, axis=1, keepdims=True)).astype(np.float32)
    ids = r.integers(0, catalogue, (2, batch)).astype(np.int32)
    return Triplets(q, p, unit(r, batch, D), *ids)


def past_batch(seed, catalogue, batch=B):
    r = np.random.default_rng(1000 + seed)
    return unit(r, 2, batch, D), r.integers(0, catalogue, (2, batch)).astype(np.int32)


@functools.cache
def compiled(shape, config, ring):
    """Returns the jitted (triplets, ring) -> ((loss, metrics), gradients) on a mesh."""
    mesh = mesh_of(shape)
    ring_specs = rings.SPECS if ring else None
    fn = jax.shard_map(
        lambda q, p, n, ids, ring: info_nce(Triplets(q, p, n, *ids), ring, config),
        mesh=mesh,
        in_specs=(BATCH_SPEC, BATCH_SPEC, BATCH_SPEC, BATCH_SPEC, ring_specs),
        out_specs=(P(), P()),
    )
    value_and_grad = jax.value_and_grad(fn, argnums=(0, 1, 2), has_aux=True)
    if ring:
        # the ring too: that nothing flows into it is part of the formula
        value_and_grad = jax.value_and_grad(
            lambda q, p, n, vectors, ids, ring: fn(q, p, n, ids, ring._replace(embeddings=vectors)),
            argnums=(0, 1, 2, 3),
            has_aux=True,
        )
    return mesh, jax.jit(value_and_grad, compiler_options=QUICK)


def evaluate(shape, config, triplets, ring=None):
    mesh, fn = compiled(shape, config, ring is not None)
    place = functools.partial(jax.device_put, device=jax.sharding.NamedSharding(mesh, BATCH_SPEC))
    q, p, n, *ids = (place(t) for t in triplets)
    with jax.set_mesh(mesh):
        if ring is None:
            return fn(q, p, n, tuple(ids), None)
        ring = jax.tree.map(jax.device_put, ring, shardings(rings.SPECS, mesh))
        (loss, metrics), (*grads, to_ring) = fn(q, p, n, ring.embeddings, tuple(ids), ring)
    assert not np.asarray(to_ring).any(), "a gradient flows into the ring"
    return (loss, metrics), grads


def check(shape, config, triplets, past=(), ring=None):
    (loss, metrics), grads = evaluate(shape, config, triplets, ring)
    expected, expected_grads, expected_metrics = oracle(triplets, list(past), config)
    assert float(loss) == pytest.approx(expected, rel=3e-6, abs=1e-6)
    for (name, want), got in zip(expected_grads.items(), grads, strict=True):
        assert_close(got, want, 2e-5, f"gradient of {name}")
    assert set(metrics) == set(expected_metrics)
    for name, want in expected_metrics.items():
        assert float(metrics[name]) == pytest.approx(want, rel=1e-5, abs=1e-6), name


def ring_of(k, pushes, catalogue):
    """Returns (ring after that many pushes, what is in it from the newest to the oldest)."""
    ring = rings.empty(k, B, D)
    # what lies in an empty place must not count: vectors that would win, products that would mask
    ring = ring._replace(
        embeddings=jnp.asarray(unit(np.random.default_rng(5), k, 2, B, D)), products=jnp.zeros((k, 2, B), jnp.int32)
    )
    batches = [past_batch(i, catalogue) for i in range(pushes)]
    for vectors, products in batches:
        ring = rings.push(ring, jnp.asarray(vectors), jnp.asarray(products))
    return ring, batches[::-1][:k]


@pytest.mark.parametrize("shape", MESHES, ids=name_of)
@pytest.mark.parametrize("catalogue", [10_000, 9])
def test_batch_only(shape, catalogue):
    check(shape, LossConfig(ring_batches=0), draw(0, catalogue))


@pytest.mark.parametrize("shape", MESHES, ids=name_of)
def test_ring_of_two_batches(shape):
    for pushes in (0, 1, 2, 3):
        ring, past = ring_of(2, pushes, catalogue=40)
        check(shape, LossConfig(ring_batches=2), draw(pushes, 40), past, ring)


@pytest.mark.parametrize("k", [1, 3])
def test_ring_empty_half_filled_full_and_turned_over(k):
    for pushes in range(k + 3):
        ring, past = ring_of(k, pushes, catalogue=60)
        check((2, 1, 2, 1), LossConfig(ring_batches=k), draw(pushes, 60), past, ring)


def test_without_the_mask_the_number_of_negatives_is_the_paper_s():
    config = LossConfig(mask_false_negatives=False)
    for pushes in (0, 1, 2):
        ring, past = ring_of(2, pushes, catalogue=5)
        triplets = draw(1, 5)
        check((2, 2, 2, 1), config, triplets, past, ring)
        (_, metrics), _ = evaluate((2, 2, 2, 1), config, triplets, ring)
        assert float(metrics["negatives"]) == 2 * B * (pushes + 1) - 1  # P B = 16: all devices
        assert float(metrics["masked_fraction"]) == 0


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 1, 2, 1), (2, 2, 2, 1)], ids=name_of)
@pytest.mark.parametrize("group_size", [1, 4])
def test_groups(shape, group_size):
    config = LossConfig(ring_batches=0, group_size=group_size)
    check(shape, config, draw(2, 10_000))
    check(shape, config, draw(3, 7))  # repeats within a group and across groups


def test_groups_without_the_mask():
    config = LossConfig(ring_batches=0, group_size=4, mask_false_negatives=False)
    check((2, 1, 2, 1), config, draw(2, 7))


def test_a_repeat_in_another_group_masks_nothing():
    p_id, n_id = np.arange(B, dtype=np.int32), np.arange(B, dtype=np.int32) % 4 + 100
    triplets = draw(4, 10_000)._replace(positive_product=p_id, negative_product=n_id)
    (_, metrics), _ = evaluate((1, 1, 1, 1), LossConfig(ring_batches=0, group_size=4), triplets)
    assert float(metrics["negatives"]) == 7


def test_hand_computed():
    """Two triplets at tau = 1; q1 = p1 = n2 = (1, 0) and q2 = p2 = n1 = (0, 1)."""
    e1, e2 = np.eye(2, dtype=np.float32)
    triplets = Triplets(np.stack([e1, e2]), np.stack([e1, e2]), np.stack([e2, e1]), np.int32([0, 1]), np.int32([2, 3]))
    mesh = mesh_of((1, 2, 1, 1))

    def loss_of(triplets, config):
        fn = jax.shard_map(lambda t: info_nce(t, None, config), mesh=mesh, in_specs=(BATCH_SPEC,), out_specs=P())
        loss, metrics = jax.jit(fn)(
            jax.tree.map(lambda x: jax.device_put(x, jax.sharding.NamedSharding(mesh, BATCH_SPEC)), triplets)
        )
        return float(loss), {name: float(x) for name, x in metrics.items()}

    config = LossConfig(temperature=1.0, ring_batches=0)
    # own score 1; the other positive 0, its hard negative 1, the own hard negative 0
    loss, metrics = loss_of(triplets, config)
    assert loss == pytest.approx(math.log(2 * math.e + 2) - 1, abs=1e-6)
    assert metrics["negatives"] == metrics["possible_negatives"] == 3
    assert metrics["in_batch_accuracy"] == 0  # the own positive does not beat the other hard negative: they are equal

    # both hard negatives are the same product: each query keeps its own one (score 0) and not the other (score 1)
    loss, metrics = loss_of(triplets._replace(negative_product=np.int32([2, 2])), config)
    assert loss == pytest.approx(math.log(math.e + 2) - 1, abs=1e-6)
    assert metrics["negatives"] == 2
    assert metrics["masked_fraction"] == pytest.approx(1 / 3)
    assert metrics["in_batch_accuracy"] == 1

    # the second hard negative is the first query's own product: query 1 loses its only wrong score of 1; query 2 keeps
    # it as its own (score 0), loses the other positive as its repeat, and keeps the other hard negative (score 1)
    loss, metrics = loss_of(triplets._replace(negative_product=np.int32([2, 0])), config)
    assert loss == pytest.approx((math.log(math.e + 2) + math.log(2 * math.e + 1)) / 2 - 1, abs=1e-6)
    assert metrics["negatives"] == 2
    assert metrics["in_batch_accuracy"] == 0.5

    # everything is one product: nothing is left to tell apart
    same = triplets._replace(positive_product=np.int32([7, 7]), negative_product=np.int32([7, 7]))
    loss, metrics = loss_of(same, config)
    assert loss == pytest.approx(0, abs=1e-6)
    assert metrics["negatives"] == 0
    assert metrics["masked_fraction"] == 1


def test_the_newest_of_repeated_ring_entries_survives():
    """Product 50 in both ring batches: only the newer vector is a negative, and it is the one equal to the query."""
    triplets = draw(6, 10_000)
    ring = rings.empty(2, B, D)
    newer, older = unit(np.random.default_rng(7), 2, B, D), unit(np.random.default_rng(8), 2, B, D)
    ids = np.arange(20_000, 20_000 + 2 * B, dtype=np.int32).reshape(2, B)
    newer[1, 3], older[0, 0] = triplets.query[0], -triplets.query[0]
    newer_ids, older_ids = ids.copy(), ids.copy() + 2 * B
    newer_ids[1, 3] = older_ids[0, 0] = 50_000
    for vectors, products in ((older, older_ids), (newer, newer_ids)):
        ring = rings.push(ring, jnp.asarray(vectors), jnp.asarray(products))
    check((2, 1, 2, 1), LossConfig(), triplets, [(newer, newer_ids), (older, older_ids)], ring)
    (_, metrics), _ = evaluate((2, 1, 2, 1), LossConfig(), triplets, ring)
    assert float(metrics["negatives"]) == 6 * B - 2
