"""The guided MoE layer against the paper's equation, and its statistics against a count by hand, on several meshes."""

import functools
import json

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from meshes import ONE, QUICK, assert_close, mesh_of, name_of

from moon_jax.config import MoEConfig, Role
from moon_jax.models.layers import gathered
from moon_jax.moe.layer import GuidedMoE
from moon_jax.moe.router_stats import ROLES, RouterStats, router_losses, shortened
from moon_jax.moe.routing import noise_keys
from moon_jax.parallel.mesh import BATCH_SPEC, partition_spec

R, S, D, F, N = 16, 5, 16, 12, 8
GENERAL = [1, 2, 3, 5, 6, 7]
GUIDED = {int(Role.CATEGORY): 0, int(Role.ATTRIBUTE): 4}
SHAPES = (ONE, (8, 1, 1, 1), (2, 2, 2, 1), (1, 2, 2, 2))


def draw(seed=0, without=()):
    """Returns (x [R, S, D], roles [R, S], params); roles in `without` do not occur."""
    r = np.random.default_rng(seed)
    f32 = lambda scale, *shape: (scale * r.normal(size=shape)).astype(np.float32)  # noqa: E731
    roles = r.choice([int(role) for role in Role if role not in without], (R, S)).astype(np.int32)
    params = {
        "router": f32(0.5, D, N), "gate": f32(0.25, N, D, F), "up": f32(0.25, N, D, F), "down": f32(0.25, N, F, D),
    }  # fmt: skip
    return f32(1, R, S, D), roles, params


def visits(logits, roles, config):
    """Returns [{expert: weight}] of every token, in float64."""
    out = []
    for g, role in zip(logits, roles, strict=True):
        if role == Role.PADDING:
            out.append({})
            continue
        active = sorted(GENERAL, key=lambda e: -g[e])[: config.top_k]
        if role in GUIDED:
            active = [GUIDED[role]] if config.guided == "exclusive" else [*active, GUIDED[role]]
        z = np.exp(g[active] if config.gate == "softmax_active" else g).sum()
        out.append({e: np.exp(g[e]) / z for e in active})
    return out


def expected(x, roles, params, config):
    """Returns (out by the paper's equation, statistics of the router as in `router_losses`)."""
    p = {name: np.asarray(w, np.float64) for name, w in params.items()}
    tokens, roles = np.asarray(x, np.float64).reshape(-1, D), roles.reshape(-1)
    logits = tokens @ p["router"]
    visited = visits(logits, roles, config)
    out = np.zeros_like(tokens)
    load, by_role, of_role = np.zeros(N), np.zeros((6, N)), np.zeros(6)
    for t, weights in enumerate(visited):
        row = roles[t] - 1  # other, image, core, title, category, attribute
        if row >= 0:
            of_role[row] += 1
        for e, weight in weights.items():
            a = tokens[t] @ p["gate"][e]
            out[t] += weight * ((a / (1 + np.exp(-a)) * (tokens[t] @ p["up"][e])) @ p["down"][e])
            load[e] += 1
            by_role[row, e] += 1
    valid = roles != Role.PADDING
    general = np.exp(logits[valid][:, GENERAL])
    probability = general / general.sum(1, keepdims=True)
    fraction = load[GENERAL] / max(load[GENERAL].sum(), 1)
    health = {
        "router/load": load / valid.sum(),
        "router/load_by_role": by_role / np.maximum(of_role, 1)[:, None],
        "router/role_tokens": of_role,
        "router/imbalance": load.max() / load.mean(),
        "router/general_imbalance": load[GENERAL].max() / load[GENERAL].mean(),
        "router/entropy": -(probability * np.log(probability)).sum(1).mean(),
        "router/category_tokens": load[0],
        "router/attribute_tokens": load[4],
        "router/dropped": 0,
        "router/balance_loss": 6 * (fraction * probability.mean(0)).sum(),
        "router/z_loss": (np.log(np.exp(logits[valid]).sum(1)) ** 2).mean(),
    }
    return out.reshape(x.shape), health


