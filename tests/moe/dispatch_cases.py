"""What a dispatch strategy must give: `check_strategy_equals_oracle`, against a loop over tokens and routes.

Also programs of strategies on meshes, each compiled once per session, and stand-ins for the two operations of which
a CPU shows too little: `ragged_all_to_all`, which it cannot run, and the rows that `ragged_dot` leaves undefined.
"""

import contextlib
import functools
import math
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from meshes import EIGHT, ONE, QUICK, assert_close, mesh_of

from moon_jax.config import MoEConfig
from moon_jax.moe.dispatch import STRATEGIES, Experts, expert_axes
from moon_jax.parallel.collectives import enter_tensor, leave_tensor
from moon_jax.parallel.mesh import AXES, BATCH_AXES, BATCH_SPEC, partition_spec

T, D, F, N, TOP_K = 64, 16, 16, 8, 2
ROUTES = TOP_K + 1
CATEGORY, ATTRIBUTE, NOTHING = 0, 4, N
GENERAL = [1, 2, 3, 5, 6, 7]
EXPERT_SHAPES = Experts((N, D, F), (N, D, F), (N, F, D))
SHAPES = (ONE, *EIGHT, (1, 1, 8, 1))
# Half the time of a compilation; from jaxlib 0.11 on there is nothing to switch off.
QUICKER = QUICK | ({"xla_cpu_use_fusion_emitters": False} if jax.__version_info__ < (0, 11) else {})
PATTERNS = (
    "random", "no guided tokens", "only guided", "all to one expert", "all to two experts", "heavy skew",
    "an expert without tokens", "holes", "padding", "none",
)  # fmt: skip


def config_of(**kwargs):
    return MoEConfig(experts=N, top_k=TOP_K, **kwargs)


def route_pattern(name):
    """Returns ids [T, routes] as routing makes them: distinct experts, the guided one last, `NOTHING` = not taken."""
    r = np.random.default_rng(len(name))
    general = np.stack([r.permutation(GENERAL)[:TOP_K] for _ in range(T)])
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
    if name == "heavy skew":
        share = 0.3 ** np.arange(len(GENERAL))
        general = np.stack([r.choice(GENERAL, TOP_K, replace=False, p=share / share.sum()) for _ in range(T)])
        guided = np.where(r.random(T) < 0.05, guided, NOTHING)
    if name == "an expert without tokens":
        general = np.where(general == 5, NOTHING, general)
    if name == "holes":  # any route may be missing
        general = np.where(r.random(general.shape) < 0.4, NOTHING, general)
    ids = np.concatenate([general, guided[:, None]], axis=1)
    if name == "padding":
        ids[T // 3 : T // 2] = NOTHING
        ids[-5:] = NOTHING
    if name == "none":
        ids[:] = NOTHING
    return ids.astype(np.int32)


def draw(ids, dtype="float32"):
    """Returns (tokens, weights, experts, cotangent), numbers of `dtype`; routes that are not taken have weight 0."""
    r = np.random.default_rng(int(ids.sum()))
    rounded = lambda *shape: np.asarray(jnp.asarray(r.normal(size=shape), dtype), np.float32)  # noqa: E731
    weights = np.where(ids < N, r.uniform(0.1, 1, ids.shape), 0).astype(np.float32)
    experts = Experts(*(rounded(*shape) * shape[1] ** -0.5 for shape in EXPERT_SHAPES))
    return rounded(T, D), weights, experts, r.normal(size=(T, D)).astype(np.float32)


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


def oracle(tokens, ids, weights, experts):
    """Returns out [T, D] in float64: token by token, route by route."""
    gate, up, down = (np.asarray(w, np.float64) for w in experts)
    out = np.zeros((T, D))
    for t, x in enumerate(np.asarray(tokens, np.float64)):
        for slot, e in enumerate(ids[t]):
            if e != NOTHING:
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
def expected(pattern, competing, places, dtype):
    """Returns (ids, inputs, kept, out, gradients) of a pattern where `competing` tokens share `places`."""
    ids = route_pattern(pattern)
    tokens, weights, experts, cotangent = inputs = draw(ids, dtype)
    kept = kept_routes(ids, competing, dict(enumerate(places)))
    fewer = np.where(kept, ids, NOTHING)
    _, pull = jax.vjp(functools.partial(plain, ids=fewer), tokens, weights, experts)
    return ids, inputs, kept, oracle(tokens, fewer, weights, experts), pull(cotangent)


def ragged_by_all_gather(operand, output, input_offsets, send_sizes, output_offsets, recv_sizes, *, axis_name):
    """What the documentation of `lax.ragged_all_to_all` says, by collectives of a CPU; NaN where the sizes differ."""
    everyones = functools.partial(lax.all_gather, axis_name=axis_name)
    rows, starts, sizes, landings = map(everyones, (operand, input_offsets, send_sizes, output_offsets))
    me = lax.axis_index(axis_name)
    for source in range(lax.axis_size(axis_name)):
        at = jnp.arange(output.shape[0]) - landings[source, me]
        here = (at >= 0) & (at < sizes[source, me])
        sent = rows[source][jnp.clip(starts[source, me] + at, 0, operand.shape[0] - 1)]
        output = jnp.where(here[:, None], sent, output)
    return jnp.where((sizes[:, me] == recv_sizes).all(), output, jnp.nan)


_ragged_dot = lax.ragged_dot


def ragged_dot_with_garbage(rows, weight, sizes):
    """`lax.ragged_dot` with NaN in all that it leaves undefined: rows past the last group, in values and gradients."""
    garbage = (jnp.arange(rows.shape[0]) >= sizes.sum())[:, None]

    @jax.custom_vjp
    def spoil(x, where):
        return jnp.where(where, jnp.nan, x)

    spoil.defvjp(lambda x, where: (spoil(x, where), None), lambda _, g: (g, None))

    @jax.custom_vjp
    def spoil_gradient(x, where):
        return x

    spoil_gradient.defvjp(lambda x, where: (x, where), lambda where, g: (jnp.where(where, jnp.nan, g), None))
    return spoil(_ragged_dot(spoil_gradient(rows, garbage), weight, sizes), garbage)


def runs_here(strategy):
    """Returns the context in which a strategy is traced: one that a CPU cannot run gets the stand-in."""
    if "cpu" in STRATEGIES[strategy].platforms:
        return contextlib.nullcontext()
    return mock.patch.object(lax, "ragged_all_to_all", ragged_by_all_gather)


def sharded(config, mesh):
    """Returns (function of tokens, weights, experts, ids -> (out, dropped) on a mesh, the specs of its arguments)."""
    experts = Experts(*map(partition_spec, expert_axes(config), EXPERT_SHAPES, [mesh] * 3))
    specs = (BATCH_SPEC, BATCH_SPEC, experts, BATCH_SPEC)

    def local(tokens, weights, experts, ids):
        tokens, weights = enter_tensor(tokens, experts.gate), enter_tensor(weights, experts.gate)
        out, dropped = STRATEGIES[config.strategy].run(tokens, ids, weights, experts, config)
        assert out.dtype == jnp.float32, "routes are added up in float32"
        return leave_tensor(out), lax.psum(dropped, BATCH_AXES)

    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=(BATCH_SPEC, P())), specs


