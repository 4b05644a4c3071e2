"""The table: what is refused before compilation, what a GPU or TPU gets, and a strategy from outside the project."""

import dataclasses
import pathlib
import subprocess
import sys
from collections import Counter

import jax
import jax.numpy as jnp
import pytest
from dispatch_cases import EXPERT_SHAPES, ROUTES, D, T, config_of, sharded
from jax.sharding import NamedSharding
from meshes import mesh_of

from moon_jax.config import ConfigError, MeshConfig
from moon_jax.moe.dispatch import STRATEGIES, Experts, check_strategy, expert_axes, strategy
from moon_jax.parallel.mesh import AXES
from moon_jax.planning.chips import parse_target
from moon_jax.planning.compiling import OPTIONS
from moon_jax.planning.hlo import collectives_of
from moon_jax.planning.targets import mesh_on
from moon_jax.planning.trace import work_of
from moon_jax.training.embedder import exact

ROOT = pathlib.Path(__file__).parents[2]


def mesh_shape(*sizes):
    return dict(zip(AXES, sizes, strict=True))


EIGHT_EXPERTS = mesh_shape(1, 1, 8, 1)


@pytest.mark.parametrize(
    ("settings", "shape", "platform", "message"),
    [
        ({"strategy": "slot"}, EIGHT_EXPERTS, "cpu", r"config.moe.strategy is 'slot'; it must be one of dense, .*"),
        (
            {"strategy": "all_to_all", "placement": "split"}, EIGHT_EXPERTS, "tpu",
            r"'all_to_all' cannot work with config.moe.placement = 'split' .*these can: dense, replicated, slots",
        ),
        (
            {"strategy": "replicated", "capacity_factor": 1.25, "guided_capacity": 0.1}, EIGHT_EXPERTS, "cpu",
            r"'replicated' drops nothing, so that config.moe.capacity_factor = 1.25 and config.moe.guided_capacity = "
            r"0.1 would have no effect: set it to 0, or use .*: slots, all_gather, all_to_all$",
        ),
        (
            {"strategy": "ragged_all_to_all"}, EIGHT_EXPERTS, "cpu",
            r"'ragged_all_to_all' does not compile for cpu \(it does for gpu, tpu\); these can: .*all_to_all_dropless$",
        ),
        (
            {"strategy": "slots"}, mesh_shape(1, 1, 3, 1), "cpu",
            r"config.moe.experts = 8 does not divide by config.mesh.expert = 3; .*placement = 'split'",
        ),
    ],
)  # fmt: skip
def test_what_cannot_run_is_refused(settings, shape, platform, message):
    with pytest.raises(ConfigError, match=message):
        check_strategy(config_of(**settings), shape, platform)


def test_what_can_run_is_not_refused():
    check_strategy(config_of(strategy="slots"), EIGHT_EXPERTS, "cpu")
    check_strategy(config_of(strategy="slots", placement="split"), mesh_shape(1, 1, 3, 1), "cpu")
    for platform in ("gpu", "cuda", "rocm", "tpu"):
        check_strategy(config_of(strategy="ragged_all_to_all"), EIGHT_EXPERTS, platform)
    check_strategy(dataclasses.replace(config_of(strategy="slot"), experts=0), EIGHT_EXPERTS, "cpu")


def test_expert_axes():
    assert expert_axes(config_of()) == (*[("experts", "embed", "ffn")] * 2, ("experts", "ffn", "embed"))
    assert expert_axes(config_of(placement="split")) == (
        *[("split_experts", "embed", "split_ffn")] * 2, ("split_experts", "split_ffn", "embed"),
    )  # fmt: skip


def test_a_name_is_taken_once_and_capacity_is_one_of_three_words():
    def slots():
        """Takes the name of another."""

    with pytest.raises(ValueError, match="strategy 'slots' already"):
        strategy(capacity="none")(slots)
    slots.__name__ = "fresh"
    with pytest.raises(ValueError, match="'fresh': capacity is 'all'"):
        strategy(capacity="all")(slots)
    assert "fresh" not in STRATEGIES


def traced_gradient(name, mesh, dtype="bfloat16"):
    """Returns the traced loss and gradients of a strategy on a mesh."""
    fn, specs = sharded(config_of(strategy=name), mesh)
    put = lambda shape, spec, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))  # noqa: E731
    args = (
        put((T, D), specs[0], dtype),
        put((T, ROUTES), specs[1], jnp.float32),
        Experts(*(put(shape, spec, jnp.float32) for shape, spec in zip(EXPERT_SHAPES, specs[2], strict=True))),
        put((T, ROUTES), specs[3], jnp.int32),
    )
    with jax.set_mesh(mesh):
        loss = lambda x, w, e, ids: fn(x, w, e, ids)[0].sum()  # noqa: E731
        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).trace(*args)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_lowers_for_accelerators(name, platform):
    """Forward and gradient, on a machine without any: ragged_all_to_all as itself, there and back, twice each."""
    traced = traced_gradient(name, mesh_of((1, 2, 2, 2)))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert text.count("@ragged_all_to_all(") == (4 if name == "ragged_all_to_all" else 0)