def assert_health(health, counts):
    assert set(health) == set(counts)
    for name, value in counts.items():
        got = (
            health[name] if name in ("router/role_tokens", "router/balance_loss", "router/z_loss") else health[name][0]
        )
        np.testing.assert_allclose(got, value, rtol=2e-5, err_msg=name)


@functools.cache
def compiled(shape, config):
    """Returns (params, x, roles, seed) -> (out, auxiliary, health), and the gradients of <out, x> + auxiliary loss.

    With `config.router_noise` the noise is drawn from the seed.
    """
    mesh = mesh_of(shape)
    graphdef, state = nnx.split(GuidedMoE(D, F, 1, config, nnx.Rngs(params=0)))
    specs = {
        path[0]: partition_spec(p.get_metadata("axes"), p[...].shape, mesh) for path, p in nnx.to_flat_state(state)
    }

    def local(params, x, roles, key):
        noise_key = noise_keys(key, 1)[0] if config.router_noise else None
        out, stats = gathered(nnx.merge(graphdef, params), x.dtype)(x, roles, noise_key)
        auxiliary, health = router_losses(RouterStats(*(s[None] for s in stats)), config)
        return out, auxiliary, health

    sharded = jax.shard_map(
        local, mesh=mesh, in_specs=(specs, BATCH_SPEC, BATCH_SPEC, P()), out_specs=(BATCH_SPEC, P(), P())
    )

    def objective(params, x, roles, key):
        out, auxiliary, health = sharded(params, x, roles, key)
        return (out * x).sum() + auxiliary, (out, auxiliary, health)

    fn = jax.jit(jax.value_and_grad(objective, has_aux=True), compiler_options=QUICK)

    def run(params, x, roles, seed=0):
        put = lambda leaf, spec: jax.device_put(leaf, NamedSharding(mesh, spec))  # noqa: E731
        with jax.set_mesh(mesh):
            args = {k: put(v, specs[k]) for k, v in params.items()}, put(x, BATCH_SPEC), put(roles, BATCH_SPEC)
            (_, outputs), gradients = fn(*args, jax.random.key(seed))
        return *jax.tree.map(np.asarray, outputs), jax.tree.map(np.asarray, gradients)

    return run


@pytest.mark.parametrize("gate", ["softmax_active", "softmax_all"])
@pytest.mark.parametrize("guided", ["add", "exclusive"])
def test_the_equation(gate, guided):
    config = MoEConfig(gate=gate, guided=guided)
    x, roles, params = draw()
    out, _, health, _ = compiled((2, 2, 2, 1), config)(params, x, roles)
    want, counts = expected(x, roles, params, config)
    assert_close(out, want, 1e-5)
    assert_health(health, counts)


@pytest.mark.parametrize("shape", SHAPES, ids=name_of)
def test_statistics_do_not_depend_on_the_devices(shape):
    config = MoEConfig(balance_loss=0.3, z_loss=0.2)
    x, roles, params = draw(3)
    roles[:4] = Role.PADDING  # whole shards of padding on 8 devices: their share must not count
    x[:4] = 100.0
    out, auxiliary, health, gradients = compiled(shape, config)(params, x, roles)
    want, counts = expected(x, roles, params, config)
    assert_close(out, want, 1e-5)
    assert not out[:4].any()
    assert_health(health, counts)
    balance, z = counts["router/balance_loss"], counts["router/z_loss"]
    assert float(auxiliary) == pytest.approx(0.3 * balance + 0.2 * z, rel=1e-5)
    one = compiled(ONE, config)(params, x, roles)[3]
    for name, gradient in gradients.items():
        assert_close(gradient, one[name], 1e-5, name)


