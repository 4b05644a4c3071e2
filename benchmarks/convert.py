"""Time and memory of a conversion, beside copying the same bytes; prints a table.

    python benchmarks/random_checkpoint.py --output=/scratch/random_3b
    python benchmarks/convert.py --source=/scratch/random_3b --scratch=/scratch

One run on one machine: the source is read once, so that both sides find it in the page cache as far as it fits; then
`cp -r` and `sync`, the conversion as a user starts it (Python's start and imports included), `cp -r` and `sync` again,
and the result loaded onto the CPU devices. The time of a copy is the mean of the two. Memory is the process's largest
resident set. Behind `--`, flags for the conversion: `-- --experts=8`.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import time

from absl import app, flags

SOURCE = flags.DEFINE_string("source", None, "what to convert", required=True)
SCRATCH = flags.DEFINE_string("scratch", None, "folder on the same disk for copies and results", required=True)
TO = flags.DEFINE_enum("to", "jax", ["jax", "hf"], "what to convert to")
LOAD = flags.DEFINE_bool("load", True, "load the result too, in bfloat16; needs memory for all of it")

LOADING = """
import sys, time
import jax
from moon_jax.models import moon
from moon_jax.parallel.mesh import make_mesh
from moon_jax.config import MeshConfig
from moon_jax.training.pretrained import open_pretrained
from moon_jax.weights.source import place
found = open_pretrained(sys.argv[1])
mesh = make_mesh(MeshConfig())
_, shapes, specs = moon.abstract(found.spec.model, found.spec.moe, mesh)
params = jax.block_until_ready(place(found.source, shapes, specs, mesh, "bfloat16"))
assert sum(x.size for x in jax.tree.leaves(params)) > 0
"""


def main(argv: list[str]) -> None:
    source, scratch = pathlib.Path(SOURCE.value).resolve(), pathlib.Path(SCRATCH.value).resolve()
    copy, target = scratch / "benchmark-copy", scratch / "benchmark-converted"
    if taken := [str(path) for path in (copy, target) if path.exists()]:
        sys.exit(f"remove these first: {', '.join(taken)}")
    size = total(source)
    convert = [sys.executable, "-m", "moon_jax.convert", f"--source={source}", f"--target={target}", f"--to={TO.value}"]
    try:
        measure(["sh", "-c", 'cat "$0"/* > /dev/null; sync', source])
        copies = [measured_copy(source, copy)]
        converted = measure([*convert, *argv[1:]])
        made = total(target)
        copies.append(measured_copy(source, copy))
        loaded = measure([sys.executable, "-c", LOADING, target]) if LOAD.value else None
    finally:
        for path in (copy, target):
            shutil.rmtree(path, ignore_errors=True)
    mean = sum(wall for wall, _, _ in copies) / 2
    print(f"source {size / 1e9:.3f} GB, result {made / 1e9:.3f} GB, on {os.cpu_count()} cores")
    print("| what | wall s | CPU s | wall / copy | peak memory GB | memory / source |")
    print("| --- | --- | --- | --- | --- | --- |")
    lines = [
        ("cp -r; sync", copies[0]),
        ("cp -r; sync (again)", copies[1]),
        (" ".join(["convert", *argv[1:]]), converted),
    ]
    for name, (wall, cpu, peak) in lines + ([("load", loaded)] if loaded else []):
        print(f"| {name} | {wall:.1f} | {cpu:.1f} | {wall / mean:.2f} | {peak / 1e9:.3f} | {peak / size:.3f} |")


def measured_copy(source: pathlib.Path, copy: pathlib.Path) -> tuple[float, float, int]:
    done = measure(["sh", "-c", 'cp -r "$0" "$1" && sync', source, copy])
    shutil.rmtree(copy)
    subprocess.run(["sync"], check=True)
    return done


def measure(command: list) -> tuple[float, float, int]:
    """Returns (wall seconds, CPU seconds, largest resident set in bytes) of a command."""
    started = time.perf_counter()
    child = subprocess.Popen(command)
    _, status, usage = os.wait4(child.pid, 0)
    wall = time.perf_counter() - started
    if status:
        sys.exit(f"{command} failed with the status {os.waitstatus_to_exitcode(status)}")
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss << 10


def total(folder: pathlib.Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    app.run(main)
