"""Experts that start as the dense model, and random numbers that do not depend on who asks for them."""

import jax
import ml_dtypes
import numpy as np
import pytest
from arrays import Arrays
from flax import nnx
from jax.sharding import NamedSharding
from meshes import QUICK, mesh_of

from moon_jax.config import MoEConfig, Role
from moon_jax.models.layers import gathered
from moon_jax.moe.layer import GuidedMoE
from moon_jax.parallel.mesh import BATCH_SPEC, partition_spec
from moon_jax.weights import source as weights
from moon_jax.weights.source import Leaf, Upcycled, WeightsError

L, R, S, D, F = 2, 8, 6, 16, 24
FFN = {"gate": (L, D, F), "up": (L, D, F), "down": (L, F, D)}


def dense_ffn(seed=0, dtype=np.float32, shapes=FFN):
    r = np.random.default_rng(seed)
    return {f"text/layers/ffn/{name}": (0.25 * r.normal(size=shape)).astype(dtype) for name, shape in shapes.items()}


def upcycled(config, **settings):
    return Upcycled(Arrays(dense_ffn()), config, **settings)


def inputs():
    r = np.random.default_rng(1)
    return r.normal(size=(R, S, D)).astype(np.float32), r.integers(0, len(Role), (R, S)).astype(np.int32)


def dense_out(layer, x):
    gate, up, down = (dense_ffn()[f"text/layers/ffn/{name}"][layer].astype(np.float64) for name in FFN)
    a = x.astype(np.float64) @ gate
    return (a / (1 + np.exp(-a)) * (x @ up)) @ down


def moe_out(source, layer, config, x, roles):
    mesh = mesh_of((2, 2, 2, 1))
    graphdef, state = nnx.split(GuidedMoE(D, F, 1, config, nnx.Rngs(params=0)))
    specs = {
        path[0]: partition_spec(p.get_metadata("axes"), p[...].shape, mesh) for path, p in nnx.to_flat_state(state)
    }
    fn = jax.shard_map(
        lambda params, x, roles: gathered(nnx.merge(graphdef, params), x.dtype)(x, roles)[0],
        mesh=mesh, in_specs=(specs, BATCH_SPEC, BATCH_SPEC), out_specs=BATCH_SPEC,
    )  # fmt: skip
    put = lambda leaf, spec: jax.device_put(np.asarray(leaf), NamedSharding(mesh, spec))  # noqa: E731
    read = lambda name: source.read(f"text/layers/moe/{name}", (slice(layer, layer + 1),))[0]  # noqa: E731
    params = {name: put(read(name), spec) for name, spec in specs.items()}
    return np.asarray(jax.jit(fn, compiler_options=QUICK)(params, put(x, BATCH_SPEC), put(roles, BATCH_SPEC)))


@pytest.mark.parametrize("guided", ["add", "exclusive"])
@pytest.mark.parametrize("experts", [4, 8])
def test_experts_equal_the_dense_ffn(guided, experts):
    config = MoEConfig(experts=experts, guided=guided)
    x, roles = inputs()
    for layer in range(L):
        out = moe_out(upcycled(config), layer, config, x, roles)
        expected = dense_out(layer, x) * (roles != Role.PADDING)[..., None]
        np.testing.assert_allclose(out, expected, rtol=0, atol=1e-6 * max(1, np.abs(expected).max()))


def test_softmax_all_keeps_only_a_share():
    """What the warning of softmax_all says: three of eight nearly equal gates are about 0.4 of the dense output."""
    config = MoEConfig(gate="softmax_all")
    x, roles = inputs()
    roles[:] = Role.CATEGORY
    out, dense = moe_out(upcycled(config), 0, config, x, roles), dense_out(0, x)
    assert 0.35 < (out * dense).sum() / (dense**2).sum() < 0.45


def test_leaves_and_copies():
    dense = Arrays(dense_ffn(dtype=ml_dtypes.bfloat16) | {"text/norm": np.ones(D, np.float16)})
    source = Upcycled(dense, MoEConfig())
    bf16, f32 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32)
    assert source.leaves == {
        "text/layers/moe/router": Leaf((L, D, 8), f32),
        "text/layers/moe/gate": Leaf((L, 8, D, F), bf16),
        "text/layers/moe/up": Leaf((L, 8, D, F), bf16),
        "text/layers/moe/down": Leaf((L, 8, F, D), bf16),
        "text/norm": Leaf((D,), np.dtype(np.float16)),
    }
    for name in FFN:
        copies, weight = source.read(f"text/layers/moe/{name}"), dense.arrays[f"text/layers/ffn/{name}"]
        assert copies.dtype == bf16
        np.testing.assert_array_equal(copies, np.broadcast_to(weight[:, None], copies.shape))
        copies[:] = 0  # its memory is its own
    np.testing.assert_array_equal(source.read("text/norm"), np.ones(D))
    assert dense.arrays["text/layers/ffn/gate"].astype(f32).any()
    router = source.read("text/layers/moe/router")
    assert router.dtype == f32
    assert np.std(router) == pytest.approx(0.02, rel=0.3), "small and random: no expert wins by the index"
    assert np.abs(router - upcycled(MoEConfig(), seed=1).read("text/layers/moe/router")).max() > 0.01
    assert np.abs(np.corrcoef(router.reshape(L, -1)))[0, 1] < 0.3, "every layer has a router of its own"