def test_gradient_of_the_auxiliary_losses():
    """Wrt the router, on tokens whose output is left out: by central differences of the counted losses in float64."""
    config = MoEConfig(balance_loss=0.3, z_loss=0.2)
    x, roles, params = draw(4)
    params["down"] = np.zeros_like(params["down"])  # the output is 0 and so is its gradient wrt the router
    router = compiled((2, 2, 2, 1), config)(params, x, roles)[3]["router"]
    direction = np.random.default_rng(0).normal(size=router.shape)

    def loss(step):
        moved = {**params, "router": params["router"].astype(np.float64) + step * direction}
        counts = expected(x, roles, moved, config)[1]
        # the fractions are counts and have no gradient; the step is small enough to leave them as they are
        return 0.3 * counts["router/balance_loss"] + 0.2 * counts["router/z_loss"]

    assert (router * direction).sum() == pytest.approx((loss(1e-5) - loss(-1e-5)) / 2e-5, rel=1e-4)


@pytest.mark.parametrize("shape", [ONE, (2, 2, 2, 1), (1, 2, 2, 2)], ids=name_of)
def test_guided_experts_without_tokens_have_exactly_no_gradient(shape):
    config = MoEConfig()
    run = compiled(shape, config)
    for missing, experts in (((Role.CATEGORY, Role.ATTRIBUTE), (0, 4)), ((Role.CATEGORY,), (0,))):
        x, roles, params = draw(5, missing)
        out, _, health, gradients = run(params, x, roles)
        assert np.isfinite(out).all()
        for name, gradient in gradients.items():
            assert np.isfinite(gradient).all()
            for e in range(N):
                of_expert = gradient[:, e] if name == "router" else gradient[e]
                assert of_expert.any() == (e not in experts), f"{name} of expert {e}"
        assert health["router/category_tokens"][0] == 0
        assert (health["router/attribute_tokens"][0] == 0) == (4 in experts)


def test_only_padding():
    x, roles, params = draw(6)
    config = MoEConfig(balance_loss=0.3, z_loss=0.2)
    out, auxiliary, health, gradients = compiled((2, 2, 2, 1), config)(params, x, np.zeros_like(roles))
    assert not out.any()
    assert float(auxiliary) == 0
    assert all(np.isfinite(h).all() for h in health.values())
    assert not health["router/imbalance"].any()
    assert not any(g.any() for g in gradients.values())


@pytest.mark.parametrize("shape", [ONE, (2, 2, 2, 1)], ids=name_of)
def test_dropped_routes_are_counted(shape):
    config = MoEConfig(capacity_factor=0.7, guided_capacity=0.1)
    x, roles, params = draw(7)
    logits = x.astype(np.float64).reshape(-1, D) @ params["router"]
    visited = visits(logits, roles.reshape(-1), config)
    groups = shape[0] * shape[1]
    tokens = R * S // groups  # of the devices that share their experts' places
    dropped = 0
    for g in range(groups):
        load = np.zeros(N)
        for weights in visited[g * tokens : (g + 1) * tokens]:
            load[list(weights)] += 1
        places = np.full(N, np.ceil(0.7 * tokens * 2 / 6))
        places[[0, 4]] = np.ceil(0.1 * tokens)
        dropped += np.maximum(load - places, 0).sum()
    health = compiled(shape, config)(params, x, roles)[2]
    assert dropped > 0
    assert health["router/dropped"].tolist() == [dropped]


def test_a_uniform_router_has_balance_loss_one():
    x, roles, params = draw(8)
    _, _, health, _ = compiled(ONE, MoEConfig())({**params, "router": np.zeros_like(params["router"])}, x, roles)
    assert health["router/balance_loss"] == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(health["router/entropy"], np.log(6), rtol=1e-6)
    np.testing.assert_allclose(health["router/z_loss"], np.log(8) ** 2, rtol=1e-6)


def test_the_roles_in_their_order():
    assert [role.name for role in ROLES] == ["OTHER", "IMAGE", "CORE", "TITLE", "CATEGORY", "ATTRIBUTE"]


# Router noise --------------------------------------------------------------------------------------------------------

NOISY = MoEConfig(balance_loss=0.3, z_loss=0.2, router_noise=1.0)
QUIET = MoEConfig(balance_loss=0.3, z_loss=0.2)
UNMOVED = ("router/balance_loss", "router/z_loss", "router/entropy", "router/role_tokens", "router/category_tokens")


