"""Prints what every dispatch strategy costs: time against the dense loop, bytes between devices, memory, drops.

    python benchmarks/moe_dispatch.py                   # all strategies, 8 virtual CPU devices (or the GPUs at hand)
    python benchmarks/moe_dispatch.py --placement       # whole experts against slices of every expert
    python benchmarks/moe_dispatch.py --products        # ragged_dot against one matrix product of the same size

Forward and backward of one layer of experts. A time is the median of interleaved pairs (dense loop, strategy) of one
process. Rows come from the table of strategies; `--import=MODULE` adds those of a module. Virtual devices share the
machine's cores, so that times add up the work of all devices; bytes and memory are those of one device.
"""

import importlib
import os
import statistics
import sys
import time

if "jax" not in sys.modules:
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from moon_jax.config import ConfigError, MeshConfig, MoEConfig, Role
from moon_jax.moe.dispatch import STRATEGIES, Experts, check_strategy, dispatch, expert_axes
from moon_jax.moe.routing import route
from moon_jax.parallel.collectives import enter_tensor, leave_tensor
from moon_jax.parallel.mesh import BATCH_AXES, BATCH_SPEC, batch_shards, make_mesh, partition_spec
from moon_jax.planning.hlo import collectives_of

TOKENS = flags.DEFINE_integer("tokens", 4096, "tokens of the global batch")
WIDTH = flags.DEFINE_integer("width", 512, "width of the model, d")
HIDDEN = flags.DEFINE_integer("hidden", 1024, "hidden width of an expert, f")
EXPERTS = flags.DEFINE_integer("experts", 8, "experts, two of them guided")
TOP_K = flags.DEFINE_integer("top_k", 2, "general experts per token")
CAPACITY = flags.DEFINE_float("capacity", 1.25, "places of a general expert over its even share")
GUIDED = flags.DEFINE_float("guided_capacity", 0.1, "places of a guided expert as a share of the tokens")
MIX = flags.DEFINE_list("mix", ["0.03", "0.05", "0.1"], "shares of category, attribute and padding tokens")
MESH = flags.DEFINE_list("mesh", [], "sizes of the axes, as in expert=4,fsdp=2; empty puts all devices on expert")
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "compute dtype")
PAIRS = flags.DEFINE_integer("pairs", 5, "timed pairs", lower_bound=1)
ONLY = flags.DEFINE_list("only", [], "names of the strategies to measure; empty = all that run here")
IMPORT = flags.DEFINE_list("import", [], "modules that enter further strategies into the table")
PLACEMENT = flags.DEFINE_bool("placement", False, "compare the placements of experts at expert axis 2, 4 and 8")
PRODUCTS = flags.DEFINE_bool("products", False, "compare ragged_dot with one matrix product")


class Layer:
    """One layer of experts on a mesh: a compiled forward and backward pass and its arguments."""

    def __init__(self, config: MoEConfig, sizes: MeshConfig):
        self.mesh = mesh = make_mesh(sizes)
        check_strategy(config, mesh.shape, jax.default_backend())
        if TOKENS.value % batch_shards(mesh):
            raise ConfigError(f"--tokens={TOKENS.value} does not divide by the {batch_shards(mesh)} batch shards")
        n, d, f = EXPERTS.value, WIDTH.value, HIDDEN.value
        shapes = Experts((n, d, f), (n, d, f), (n, f, d))
        specs = Experts(*map(partition_spec, expert_axes(config), shapes, [mesh] * 3))

        def local(tokens, weights, experts, ids):
            args = enter_tensor(tokens, experts.gate), ids, enter_tensor(weights, experts.gate)
            out, dropped = dispatch(*args, experts, config)
            return leave_tensor(out), lax.psum(dropped, BATCH_AXES)

        in_specs = (BATCH_SPEC, BATCH_SPEC, specs, BATCH_SPEC)
        fn = jax.shard_map(local, mesh=mesh, in_specs=in_specs, out_specs=(BATCH_SPEC, P()))

        def run(tokens, weights, experts, ids, cotangent):
            out, pull, dropped = jax.vjp(lambda *args: fn(*args, ids), tokens, weights, experts, has_aux=True)
            return out, pull(cotangent), dropped

        ids, weights = routes(config)
        r = np.random.default_rng(1)
        normal = lambda *shape: r.normal(size=shape).astype(np.float32)  # noqa: E731
        tokens = jnp.asarray(normal(TOKENS.value, d), DTYPE.value)
        experts = Experts(*(normal(*shape) * shape[1] ** -0.5 for shape in shapes))
        put = lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))  # noqa: E731
        args = (tokens, weights, experts, ids, normal(TOKENS.value, d))
        self.args = jax.tree.map(put, args, (*in_specs, BATCH_SPEC))
        with jax.set_mesh(mesh):
            self.program = jax.jit(run).lower(*self.args).compile()

    def seconds(self) -> float:
        """Returns the time of one run."""
        start = time.perf_counter()
        jax.block_until_ready(self.program(*self.args))
        return time.perf_counter() - start

    def dropped(self) -> int:
        """Returns the routes that found no place."""
        return int(self.program(*self.args)[2])

    def wire_bytes(self) -> int:
        """Returns the bytes that a device sends, weights and tokens, forward and backward."""
        return sum(c.wire_bytes for c in collectives_of(self.program.as_text(), self.mesh.shape))

    def temporary_bytes(self) -> int:
        """Returns the memory that the program needs beside its arguments and results."""
        return self.program.memory_analysis().temp_size_in_bytes