@functools.cache
def compiled(shape, config):
    """Returns (tokens, weights, experts, ids, cotangent) -> (out, dropped, gradients) on a mesh."""
    mesh = mesh_of(shape)
    fn, specs = sharded(config, mesh)

    @functools.partial(jax.jit, compiler_options=QUICKER)
    def run(tokens, weights, experts, ids, cotangent):
        out, pull, dropped = jax.vjp(lambda *args: fn(*args, ids), tokens, weights, experts, has_aux=True)
        return out, dropped, pull(cotangent)

    def place(*args):
        put = lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))  # noqa: E731
        with jax.set_mesh(mesh), runs_here(config.strategy):
            return run(*jax.tree.map(put, args, (*specs, BATCH_SPEC)))

    return place


def places_of(config, shape):
    """Returns (tokens that compete for places, places of each expert) as the strategy's row of the table says."""
    shards = math.prod(shape[:3])
    competing = {"none": T, "group": T // shards * shape[AXES.index("expert")], "shard": T // shards}
    rule = STRATEGIES[config.strategy].capacity
    total = competing[rule]
    dropless = rule == "none"
    general = math.ceil(config.capacity_factor * total * TOP_K / (N - 2))
    guided = math.ceil(config.guided_capacity * total)
    places = [guided if e in (CATEGORY, ATTRIBUTE) else general for e in range(N)]
    return total, tuple(total if dropless or not p else p for p in places)


def assert_near(actual, expected, what):
    """The rms of the difference is 2e-2 of the rms: bfloat16 rounds at five places, single entries differ by more."""
    difference = np.asarray(actual, np.float64) - expected
    off, rms = (np.sqrt(np.mean(np.asarray(x, np.float64) ** 2)) for x in (difference, expected))
    assert off <= 2e-2 * rms, f"{what}: off by {off:.2e} where the rms is {rms:.2e}"


def check_strategy_equals_oracle(name, shape, *, dtype="float32", patterns=PATTERNS, **settings):
    """Runs a strategy over routing patterns on a mesh: values, drops, gradients; returns how many routes it dropped."""
    near = {"float32": functools.partial(assert_close, relative=1e-5), "bfloat16": assert_near}[dtype]
    config = config_of(strategy=name, **settings)
    run = compiled(shape, config)
    total = 0
    for pattern in patterns:
        ids, (tokens, weights, experts, cotangent), kept, out, wanted = expected(
            pattern, *places_of(config, shape), dtype
        )
        got, dropped, gradients = run(jnp.asarray(tokens, dtype), weights, experts, ids, cotangent)
        assert int(dropped) == ((ids < N) & ~kept).sum(), f"{pattern}: dropped routes"
        near(got, out, what=pattern)
        assert gradients[0].dtype == dtype
        assert all(g.dtype == np.float32 for g in gradients[2]), "gradients of parameters are float32"
        assert np.isfinite(gradients[1]).all()
        # the weight of a route that is not taken is no number of the model: nobody asks for its gradient
        gradients = gradients[0], np.where(kept, gradients[1], 0), gradients[2]
        for what, g, w in zip(
            ("tokens", "weights", *Experts._fields), jax.tree.leaves(gradients), jax.tree.leaves(wanted), strict=True
        ):
            near(g, w, what=f"{pattern}: gradient of {what}")
            if what in Experts._fields:
                idle = sorted(set(range(N)) - set(ids[kept].tolist()))
                assert not np.asarray(g)[idle].any(), f"{pattern}: {what} of the idle experts {idle}"
        total += int(dropped)
    return total