@pytest.mark.aot
@pytest.mark.parametrize("topology", ["v5e:2x4", "v5p:2x2x1", "h200:8"])
@pytest.mark.parametrize(
    ("name", "dtype"),
    [("all_gather", "bfloat16"), ("ragged_all_to_all", "bfloat16"), ("ragged_all_to_all", "float32")],
)
def test_ragged_operations_compile_for_accelerators(name, dtype, topology):
    """By the compilers of the accelerators themselves; a CPU's has no ragged_all_to_all."""
    target = parse_target(topology)
    mesh = mesh_on(target, MeshConfig(1, 2, target.count // 2, 1))
    with jax.default_matmul_precision("default"), exact(dtype):  # as training; a TPU's ragged_dot knows no other
        lowered = traced_gradient(name, mesh, dtype).lower()
    program = lowered.compile(compiler_options=OPTIONS[target.chip.platform])
    found = Counter(c.kind for c in collectives_of(program.as_text(), mesh.shape) if c.axes == ("expert",))
    assert found["ragged-all-to-all"] == (4 if name == "ragged_all_to_all" else 0)


ROW, MINE = T * D, T // 8 * D  # numbers of all tokens, and of those of one of 8 shards


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("name", "wide", "narrow"),
    [
        # tokens there and the gradient of the sums back; the sums and the gradient of the tokens
        ("slots", {"all-gather": 2 * ROW, "reduce-scatter": 2 * MINE}, {"all-gather": 2, "reduce-scatter": 1 / 8}),
        ("all_gather", {"all-gather": 2 * ROW, "reduce-scatter": 2 * MINE}, {"all-gather": 2, "reduce-scatter": 1 / 8}),
        ("all_to_all_dropless", {"all-to-all": 4 * ROW}, {"all-to-all": 3}),
    ],
)
def test_what_crosses_the_expert_axis_is_as_wide_as_the_compute_dtype(name, wide, narrow, dtype):
    """Bytes of one shard, forward and backward: tokens and sums in the compute dtype, ids and weights of 4 bytes."""
    mesh, found = mesh_of((1, 1, 8, 1)), Counter()
    for transfer, count in work_of(traced_gradient(name, mesh, dtype).jaxpr, mesh.shape).transfers.items():
        if transfer.axes == ("expert",) and transfer.kind in wide:  # else it is the number of drops
            found[transfer.kind] += transfer.bytes * count
    size = jnp.dtype(dtype).itemsize
    assert found == {kind: size * wide[kind] + round(4 * T * ROUTES * narrow[kind]) for kind in wide}


TOY = '''
"""Each shard computes every expert on its own tokens, one batched product."""
import jax, jax.numpy as jnp
from jax import lax
from moon_jax.moe.dispatch import strategy

@strategy(capacity="none")
def toy(tokens, ids, weights, experts, config):
    gate, up, down = (lax.all_gather(w, "expert", tiled=True) for w in experts.gathered(tokens.dtype, config))
    hidden = jax.nn.silu(jnp.einsum("td,ndf->tnf", tokens, gate)) * jnp.einsum("td,ndf->tnf", tokens, up)
    y = jnp.einsum("tnf,nfd->tnd", hidden, down).astype(jnp.float32)
    share = (jax.nn.one_hot(ids, config.experts) * weights[..., None]).sum(1)
    return jnp.einsum("tn,tnd->td", share, y), jnp.int32(0)
'''


def test_a_strategy_from_outside_is_tested_and_measured_like_the_others(tmp_path, monkeypatch):
    assert len(TOY.strip().splitlines()) < 25
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    tests = [sys.executable, "-m", "pytest", "-v", "-p", "toy_strategy", "tests/moe/test_dispatch.py", "-k"]
    only = "(test_dropless or test_bfloat16) and 1x2x4x1-toy"
    bench = [sys.executable, "benchmarks/moe_dispatch.py", "--import=toy_strategy", "--only=toy", "--tokens=64",
             "--width=16", "--hidden=16", "--pairs=1"]  # fmt: skip
    run = lambda command: subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)  # noqa: E731

    (tmp_path / "toy_strategy.py").write_text(TOY)
    tested, measured = run([*tests, only]), run(bench)
    assert "2 passed" in tested.stdout, tested.stdout + tested.stderr
    assert measured.returncode == 0, measured.stderr
    assert "| toy " in measured.stdout

    (tmp_path / "toy_strategy.py").write_text(TOY.replace("jax.nn.silu", "jax.nn.relu"))
    wrong = run([*tests, only])
    assert "2 failed" in wrong.stdout, wrong.stdout + wrong.stderr
