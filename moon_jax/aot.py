r"""Plans training on accelerators that are not here: `python -m moon_jax.aot --topology=v5p:4x4x16 --config=FILE`.

Compiles the real train step ahead of time (vision tower, language model, guided experts, loss, ring, optimizer) and
prints what one device needs: memory against what the chip has, products, collectives, the step time that they allow.
Nothing is allocated and no accelerator is touched, also not one of this machine. Needs `pip install 'moon-jax[aot]'`.

    --topology=v5p:4x4x16      a TPU slice: v4, v5e, v5p, v6e and the shape of its torus
    --topology=h200:64         GPUs: h100 or h200 and their number, in hosts of 8
    --config.mesh.fsdp=64      the mesh must multiply to the chips; one axis may be -1. Any other setting, too
    --json=FILE                the report for programs

    --sweep --topology=v5p --chips=64
                               ranks every mesh, dispatch strategy and placement by the cost model and compiles the best
    --sweep --chips=64         the same on every kind of chip
    --largest_batch            compiles until the largest batch that fits is found
    --no_compile               only what the cost model says; the compilers are needed for the topology alone
"""

import json
import os
import pathlib
import sys
from collections import Counter
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"  # before jax is imported: it would take the accelerators of this machine
os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"

import jax
from absl import app, flags
from ml_collections import config_flags

from moon_jax.config import Config, ConfigError, resolve
from moon_jax.planning import analysis, printing, sweep
from moon_jax.planning.chips import CHIPS, GIB, Target, parse_target
from moon_jax.planning.cost import cost_of
from moon_jax.planning.largest import largest_batch
from moon_jax.planning.network import Links
from moon_jax.planning.targets import mesh_on
from moon_jax.training.start import find
from moon_jax.weights.source import WeightsError


def main(argv: list[str]) -> None:
    """Reads the flags and plans; mistakes of the user end with one plain message instead of a traceback."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; settings are given as --config.group.name=value")
    jax.config.update("jax_platforms", "cpu")
    try:
        config = find(resolve(CONFIG.value)).config
        report = _sweep(config) if SWEEP.value else _one(config)
    except (ConfigError, WeightsError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    if JSON.value:
        path = pathlib.Path(JSON.value)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=1) + "\n")


def _one(config: Config) -> dict[str, Any]:
    if not TOPOLOGY.value:
        raise ConfigError("--topology is needed, e.g. --topology=v5p:4x4x16 or --topology=h200:64")
    target = parse_target(TOPOLOGY.value, CHIPS_FLAG.value)
    if NO_COMPILE.value:
        mesh = mesh_on(target, config.mesh)
        trainer = analysis.check(config, target, mesh)
        report = analysis.outline(config, target, trainer, cost_of(config, trainer, Links(target, mesh)))
        print(printing.text(report))
        return report
    report = analysis.analyse(config, target)
    print(printing.text(report), flush=True)
    if LARGEST.value:
        tried = largest_batch(config, target, report["memory"]["peak"], lambda line: print(line, flush=True))
        best = max((n for n, (_, fits) in tried.items() if fits), default=0)
        report["largest_batch"] = best
        report["batches"] = {str(n): {"peak": peak, "fits": fits} for n, (peak, fits) in tried.items()}
        print(f"largest batch that fits: {best} triplets a shard")
    return report


def _sweep(config: Config) -> dict[str, Any]:
    name, chips = TOPOLOGY.value, CHIPS_FLAG.value
    names = [name] if name else list(CHIPS)
    targets = [parse_target(name, chips) for name in names]
    return {target.name: _sweep_one(config, target) for target in targets}


def _sweep_one(config: Config, target: Target) -> dict[str, Any]:
    candidates, refused = sweep.rank(config, target, _progress)
    rows = [sweep.row(candidate) for candidate in candidates]
    header = ("mesh", "strategy", "fits", "memory", "arithmetic", "network", "step", "triplets/s", "replicated")
    shown = [
        (
            printing.mesh_name(row["mesh"]), f"{row['strategy']} {row['placement']}", "yes" if row["fits"] else "no",
            f"{row['memory'] / GIB:.1f} GiB", f"{row['arithmetic_seconds']:.2f} s", f"{row['network_seconds']:.2f} s",
            f"{row['step_seconds']:.2f} s", f"{row['triplets_per_second']:.0f}", str(len(row["replicated"])),
        )
        for row in rows[: SHOW.value]
    ]  # fmt: skip
    print(f"{target.name}: {len(rows)} ways, {sum(row['fits'] for row in rows)} of them fit by the cost model, ")
    print(f"{len(refused)} cannot work; {config.train.batch_size} triplets a step\n")
    for reason, count in Counter(refused.values()).most_common():
        print(f"{count} cannot work: {reason}")
    if not candidates:
        raise ConfigError(f"no mesh and strategy can work on {target.name}; the reasons are above")
    print(printing.markdown(header, shown))
    for line in dict.fromkeys(line for candidate in candidates[: SHOW.value] for line in candidate.replicated):
        print(f"replicated: {line}")
    compiled = []
    for candidate in [] if NO_COMPILE.value else candidates[: COMPILE.value]:
        print(f"\n{sweep.name(candidate.config)}", flush=True)
        compiled.append(analysis.analyse(candidate.config, target))
        print(printing.text(compiled[-1]), flush=True)
    return {"ways": rows, "refused": refused, "compiled": compiled}


def _progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{done} of {total} ways", end="\n" if done == total else "", file=sys.stderr, flush=True)


CONFIG = config_flags.DEFINE_config_file("config", "configs/moon_3b.py", "the config file, e.g. configs/moon_3b.py")
TOPOLOGY = flags.DEFINE_string(
    "topology", "", "chip and size: v5p:4x4x16, v6e:8x8, h200:64; with --chips, the chip alone"
)
CHIPS_FLAG = flags.DEFINE_integer("chips", 0, "number of chips, where --topology does not say it")
SWEEP = flags.DEFINE_bool("sweep", False, "rank all meshes and dispatch strategies by the cost model, compile the best")
COMPILE = flags.DEFINE_integer("compile", 3, "how many of the best ways of a sweep are compiled")
SHOW = flags.DEFINE_integer("show", 20, "how many ways of a sweep are shown; --json has all")
LARGEST = flags.DEFINE_bool("largest_batch", False, "find the largest batch that fits by compiling several")
NO_COMPILE = flags.DEFINE_bool("no_compile", False, "ask the cost model only")
JSON = flags.DEFINE_string("json", "", "file that receives the report")

if __name__ == "__main__":
    app.run(main)