def routes(config: MoEConfig) -> tuple[np.ndarray, np.ndarray]:
    """Returns (ids, weights) of a router that knows nothing, for tokens of the stated mix of roles."""
    category, attribute, padding = map(float, MIX.value)
    roles = [Role.CATEGORY, Role.ATTRIBUTE, Role.PADDING, Role.IMAGE]
    r = np.random.default_rng(0)
    drawn = r.choice(roles, TOKENS.value, p=[category, attribute, padding, 1 - category - attribute - padding])
    logits = r.normal(size=(TOKENS.value, config.experts)).astype(np.float32)
    ids, weights = route(jnp.asarray(logits), jnp.asarray(drawn, jnp.int32), config)
    return np.asarray(ids), np.asarray(weights)


def config_of(strategy: str, *, capacity: bool = False, placement: str = "spread") -> MoEConfig:
    """Returns the settings of one row."""
    places = (CAPACITY.value, GUIDED.value) if capacity else (0.0, 0.0)
    return MoEConfig(
        experts=EXPERTS.value, top_k=TOP_K.value, strategy=strategy, placement=placement,
        capacity_factor=places[0], guided_capacity=places[1],
    )  # fmt: skip


def mesh_config() -> MeshConfig:
    """Returns the mesh of --mesh."""
    sizes = dict(entry.split("=", 1) for entry in MESH.value) or {"expert": "-1"}
    return MeshConfig(**({"data": 1} | {name: int(size) for name, size in sizes.items()}))


def paired(one: Layer, other: Layer) -> tuple[float, float]:
    """Returns (median seconds of `other`, median of the ratios other / one), measured in turns."""
    one.seconds(), other.seconds()
    pairs = [(one.seconds(), other.seconds()) for _ in range(PAIRS.value)]
    return statistics.median(b for _, b in pairs), statistics.median(b / a for a, b in pairs)


