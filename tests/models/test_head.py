"""The tables of the vocabulary, split and whole; the next-token loss against the formula in float64."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from meshes import ONE, assert_close, mesh_of, name_of

from moon_jax.models import head as heads
from moon_jax.parallel.mesh import BATCH_SPEC

R, S, D, V = 16, 12, 8, 40


@functools.cache
def batch():
    r = np.random.default_rng(0)
    segments = np.sort(r.integers(1, 4, (R, S)), axis=1).astype(np.int32)
    segments[:, -2:] = 0  # padding at the end,
    segments[1] = np.roll(segments[1], 2)  # or at the start
    segments[2] = 0
    segments[3] = 1  # a row that is one document from its first token to its last
    hidden, head = r.normal(size=(R, S, D)).astype(np.float32), r.normal(size=(V, D)).astype(np.float32)
    chosen = r.random((R, S)) < 0.6
    chosen[3, 0] = True
    return hidden, head, r.integers(0, V, (R, S)).astype(np.int32), segments, chosen


def expected(chosen):
    """(loss, count, gradients wrt hidden and head) from the formula, token by token."""
    hidden, head, tokens, segments, _ = batch()
    total, count, of_hidden, of_head = 0.0, 0, np.zeros((R, S, D)), np.zeros((V, D))
    for row, place in zip(*np.nonzero(chosen), strict=True):
        if place == 0 or segments[row, place] == 0 or segments[row, place - 1] != segments[row, place]:
            continue
        x = hidden[row, place - 1].astype(np.float64)
        logits = head.astype(np.float64) @ x
        p = np.exp(logits - logits.max())
        p /= p.sum()
        total -= np.log(p[tokens[row, place]])
        count += 1
        p[tokens[row, place]] -= 1
        of_hidden[row, place - 1] += head.T @ p
        of_head += np.outer(p, x)
    n = max(count, 1)
    return total / n, count, (of_hidden / n, of_head / n)


def run(shape, chosen):
    mesh = mesh_of(shape)
    hidden, head, tokens, segments, _ = batch()

    def shard(hidden, head, *rest):
        return heads.next_token_loss(hidden, heads.gather_head(head, "float32"), *rest)

    specs = (BATCH_SPEC, heads.head_spec(head.shape, mesh), *[BATCH_SPEC] * 3)
    mapped = jax.shard_map(shard, mesh=mesh, in_specs=specs, out_specs=(P(), P()))
    arrays = (hidden, head, tokens, segments, chosen)
    placed = [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(arrays, specs, strict=True)]
    with jax.set_mesh(mesh):
        return jax.jit(jax.value_and_grad(mapped, argnums=(0, 1), has_aux=True))(*placed)


@pytest.mark.parametrize("chunk", [5, 1024])
@pytest.mark.parametrize("shape", [ONE, (2, 2, 2, 1), (1, 4, 1, 2)], ids=name_of)
def test_the_formula(monkeypatch, shape, chunk):
    monkeypatch.setattr(heads, "CHUNK", chunk)
    chosen = batch()[-1]
    (loss, count), gradients = run(shape, chosen)
    want, number, of = expected(chosen)
    assert count == number > 50
    assert float(loss) == pytest.approx(want, rel=1e-6)
    for got, gradient, name in zip(gradients, of, ("hidden", "head"), strict=True):
        assert_close(got, gradient, 1e-5, name)


def test_nothing_to_predict():
    """Only first tokens of documents and padding are chosen: loss 0, gradients of exactly 0, no NaN."""
    segments = batch()[3]
    first = np.diff(segments, axis=1, prepend=-1) != 0
    (loss, count), gradients = run((2, 2, 2, 1), first | (segments == 0))
    assert (float(loss), float(count)) == (0, 0)
    assert not any(np.asarray(g).any() for g in gradients)


def test_the_logits_of_all_tokens_never_exist_at_once():
    """The largest array of the compiled gradient: CHUNK tokens by vocabulary, whatever the number of tokens."""
    tokens, vocab = 4 * heads.CHUNK, 300
    shapes = [
        ((1, tokens, D), "float32"),
        ((vocab, D), "float32"),
        *[((1, tokens), t) for t in ("int32", "int32", "bool")],
    ]
    mesh = mesh_of(ONE)
    specs = (BATCH_SPEC, P(), *[BATCH_SPEC] * 3)
    mapped = jax.shard_map(heads.next_token_loss, mesh=mesh, in_specs=specs, out_specs=(P(), P()))
    with jax.set_mesh(mesh):
        fn = jax.jit(jax.grad(lambda *x: mapped(*x)[0], argnums=(0, 1)))
        placed = [
            jax.ShapeDtypeStruct(*s, sharding=NamedSharding(mesh, spec)) for s, spec in zip(shapes, specs, strict=True)
        ]
        memory = fn.lower(*placed).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4 * heads.CHUNK * vocab * 4


def on_table(function, shape, x, table):
    """Returns function(x, the gathered table) and the gradient of its sum over the table, if it has one."""
    mesh = mesh_of(shape)
    spec = heads.head_spec(table.shape, mesh)
    mapped = jax.shard_map(
        lambda x, shard: function(x, heads.gather_head(shard, "float32")),
        mesh=mesh, in_specs=(BATCH_SPEC, spec), out_specs=BATCH_SPEC,
    )  # fmt: skip
    with jax.set_mesh(mesh):
        placed = jax.device_put(x, NamedSharding(mesh, BATCH_SPEC)), jax.device_put(table, NamedSharding(mesh, spec))
        out = np.asarray(jax.jit(mapped)(*placed))
        if out.dtype == np.int32:
            return out, None
        return out, np.asarray(jax.jit(jax.grad(lambda table: (mapped(placed[0], table) ** 2).sum()))(placed[1]))


@pytest.mark.parametrize("vocab", [40, 39])
@pytest.mark.parametrize("shape", [ONE, (2, 1, 1, 4)], ids=name_of)
def test_a_token_is_looked_up_where_it_is(shape, vocab):
    """40 tokens are split over 4 devices, 39 are not; every token is asked for, some of them twice."""
    r = np.random.default_rng(1)
    table, tokens = r.normal(size=(vocab, D)).astype(np.float32), r.permutation(64).astype(np.int32) % vocab
    out, gradient = on_table(heads.look_up, shape, tokens, table)
    np.testing.assert_array_equal(out, table[tokens])
    np.testing.assert_allclose(gradient, 2 * table * np.bincount(tokens, minlength=vocab)[:, None], rtol=1e-6)


@pytest.mark.parametrize("vocab", [40, 39])
@pytest.mark.parametrize("shape", [ONE, (2, 1, 1, 4)], ids=name_of)
def test_the_likeliest_token(shape, vocab):
    """The first of those that share the largest logit, on whatever device they are."""
    r = np.random.default_rng(2)
    table = r.integers(-2, 3, (vocab, D)).astype(np.float32)
    table[[7, 25, 38]] = table[12] = 3.0  # the same logits, on all four devices
    hidden = r.integers(-2, 3, (64, D)).astype(np.float32)
    hidden[:8] = np.abs(hidden[:8]) + 1
    out, _ = on_table(heads.likeliest, shape, hidden, table)
    expected = np.argmax(hidden @ table.T, axis=1)
    assert (expected[:8] == 7).all()
    assert len(np.unique(expected)) > 10
    np.testing.assert_array_equal(out, expected)
