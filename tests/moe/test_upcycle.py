"""A dense FFN turned into a guided MoE of copies computes what the dense one does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from meshes import QUICK, assert_close, mesh_of

from moon_jax.config import MoEConfig, Role
from moon_jax.models.layers import gathered
from moon_jax.moe.layer import GuidedMoE, upcycle
from moon_jax.parallel.mesh import BATCH_SPEC, partition_spec

L, R, S, D, F = 2, 8, 6, 16, 24


def dense_ffn(seed=0):
    r = np.random.default_rng(seed)
    f32 = lambda scale, *shape: (scale * r.normal(size=shape)).astype(np.float32)  # noqa: E731
    return {"gate": f32(0.25, L, D, F), "up": f32(0.25, L, D, F), "down": f32(0.2, L, F, D)}


def inputs():
    r = np.random.default_rng(1)
    return r.normal(size=(R, S, D)).astype(np.float32), r.integers(0, len(Role), (R, S)).astype(np.int32)


def dense_out(ffn, layer, x):
    gate, up, down = (np.asarray(ffn[name][layer], np.float64) for name in ("gate", "up", "down"))
    a = np.asarray(x, np.float64) @ gate
    return (a / (1 + np.exp(-a)) * (x @ up)) @ down


def moe_out(params, layer, config, x, roles):
    mesh = mesh_of((2, 2, 2, 1))
    graphdef, state = nnx.split(GuidedMoE(D, F, 1, config, nnx.Rngs(params=0)))
    specs = {path[0]: partition_spec(p.get_metadata("axes"), p[...].ndim) for path, p in nnx.to_flat_state(state)}
    fn = jax.shard_map(
        lambda params, x, roles: gathered(nnx.merge(graphdef, params), x.dtype)(x, roles)[0],
        mesh=mesh, in_specs=(specs, BATCH_SPEC, BATCH_SPEC), out_specs=BATCH_SPEC,
    )  # fmt: skip
    put = lambda leaf, spec: jax.device_put(np.asarray(leaf), jax.sharding.NamedSharding(mesh, spec))  # noqa: E731
    params = {name: put(w[layer], specs[name]) for name, w in params.items()}
    return np.asarray(jax.jit(fn, compiler_options=QUICK)(params, put(x, BATCH_SPEC), put(roles, BATCH_SPEC)))


@pytest.mark.parametrize("guided", ["add", "exclusive"])
@pytest.mark.parametrize("experts", [4, 8])
def test_equals_the_dense_ffn(guided, experts):
    config = MoEConfig(experts=experts, guided=guided)
    ffn, (x, roles) = dense_ffn(), inputs()
    params = upcycle(ffn, config, jax.random.key(0))
    for layer in range(L):
        out = moe_out(params, layer, config, x, roles)
        expected = dense_out(ffn, layer, x) * (roles != Role.PADDING)[..., None]
        np.testing.assert_allclose(out, expected, rtol=0, atol=1e-6 * max(1, np.abs(expected).max()))


def test_softmax_all_keeps_only_a_share():
    """What the warning of softmax_all says: three of eight nearly equal gates are about 0.4 of the dense output."""
    config = MoEConfig(gate="softmax_all")
    ffn, (x, roles) = dense_ffn(), inputs()
    roles[:] = Role.CATEGORY
    out = moe_out(upcycle(ffn, config, jax.random.key(0)), 0, config, x, roles)
    share = (out * dense_out(ffn, 0, x)).sum() / (dense_out(ffn, 0, x) ** 2).sum()
    assert 0.35 < share < 0.45


def test_shapes_and_copies():
    ffn = dense_ffn()
    params = upcycle(ffn, MoEConfig(), jax.random.key(0))
    assert {name: w.shape for name, w in params.items()} == {
        "router": (L, D, 8), "gate": (L, 8, D, F), "up": (L, 8, D, F), "down": (L, 8, F, D),
    }  # fmt: skip
    for name, weight in ffn.items():
        np.testing.assert_array_equal(params[name], np.broadcast_to(weight[:, None], params[name].shape))
    assert params["router"].dtype == jnp.float32
    assert np.std(params["router"]) == pytest.approx(0.02, rel=0.3), (
        "a small random router: no expert wins by the index"
    )
    other = upcycle(ffn, MoEConfig(), jax.random.key(1))["router"]
    assert np.abs(params["router"] - other).max() > 0


def test_noise_lets_the_copies_part():
    ffn = dense_ffn()
    params = upcycle(ffn, MoEConfig(), jax.random.key(0), noise=0.01)
    for name, weight in ffn.items():
        noise = np.asarray(params[name]) - weight[:, None]
        assert np.std(noise) == pytest.approx(0.01 * np.std(weight), rel=0.1)
        flat = noise.reshape(L * 8, -1)
        correlation = np.corrcoef(flat) - np.eye(L * 8)
        assert np.abs(correlation).max() < 0.4, f"{name}: two experts have the same noise"
    assert_close(params["gate"][:, 0], ffn["gate"], 0.06)
