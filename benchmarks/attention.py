"""Prints what every attention implementation costs: temporary memory and time of one layer, forward and backward.

    python benchmarks/attention.py                            # the implementations that run on this platform
    python benchmarks/attention.py --topology=v5e:2x2         # memory on a TPU that is not here
    python benchmarks/attention.py --head_dim=80 --kv_heads=16 --group=1 --nocausal      # heads of the vision tower

Inputs are those of one device. Memory is what the compiled program needs in HBM beside its inputs and outputs (a TPU
holds small temporaries in its vector memory). Time is the median of interleaved calls of one process, also given over
that of "xla". --topology needs `pip install 'moon-jax[aot]'`; cuDNN is compiled with its own help, so only on a GPU.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

if any(argument.startswith(("--topology", "-topology")) for argument in sys.argv[1:]):
    os.environ["JAX_PLATFORMS"] = "cpu"  # before jax is imported: no accelerator of this machine is touched
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from moon_jax.config import ConfigError, MeshConfig
from moon_jax.models.attention import IMPLEMENTATIONS, attention
from moon_jax.parallel.mesh import BATCH_AXES, BATCH_SPEC, make_mesh
from moon_jax.planning.chips import parse_target
from moon_jax.planning.targets import mesh_on

ROWS = flags.DEFINE_integer("rows", 1, "rows of one device")
TOKENS = flags.DEFINE_integer("tokens", 4096, "tokens of a row")
DOCUMENTS = flags.DEFINE_integer("documents", 8, "documents packed into a row")
KV_HEADS = flags.DEFINE_integer("kv_heads", 2, "kv heads")
GROUP = flags.DEFINE_integer("group", 8, "query heads of a kv head")
HEAD_DIM = flags.DEFINE_integer("head_dim", 128, "width of a head")
CAUSAL = flags.DEFINE_bool("causal", True, "a token sees only itself and what is before it")
DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float32"], "dtype of the inputs")
ONLY = flags.DEFINE_list("only", [], "implementations to measure; empty = all of the platform")
CALLS = flags.DEFINE_integer("calls", 5, "timed calls", lower_bound=1)
TOPOLOGY = flags.DEFINE_string("topology", "", "accelerator to compile for, as in `python -m moon_jax.aot`")


def main(argv: list[str]) -> None:
    """Reads the flags and prints the table."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    try:
        show()
    except ConfigError as error:
        sys.exit(f"{type(error).__name__}: {error}")


def show() -> None:
    """Prints a row for every implementation."""
    target = parse_target(TOPOLOGY.value) if TOPOLOGY.value else None
    platform = target.chip.platform if target else jax.default_backend()
    mesh = mesh_on(target, MeshConfig()) if target else make_mesh(MeshConfig(), jax.devices()[:1])
    unknown = sorted(set(ONLY.value) - set(IMPLEMENTATIONS))
    if unknown:
        raise ConfigError(f"--only: there is no {', '.join(unknown)}; there are {', '.join(IMPLEMENTATIONS)}")
    names = [
        name
        for name, implementation in IMPLEMENTATIONS.items()
        if platform in implementation.platforms
        and DTYPE.value in implementation.dtypes
        and (name in ONLY.value or not ONLY.value)
        and not (target and name == "cudnn")
    ]
    if not names:
        raise ConfigError(f"nothing to measure: none of {', '.join(ONLY.value)} runs on {platform} in {DTYPE.value}")
    print(
        f"{target.name if target else jax.devices()[0].device_kind}, jax {jax.__version__}: {ROWS.value} x "
        f"{TOKENS.value} tokens in {DOCUMENTS.value} documents, {KV_HEADS.value} x {GROUP.value} heads of "
        f"{HEAD_DIM.value}, {'causal' if CAUSAL.value else 'bidirectional'}, {DTYPE.value}, forward + backward\n"
    )
    shapes = inputs(mesh)
    programs = {}
    for name in names:
        print(f"compiling {name} ...", file=sys.stderr, flush=True)
        with jax.set_mesh(mesh):
            programs[name] = jax.jit(step(name, mesh)).lower(*shapes).compile()
    times = {} if target else measured(programs, shapes)
    print("| implementation | temporary memory, MB | time, ms | over xla |\n|---|---|---|---|")
    for name, program in programs.items():
        memory = f"{program.memory_analysis().temp_size_in_bytes / 1e6:.1f}"
        spent = f"{times[name] * 1e3:.1f}" if name in times else "-"
        over = f"{times[name] / times['xla']:.2f}" if name in times and "xla" in times else "-"
        print(f"| {name} | {memory} | {spent} | {over} |")


def step(impl: str, mesh: jax.sharding.Mesh) -> Callable[..., Any]:
    """Returns the gradients of queries, keys and values, inside the shard_map as in training."""

    def loss(q, k, v, ids):
        y = attention(q, k, v, ids, causal=CAUSAL.value, impl=impl)
        return jax.lax.psum(jnp.sum(y.astype(jnp.float32) ** 2), BATCH_AXES)

    return jax.grad(jax.shard_map(loss, mesh=mesh, in_specs=BATCH_SPEC, out_specs=P()), argnums=(0, 1, 2))


def inputs(mesh: jax.sharding.Mesh) -> list[jax.ShapeDtypeStruct]:
    """Returns the shapes of queries, keys, values and segment ids over all devices."""
    b, s, k, g, h = ROWS.value * mesh.size, TOKENS.value, KV_HEADS.value, GROUP.value, HEAD_DIM.value
    dtype, sharding = jnp.dtype(DTYPE.value), NamedSharding(mesh, BATCH_SPEC)
    shapes = [((b, s, k, g, h), dtype), ((b, s, k, h), dtype), ((b, s, k, h), dtype), ((b, s), jnp.int32)]
    return [jax.ShapeDtypeStruct(shape, kind, sharding=sharding) for shape, kind in shapes]


def measured(programs: dict[str, Any], shapes: list[jax.ShapeDtypeStruct]) -> dict[str, float]:
    """Returns the median seconds of every program; they take turns."""
    r = np.random.default_rng(0)
    arrays = [jax.device_put(r.normal(size=x.shape).astype(x.dtype), x.sharding) for x in shapes[:3]]
    ids = np.repeat(np.arange(1, DOCUMENTS.value + 1), -(-TOKENS.value // DOCUMENTS.value))[: TOKENS.value]
    arrays.append(jax.device_put(np.tile(ids, (shapes[3].shape[0], 1)).astype(np.int32), shapes[3].sharding))
    seconds = {name: [] for name in programs}
    for call in range(CALLS.value + 1):
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(*arrays))
            if call:  # the first one warms up
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


if __name__ == "__main__":
    app.run(main)