def table(head: list[str], rows: list[list[str]]) -> str:
    """Returns a Markdown table."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join("| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines)


def progress(text: str) -> None:
    """Says on standard error what runs now."""
    print(text, file=sys.stderr, flush=True)


def strategies_here() -> list[str]:
    """Returns the names to measure: those that compile on this platform, or --only."""
    here = [s.name for s in STRATEGIES.values() if jax.default_backend() in s.platforms]
    return [name for name in (ONLY.value or here) if name != "dense"]


def compare_strategies() -> str:
    """Returns the table of all strategies."""
    sizes = mesh_config()
    progress("dense")
    oracle = Layer(config_of("dense"), sizes)
    took = statistics.median(oracle.seconds() for _ in range(PAIRS.value))
    mib = lambda count: f"{count / 2**20:.1f}"  # noqa: E731
    memory = [mib(oracle.wire_bytes()), mib(oracle.temporary_bytes())]
    rows = [["dense", "none", f"{1e3 * took:.0f}", "1.00", *memory, "0"]]
    for name in strategies_here():
        limited = STRATEGIES[name].capacity != "none" if name in STRATEGIES else False
        for capacity in (True, False) if limited else (False,):
            progress(f"{name}{' with capacity' if capacity else ''}")
            layer = Layer(config_of(name, capacity=capacity), sizes)
            took, ratio = paired(oracle, layer)
            limit = f"{CAPACITY.value:g} / {GUIDED.value:g}" if capacity else "none"
            memory = [mib(layer.wire_bytes()), mib(layer.temporary_bytes())]
            rows.append([name, limit, f"{1e3 * took:.0f}", f"{ratio:.2f}", *memory, str(layer.dropped())])
    return table(["strategy", "capacity", "ms", "of dense", "MiB sent", "MiB temporary", "dropped"], rows)


def compare_placements() -> str:
    """Returns the table of the placements: how even the load is, and what a step takes."""
    rows = []
    for shards in (2, 4, 8):
        sizes = MeshConfig(data=-1, expert=shards)
        if len(jax.devices()) % shards or EXPERTS.value % shards:
            continue
        for name in [s for s in strategies_here() if "split" in STRATEGIES[s].placements and s != "replicated"]:
            progress(f"{name}, expert axis {shards}")
            limited = STRATEGIES[name].capacity != "none"
            spread, split = (
                Layer(config_of(name, capacity=limited, placement=placement), sizes)
                for placement in ("spread", "split")
            )
            took, ratio = paired(spread, split)
            load = np.bincount(np.asarray(spread.args[3]).reshape(-1), minlength=EXPERTS.value)[: EXPERTS.value]
            owned = load.reshape(shards, -1).sum(1)  # under "split" each shard has its slice of all of them
            times = [f"{1e3 * took / ratio:.0f}", f"{1e3 * took:.0f}", f"{ratio:.2f}"]
            memory = [f"{layer.temporary_bytes() / 2**20:.1f}" for layer in (spread, split)]
            rows.append([str(shards), name, f"{owned.max() / owned.mean():.2f}", "1.00", *times, *memory])
    head = ["expert axis", "strategy", "max/mean load, spread", "split", "ms, spread", "split", "ratio"]
    return table([*head, "MiB temporary, spread", "split"], rows)


def compare_products() -> str:
    """Returns the table of ragged_dot against one matrix product of as many rows, in TFLOP/s of one device."""
    routes, d, f = TOKENS.value * TOP_K.value, WIDTH.value, HIDDEN.value
    r = np.random.default_rng(0)
    draw = lambda *shape: jax.device_put(jnp.asarray(r.normal(size=shape), DTYPE.value), jax.devices()[0])  # noqa: E731
    x, weight = draw(routes, d), draw(EXPERTS.value, d, f)
    sizes = jax.device_put(jnp.full(EXPERTS.value, routes // EXPERTS.value, jnp.int32), jax.devices()[0])
    programs = {
        "one matrix product": jax.jit(lambda x, weight, sizes: x @ weight[0]),
        "ragged_dot": jax.jit(lax.ragged_dot),
        "batched product": jax.jit(lambda x, w, sizes: jnp.einsum("ncd,ndf->ncf", x.reshape(len(w), -1, d), w)),
    }
    rates = {}
    for name, program in programs.items():
        progress(name)
        jax.block_until_ready(program(x, weight, sizes))
        took = []
        for _ in range(PAIRS.value):
            start = time.perf_counter()
            jax.block_until_ready([program(x, weight, sizes) for _ in range(10)])
            took.append((time.perf_counter() - start) / 10)
        rates[name] = 2 * routes * d * f / statistics.median(took) / 1e12
    peak = rates["one matrix product"]
    rows = [[name, f"{rate:.3g}", f"{rate / peak:.2f}"] for name, rate in rates.items()]
    return table([f"[{routes}, {d}] x [{EXPERTS.value} of {d}, {f}]", "TFLOP/s", "of one product"], rows)


def main(argv: list[str]) -> None:
    """Prints the table that the flags ask for."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    for name in IMPORT.value:
        importlib.import_module(name)
    part = compare_placements if PLACEMENT.value else compare_products if PRODUCTS.value else compare_strategies
    try:
        text = part()
    except ConfigError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    device = jax.devices()[0]
    print(f"{len(jax.devices())} x {device.device_kind}, {DTYPE.value}, T={TOKENS.value} d={WIDTH.value} "
          f"f={HIDDEN.value} N={EXPERTS.value} top-{TOP_K.value}, median of {PAIRS.value}\n")  # fmt: skip
    print(text)


if __name__ == "__main__":
    app.run(main)
