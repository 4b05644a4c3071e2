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
    --sweep --chips=64         the same on every kind of chip that has slices of that size
    --nocode                   stops the compiler of TPUs before machine code: seconds for minutes, kernels go unchecked
    --largest_batch            compiles until the largest batch that fits is found
    --no_compile               only what the cost model says; the compilers are needed for the topology alone

A way that the compiler cannot compile is named and the sweep goes on; --json is written after each.
"""

import functools
import json
import os
import pathlib
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"  # before jax is imported: it would take the accelerators of this machine
os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"

import jax
from absl import app

from moon_jax.command_flags import CommandFlags
from moon_jax.config import Config, ConfigError, resolve
from moon_jax.planning import analysis, printing, sweep
from moon_jax.planning.chips import CHIPS, GIB, Target, parse_target
from moon_jax.planning.compiling import CODE as CODE_BYTES
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
    jax.config.update("jax_enable_compilation_cache", False)  # a program from there comes without its memory
    try:
        if LARGEST.value and (SWEEP.value or NO_COMPILE.value):
            other = "--sweep" if SWEEP.value else "--no_compile"
            raise ConfigError(f"--largest_batch compiles one way to run again and again; it cannot work with {other}")
        config = find(resolve(CONFIG.value)).config
        _save(_sweep(config) if SWEEP.value else _one(config))
    except (ConfigError, WeightsError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


def _save(report: dict[str, Any]) -> None:
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
    report = analysis.analyse(config, target, CODE.value)
    print(printing.text(report), flush=True)
    if LARGEST.value:
        memory = report["memory"]
        show = functools.partial(print, flush=True)
        tried = largest_batch(config, target, memory["peak"], memory["code"] or CODE_BYTES, show)
        best = max((n for n, (_, fits) in tried.items() if fits), default=0)
        report["largest_batch"] = best
        report["batches"] = {str(n): {"peak": peak, "fits": fits} for n, (peak, fits) in tried.items()}
        print(f"largest batch that fits: {best} triplets a shard")
    return report


def _sweep(config: Config) -> dict[str, Any]:
    names = [TOPOLOGY.value] if TOPOLOGY.value else list(CHIPS)
    report: dict[str, Any] = {}
    for name in names:
        try:
            target = parse_target(name, CHIPS_FLAG.value)
            save = functools.partial(_save_part, report, target.name)
            report[target.name] = _sweep_one(config, target, save)
        except ConfigError as error:
            if len(names) == 1:
                raise
            print(f"{name} is left out: {error}\n", flush=True)
            report[name] = {"left_out": str(error)}
    if not any("ways" in found for found in report.values()):
        raise ConfigError(f"no chip can do it with --chips={CHIPS_FLAG.value}; the reasons are above")
    return report


def _save_part(report: dict[str, Any], name: str, found: dict[str, Any]) -> None:
    _save(report | {name: found})


def _sweep_one(config: Config, target: Target, save: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Returns the report of one target; what there is of it is saved before each compilation."""
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
    report = {"ways": rows, "refused": refused, "compiled": [], "failed": {}}
    for candidate in [] if NO_COMPILE.value else candidates[: COMPILE.value]:
        save(report)  # a compiler that crashes takes this process with it
        way = sweep.name(candidate.config)
        print(f"\n{way}", flush=True)
        try:
            found = analysis.analyse(candidate.config, target, CODE.value)
        except (RuntimeError, ValueError) as error:  # of the compiler, or its program cannot be read
            report["failed"][way] = f"{type(error).__name__}: {error}"
            print(f"could not be compiled: {report['failed'][way][:1000]}", flush=True)
            continue
        report["compiled"].append(found)
        print(printing.text(found), flush=True)
    return report


def _progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{done} of {total} ways", end="\n" if done == total else "", file=sys.stderr, flush=True)


FLAGS = CommandFlags(__name__)
CONFIG = FLAGS.config("configs/moon_3b.py", "the config file, e.g. configs/moon_3b.py")
TOPOLOGY = FLAGS.string("topology", "", "chip and size: v5p:4x4x16, v6e:8x8, h200:64; with --chips, the chip alone")
CHIPS_FLAG = FLAGS.integer("chips", 0, "number of chips, where --topology does not say it")
SWEEP = FLAGS.bool("sweep", False, "rank all meshes and dispatch strategies by the cost model, compile the best")
COMPILE = FLAGS.integer("compile", 3, "how many of the best ways of a sweep are compiled")
SHOW = FLAGS.integer("show", 20, "how many ways of a sweep are shown; --json has all")
LARGEST = FLAGS.bool("largest_batch", False, "find the largest batch that fits by compiling several")
CODE = FLAGS.bool(
    "code", True, "generate machine code; --nocode: a TPU takes seconds for minutes, kernels go unchecked"
)
NO_COMPILE = FLAGS.bool("no_compile", False, "ask the cost model only")
JSON = FLAGS.string("json", "", "file that receives the report")

if __name__ == "__main__":
    FLAGS.run(main)