def test_noise_moves_the_choice_and_neither_the_losses_nor_the_guided_experts():
    x, roles, params = draw(9)
    out, auxiliary, health, _ = compiled((1, 2, 2, 2), NOISY)(params, x, roles, seed=1)
    quiet_out, quiet_auxiliary, quiet, _ = compiled((1, 2, 2, 2), QUIET)(params, x, roles)
    assert float(auxiliary) == float(quiet_auxiliary) > 0
    for name in UNMOVED:
        np.testing.assert_array_equal(health[name], quiet[name], err_msg=name)
    moved = (health["router/load_by_role"] != quiet["router/load_by_role"]).any(axis=(0, 1))
    assert moved.tolist() == [e in GENERAL for e in range(N)]
    np.testing.assert_allclose(health["router/load"][0, GENERAL].sum(), 2, rtol=1e-6)
    assert (out != quiet_out).any()


def test_noise_is_of_the_seed_and_of_the_batch_shard_and_the_same_over_tensor():
    """The same tokens in every batch shard: equal without noise; with it each shard has its own."""
    x, roles, params = draw(10)
    x, roles = (np.tile(a[: R // 4], (4, *[1] * (a.ndim - 1))) for a in (x, roles))
    parts = lambda out: out.reshape(4, R // 4, S, D)  # noqa: E731
    out = compiled((1, 2, 2, 2), NOISY)(params, x, roles, seed=1)
    noisy = parts(out[0])
    assert all((noisy[a] != noisy[b]).any() for a in range(4) for b in range(a))
    again = compiled((1, 2, 2, 2), NOISY)(params, x, roles, seed=1)
    np.testing.assert_array_equal(out[0], again[0])
    assert (out[0] != compiled((1, 2, 2, 2), NOISY)(params, x, roles, seed=2)[0]).any()
    other = compiled((4, 1, 1, 1), NOISY)(params, x, roles, seed=1)  # as many batch shards, without tensor
    assert_close(out[0], other[0], 1e-5)
    for name, gradient in out[3].items():
        assert_close(gradient, other[3][name], 1e-5, name)


def test_noise_has_the_deviation_that_is_set():
    """A router of zeros leaves the choice to the noise: even loads. An expert ahead by 2 deviations: by simulation."""
    x, roles, params = draw(11)
    roles[:] = Role.TITLE
    x[:] = 1.0
    params["router"][:] = 0
    even = sum(compiled(ONE, NOISY)(params, x, roles, seed)[2]["router/load"][0] for seed in range(20)) / 20
    np.testing.assert_allclose(even[GENERAL], 1 / 3, atol=0.06)  # 1,600 draws: 5 deviations of a share
    params["router"][:, 3] = 2.0 / D
    ahead = sum(compiled(ONE, NOISY)(params, x, roles, seed)[2]["router/load"][0, 3] for seed in range(20)) / 20
    r = np.random.default_rng(0).normal(size=(400_000, 6))
    r[:, 0] += 2
    assert ahead == pytest.approx((np.argsort(-r)[:, :2] == 0).any(1).mean(), abs=0.02)


def test_lines_of_the_log_are_short():
    x, roles, params = draw(12)
    health = compiled(ONE, MoEConfig())(params, x, roles)[2]
    health = {
        name: np.repeat(h, 36, axis=0) if np.ndim(h) and "role_t" not in name else h for name, h in health.items()
    }
    line = shortened(health | {"loss": np.float32(1)})
    assert set(line) == set(health) | {"loss"}
    np.testing.assert_allclose(line["router/load_by_role"], health["router/load_by_role"][0], atol=5.1e-5)
    np.testing.assert_allclose(line["router/load"], health["router/load"], atol=5.1e-5)
    assert line["router/load"].shape == (36, 8)
    text = json.dumps({name: np.asarray(line[name]).tolist() for name in ("router/load", "router/load_by_role")})
    assert len(text) < 3000
    assert shortened({"loss": np.float32(1)}) == {"loss": np.float32(1)}