def test_noise_lets_the_copies_part():
    source = upcycled(MoEConfig(), noise=0.01)
    for name in FFN:
        weight = dense_ffn()[f"text/layers/ffn/{name}"]
        noise = source.read(f"text/layers/moe/{name}") - weight[:, None]
        for layer in range(L):
            assert np.std(noise[layer]) == pytest.approx(0.01 * np.std(weight[layer]), rel=0.05)
        correlation = np.corrcoef(noise.reshape(L * 8, -1)) - np.eye(L * 8)
        assert np.abs(correlation).max() < 0.3, f"{name}: two experts have the same noise"
    other = upcycled(MoEConfig(), noise=0.01, seed=1)
    assert (source.read("text/layers/moe/up") != other.read("text/layers/moe/up")).mean() > 0.99
    gate, up = (
        source.read(f"text/layers/moe/{n}") - dense_ffn()[f"text/layers/ffn/{n}"][:, None] for n in FFN if n != "down"
    )
    assert np.abs(np.corrcoef(gate.ravel(), up.ravel())[0, 1]) < 0.05, "the noise of gate and up is not the same"


def test_no_two_places_have_the_same_noise(monkeypatch):
    monkeypatch.setattr(weights, "_TILE", 5)
    ffn = {name: np.zeros_like(weight) for name, weight in dense_ffn().items()}
    for weight in ffn.values():
        weight[:, 0, 0] = 1e6  # gives a deviation; all the others are noise alone
    source = Upcycled(Arrays(ffn), MoEConfig(experts=4), noise=0.1)
    drawn = np.concatenate([source.read(f"text/layers/moe/{name}")[..., 1:, 1:].ravel() for name in FFN])
    assert len(np.unique(drawn)) > 0.999 * drawn.size


def test_noise_is_relative_to_each_layer():
    ffn = dense_ffn()
    ffn["text/layers/ffn/up"][1] *= 100
    noise = (
        Upcycled(Arrays(ffn), MoEConfig(), noise=0.1).read("text/layers/moe/up") - ffn["text/layers/ffn/up"][:, None]
    )
    assert noise[1].std() / noise[0].std() == pytest.approx(100, rel=0.1)


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_a_slice_is_the_same_however_it_is_cut(noise, monkeypatch):
    """So that it does not depend on the mesh; also across the tiles in which the random numbers are drawn."""
    monkeypatch.setattr(weights, "_TILE", 7)
    source = upcycled(MoEConfig(experts=4), noise=noise, seed=3)
    r = np.random.default_rng(0)
    for name, leaf in source.leaves.items():
        whole = source.read(name)
        assert whole.shape == leaf.shape
        assert whole.dtype == leaf.dtype
        for _ in range(20):
            cuts = [sorted(r.choice(n + 1, 2, replace=False)) for n in leaf.shape]
            index = tuple(slice(*map(int, cut)) for cut in cuts)[: r.integers(0, len(cuts) + 1)]
            np.testing.assert_array_equal(source.read(name, index), whole[index], err_msg=f"{name} {index}")


def test_a_slice_reads_only_its_own_layers_and_places():
    dense = Arrays(dense_ffn())
    source = Upcycled(dense, MoEConfig())
    source.read("text/layers/moe/gate", (slice(1, 2), slice(2, 6), slice(4, 8)))
    assert dense.read_bytes == {"text/layers/ffn/gate": 4 * F * 4}, "four experts are copies of one reading"
    source.read("text/layers/moe/router")
    assert dense.read_bytes.keys() == {"text/layers/ffn/gate"}


def test_what_cannot_be_upcycled():
    with pytest.raises(WeightsError, match="have experts already"):
        Upcycled(upcycled(MoEConfig()), MoEConfig())
    ffn = dense_ffn()
    del ffn["text/layers/ffn/up"], ffn["text/layers/ffn/down"]
    with pytest.raises(WeightsError, match=r"no dense FFN .* text/layers/ffn/up, text/layers/ffn/down missing"):
        Upcycled(Arrays(ffn), MoEConfig())
    with pytest.raises(ValueError, match="experts is 0"):
        upcycled(MoEConfig(experts=0))
