"""Every strategy of the table against a loop over tokens and routes, in values and gradients, on several meshes."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from meshes import EIGHT, ONE, QUICK, assert_close, mesh_of, name_of

from moon_jax.config import MoEConfig
from moon_jax.moe.dispatch import STRATEGIES, Experts
from moon_jax.parallel.collectives import enter_tensor, leave_tensor
from moon_jax.parallel.mesh import BATCH_AXES, BATCH_SPEC

T, D, F, N, TOP_K = 64, 16, 12, 8, 2
ROUTES = TOP_K + 1
CATEGORY, ATTRIBUTE, NOTHING = 0, 4, N
GENERAL = [1, 2, 3, 5, 6, 7]
EXPERT_SPECS = Experts(*[P("expert", "fsdp", "tensor")] * 2, P("expert", "tensor", "fsdp"))
SHAPES = (ONE, *EIGHT)


def general_routes(r):
    return np.stack([r.permutation(GENERAL)[:TOP_K] for _ in range(T)])


def route_pattern(name):
    """Returns ids [T, routes] as routing makes them: distinct experts, the guided one last, `NOTHING` = not taken."""
    r = np.random.default_rng(len(name))
    general = general_routes(r)
    guided = r.choice([CATEGORY, ATTRIBUTE, NOTHING], T)
    if name == "no guided tokens":
        guided[:] = NOTHING
    if name == "only guided":
        general[:] = NOTHING
        guided = r.choice([CATEGORY, ATTRIBUTE], T)
    if name == "all to one expert":
        general[:, 0], general[:, 1], guided[:] = 6, NOTHING, NOTHING
    if name == "all to two experts":
        general[:], guided[:] = [3, 2], CATEGORY
    if name == "an expert without tokens":
        general = np.where(general == 5, NOTHING, general)
    if name == "holes":  # any route may be missing
        general = np.where(r.random(general.shape) < 0.4, NOTHING, general)
    ids = np.concatenate([general, guided[:, None]], axis=1)
    if name == "padding":
        ids[T // 3 : T // 2] = NOTHING
        ids[-5:] = NOTHING
    if name == "all padding":
        ids[:] = NOTHING
    return ids.astype(np.int32)


PATTERNS = (
    "random", "no guided tokens", "only guided", "all to one expert", "all to two experts",
    "an expert without tokens", "holes", "padding", "all padding",
)  # fmt: skip


def draw(ids, seed=0):
    """Returns (tokens, weights, experts, cotangent); the weights of routes that are not taken are 0."""
    r = np.random.default_rng(seed)
    f32 = lambda *shape: r.normal(size=shape).astype(np.float32)  # noqa: E731
    weights = np.where(ids < N, r.uniform(0.1, 1, ids.shape), 0).astype(np.float32)
    experts = Experts(f32(N, D, F) * D**-0.5, f32(N, D, F) * D**-0.5, f32(N, F, D) * F**-0.5)
    return f32(T, D), weights, experts, f32(T, D)


def kept_routes(ids, group, places):
    """Returns which routes find a place: of each group of tokens, every expert takes the first ones in token order."""
    kept = np.zeros(ids.shape, bool)
    for start in range(0, T, group):
        free = dict(places)
        for t in range(start, start + group):
            for slot, expert in enumerate(ids[t]):
                if expert != NOTHING and free[expert] > 0:
                    free[expert] -= 1
                    kept[t, slot] = True
    return kept


def oracle(tokens, ids, weights, experts, kept=None):
    """Returns out [T, D] in float64: token by token, route by route."""
    gate, up, down = (np.asarray(w, np.float64) for w in experts)
    out = np.zeros((T, D))
    for t, x in enumerate(np.asarray(tokens, np.float64)):
        for slot, e in enumerate(ids[t]):
            if e != NOTHING and (kept is None or kept[t, slot]):
                a = x @ gate[e]
                out[t] += weights[t, slot] * ((a / (1 + np.exp(-a)) * (x @ up[e])) @ down[e])
    return out


@jax.jit
def plain(tokens, weights, experts, ids):
    """The formula on one device, for its gradients."""
    hidden = jax.nn.silu(jnp.einsum("td,ndf->tnf", tokens, experts.gate)) * jnp.einsum(
        "td,ndf->tnf", tokens, experts.up
    )
    y = jnp.einsum("tnf,nfd->tnd", hidden, experts.down)
    return jnp.einsum("tr,trn,tnd->td", weights, jax.nn.one_hot(ids, N), y)


@functools.cache
def compiled(strategy, shape, config):
    """Returns (tokens, weights, experts, ids, cotangent) -> (out, dropped, gradients) on a mesh."""
    mesh = mesh_of(shape)

    def local(tokens, weights, experts, ids):
        out, dropped = STRATEGIES[strategy](enter_tensor(tokens), ids, enter_tensor(weights), experts, config)
        assert out.dtype == jnp.float32, "routes are added up in float32"
        return leave_tensor(out), jax.lax.psum(dropped, BATCH_AXES)

    specs = (BATCH_SPEC, BATCH_SPEC, EXPERT_SPECS, BATCH_SPEC)
    sharded = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=(BATCH_SPEC, P()))

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(tokens, weights, experts, ids, cotangent):
        out, pull, dropped = jax.vjp(lambda *args: sharded(*args, ids), tokens, weights, experts, has_aux=True)
        return out, dropped, pull(cotangent)

    def place(*args):
        put = lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))  # noqa: E731
        with jax.set_mesh(mesh):
            return run(*jax.tree.map(put, args, (*specs, BATCH_SPEC)))

    return place


def config_of(**kwargs):
    return MoEConfig(experts=N, top_k=TOP_K, **kwargs)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("shape", SHAPES, ids=name_of)
def test_dropless(strategy, shape):
    run = compiled(strategy, shape, config_of(strategy=strategy))
    for number, pattern in enumerate(PATTERNS):
        ids = route_pattern(pattern)
        tokens, weights, experts, cotangent = draw(ids, number)
        out, dropped, gradients = run(tokens, weights, experts, ids, cotangent)
        assert int(dropped) == 0, pattern
        assert_close(out, oracle(tokens, ids, weights, experts), 1e-5, pattern)
        _, pull = jax.vjp(functools.partial(plain, ids=ids), tokens, weights, experts)
        (to_tokens, to_weights, to_experts), (x, w, e) = gradients, pull(cotangent)
        assert_close(to_tokens, x, 1e-5, f"{pattern}: gradient of tokens")
        taken = (
            ids < N
        )  # the weight of a route that is not taken is no number of the model: nobody asks for its gradient
        assert_close(np.where(taken, to_weights, 0), np.where(taken, w, 0), 1e-5, f"{pattern}: gradient of weights")
        assert np.isfinite(to_weights).all()
        for name, got, want in zip(Experts._fields, to_experts, e, strict=True):
            assert_close(got, want, 1e-5, f"{pattern}: gradient of {name}")
            for expert in set(range(N)) - set(ids.reshape(-1).tolist()):
                assert not np.asarray(got)[expert].any(), f"{pattern}: {name} of the idle expert {expert}"


def places_of(shape, capacity_factor, guided_capacity):
    """Returns the places of each expert: shares of the tokens of one expert group (the shards along `expert`)."""
    group = T // (shape[0] * shape[1])
    general = math.ceil(capacity_factor * group * TOP_K / (N - 2)) if capacity_factor else group
    guided = math.ceil(guided_capacity * group) if guided_capacity else group
    return group, {e: guided if e in (CATEGORY, ATTRIBUTE) else general for e in range(N)}


@pytest.mark.parametrize("shape", [(2, 2, 2, 1), (1, 2, 4, 1), (1, 2, 2, 2)], ids=name_of)
@pytest.mark.parametrize(("capacity_factor", "guided_capacity"), [(1.0, 0.2), (0.5, 0.0), (0.0, 0.1)])
def test_capacity_drops_the_later_tokens(shape, capacity_factor, guided_capacity):
    config = config_of(strategy="slots", capacity_factor=capacity_factor, guided_capacity=guided_capacity)
    run = compiled("slots", shape, config)
    total = 0
    for number, pattern in enumerate(("random", "all to two experts", "only guided", "padding")):
        ids = route_pattern(pattern)
        tokens, weights, experts, cotangent = draw(ids, number)
        kept = kept_routes(ids, *places_of(shape, capacity_factor, guided_capacity))
        out, dropped, gradients = run(tokens, weights, experts, ids, cotangent)
        assert int(dropped) == ((ids < N) & ~kept).sum(), pattern
        assert_close(out, oracle(tokens, ids, weights, experts, kept), 1e-5, pattern)
        fewer = np.where(kept, ids, NOTHING)
        _, pull = jax.vjp(functools.partial(plain, ids=fewer), tokens, weights, experts)
        for got, want in zip(jax.tree.leaves(gradients), jax.tree.leaves(pull(cotangent)), strict=True):
            assert_close(np.where(kept, got, 0) if got.shape == ids.shape else got, want, 1e-5, pattern)
        total += int(dropped)
    assert total > 0, "nothing was dropped: the test shows nothing"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_bfloat16_is_near_float32(strategy):
    """The routes of a token are added up in float32; only the experts compute in bfloat16."""
    ids = route_pattern("random")
    tokens, weights, experts, cotangent = draw(ids)
    run = compiled(strategy, (2, 2, 2, 1), config_of(strategy=strategy))
    out, _, gradients = run(jnp.asarray(tokens, jnp.bfloat16), weights, experts, ids, cotangent)
    assert_close(out, oracle(tokens, ids, weights, experts), 0.05)
    assert gradients[0].dtype == jnp.bfloat16
    assert all(g.dtype == jnp.float32 for g in gradients[2]), "gradients of parameters are float32"
