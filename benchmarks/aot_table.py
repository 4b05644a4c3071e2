r"""The table of docs/aot.md: moon_3b compiled ahead of time for slices and hosts that are not here.

    python benchmarks/aot_table.py           # compiles what has no result in docs/aot yet, then prints the tables
    python benchmarks/aot_table.py --table   # prints them only
    python benchmarks/aot_table.py --table --write=docs/aot.md   # puts them between the marks of the page

Every row is one process of `moon_jax.aot` and one JSON file, so that it can be stopped and goes on where it was. A row
of a TPU takes minutes and 8 GiB, with --nocode a minute or two.
"""

import json
import pathlib
import subprocess
import sys
import time

from absl import app, flags

from moon_jax.planning.chips import GIB
from moon_jax.planning.printing import markdown

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "moon_3b.py"
# target -> (data, fsdp, expert, tensor). 16 chips of v5e hold no state of 250 GB: the row says what is missing.
ROWS = {
    "v5e:4x4": (1, 8, 2, 1), "v5e:8x8": (1, 16, 4, 1), "v5e:16x16": (1, 64, 4, 1),
    "v5p:2x2x4": (1, 4, 4, 1), "v5p:4x4x4": (1, 16, 4, 1), "v5p:4x8x8": (1, 64, 4, 1),
    "v6e:4x4": (1, 8, 2, 1), "v6e:8x8": (1, 16, 4, 1), "v6e:16x16": (1, 64, 4, 1),
    "h200:8": (1, 8, 1, 1), "h200:64": (1, 64, 1, 1),
}  # fmt: skip
HEADER = (
    "target", "mesh", "GiB a device", "TFLOP", "arithmetic s", "GiB sent", "network s", "step s", "MFU at most",
    "largest batch a device",
)  # fmt: skip
ATTENTION = {"v": "splash", "h": "triton"}


def command(target: str, out: pathlib.Path) -> list[str]:
    mesh = dict(zip(("data", "fsdp", "expert", "tensor"), ROWS[target], strict=True))
    triplets = FLAGS.triplets * mesh["data"] * mesh["fsdp"] * mesh["expert"]
    settings = {f"mesh.{axis}": size for axis, size in mesh.items()} | {
        "train.batch_size": triplets, "model.remat": "full", "model.attention_impl": ATTENTION[target[0]],
    }  # fmt: skip
    return [
        sys.executable, "-m", "moon_jax.aot", f"--config={CONFIG}", f"--topology={target}",
        f"--largest_batch={FLAGS.largest}", f"--code={FLAGS.code}", f"--json={out}",
        *(f"--config.{name}={value}" for name, value in settings.items()),
    ]  # fmt: skip


def row(report: dict) -> tuple[str, ...]:
    memory, seconds = report["memory"], report.get("seconds", {})
    largest = report.get("largest_batch", f"about {report['largest_batch_estimate']}")
    cells = (report["target"], "x".join(map(str, report["mesh"].values())))
    size = f"{memory['peak'] / GIB:.1f} of {memory['capacity'] / GIB:.1f}" + ("" if memory["fits"] else " (no)")
    if not report.get("collectives"):
        return (*cells, size, *[""] * 6, str(largest))
    sent = sum(c["wire_bytes"] for c in report["collectives"])
    return (
        *cells, size, f"{report['flops']['executed'] / 1e12:.0f}", f"{seconds['arithmetic']:.2f}", f"{sent / GIB:.0f}",
        f"{seconds['network']:.2f}", f"{seconds['predicted']:.2f}", f"{report['mfu_bound']:.0%}", str(largest),
    )  # fmt: skip


def growth(reports: dict[str, dict]) -> list[tuple[str, ...]]:
    """Returns the seconds of every collective on each size of a kind of chip."""
    rows = []
    for target, report in reports.items():
        for c in report.get("collectives", ()):
            if c["seconds"] > 0.01 * report["seconds"]["network"]:
                name = f"{c['kind']} over {' '.join(c['axes'])}, {c['dtype']}"
                rows.append((target, name, f"{c['count']}", f"{c['wire_bytes'] / GIB:.1f}", f"{c['seconds']:.3f}"))
    return rows


def main(argv: list[str]) -> None:
    folder = pathlib.Path(FLAGS.results)
    folder.mkdir(parents=True, exist_ok=True)
    targets = FLAGS.only or list(ROWS)
    for number, target in enumerate(targets):
        out = folder / f"{target.replace(':', '_')}.json"
        if FLAGS.table or (out.exists() and (not FLAGS.largest or "largest_batch" in json.loads(out.read_text()))):
            continue
        begin = time.perf_counter()
        print(f"[{number + 1}/{len(targets)}] {target} ...", file=sys.stderr, flush=True)
        done = subprocess.run(command(target, out), stdout=sys.stderr, stderr=subprocess.PIPE, text=True)
        note = "" if done.returncode == 0 else f" FAILED\n{done.stderr[-1500:]}"
        print(f"{time.perf_counter() - begin:.0f} s{note}", file=sys.stderr, flush=True)
    files = {target: folder / f"{target.replace(':', '_')}.json" for target in ROWS}
    reports = {target: json.loads(path.read_text()) for target, path in files.items() if path.exists()}
    tables = {
        "rows": markdown(HEADER, map(row, reports.values())),
        "collectives": markdown(("target", "collective", "times", "GiB sent", "s"), growth(reports)),
    }
    print("\n\n".join(tables.values()))
    if FLAGS.write:
        page = pathlib.Path(FLAGS.write)
        text = page.read_text()
        for name, table in tables.items():
            marks = f"<!-- {name} -->", f"<!-- end of {name} -->"
            before, _, after = text.partition(marks[0])
            text = f"{before}{marks[0]}\n{table}\n{marks[1]}{after.partition(marks[1])[2]}"
        page.write_text(text)


FLAGS = flags.FLAGS
flags.DEFINE_string("results", "docs/aot", "folder of the JSON files")
flags.DEFINE_list("only", [], "targets to compile, e.g. v5p:4x4x4,h200:8; all by default")
flags.DEFINE_integer("triplets", 4, "triplets of a device")
flags.DEFINE_bool("largest", True, "look for the largest batch too")
flags.DEFINE_bool("code", True, "generate machine code too: minutes more for a TPU row")
flags.DEFINE_bool("table", False, "compile nothing")
flags.DEFINE_string("write", "", "page that receives the tables")

if __name__ == "__main__":
    app.run(main)
