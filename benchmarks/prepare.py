"""Prepares a benchmark from a synthetic log and prints time, rows a second and the peak of memory.

    python benchmarks/prepare.py --rows=3000000 --listings=300000

The log has queries of a few words, popular ones more often (a Zipf law), a fifth of them with a picture, a few that
look personal or name unknown items. Making it is not measured. `prepare` runs in a process of its own, from reading
the files to the finished folder; its peak is what the kernel says at the end (ru_maxrss).
"""

import csv
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from absl import app, flags

ROWS = flags.DEFINE_integer("rows", 3_000_000, "Purchases in the log.", lower_bound=1000)
LISTINGS = flags.DEFINE_integer("listings", 300_000, "Products in the catalogue.", lower_bound=100)
TYPE = flags.DEFINE_enum("type", "parquet", ("parquet", "csv"), "Of the log.")
FLAGS_OF_PREPARE = flags.DEFINE_list("prepare", [], "More flags of prepare, without dashes: train_rows=1000000")
FOLDER = flags.DEFINE_string("folder", None, "Where the files are made and removed; by default a temporary folder.")
INDUSTRIES = 24  # as MBE has


def write_catalogue(path: pathlib.Path) -> None:
    rng = np.random.default_rng(0)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["item_id", "title", "image", "industry", "cate1", "cate2", "cate3", "brand", "color"])
        leaves = rng.zipf(1.2, LISTINGS.value) % 4000
        for number, leaf in enumerate(leaves):
            levels = [
                f"industry {leaf % INDUSTRIES}",
                f"level 1 {leaf % 120}",
                f"level 2 {leaf % 960}",
                f"level 3 {leaf}",
            ]
            title = f"Product {number} of series {leaf} in {number % 7} colours and {number % 13} sizes"
            rows.writerow(
                [f"item{number}", title, f"images/{number}.jpg", *levels, f"brand {leaf % 50}", f"color {number % 9}"]
            )


def log_parts():
    """Yields the log in parts of 100,000 rows."""
    rng = np.random.default_rng(1)
    for start in range(0, ROWS.value, 100_000):
        size = min(100_000, ROWS.value - start)
        words = rng.zipf(1.3, (size, 3)) % 20_000
        items = rng.zipf(1.1, size) % int(LISTINGS.value * 1.01)  # 1% are not in the catalogue
        texts = [f"word{a} word{b} word{c}" for a, b, c in words]
        for place in range(0, size, 1000):
            texts[place] = f"call 1380013{start % 9000 + place % 1000:04d}"
        images = [f"queries/{start + n}.jpg" if n % 5 == 0 else "" for n in range(size)]
        times = (1_704_067_200 + rng.integers(0, 31_536_000, size)).astype("datetime64[s]")
        yield pa.table({"query": texts, "query_image": images, "item_id": [f"item{i}" for i in items], "time": times})


def write_log(path: pathlib.Path) -> None:
    if TYPE.value == "parquet":
        writer = None
        for part in log_parts():
            writer = writer or pq.ParquetWriter(path, part.schema)
            writer.write_table(part)
        writer.close()
        return
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["query", "query_image", "item_id", "time"])
        for part in log_parts():
            rows.writerows(zip(*(part[name].to_pylist() for name in part.column_names), strict=True))


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}")
    with tempfile.TemporaryDirectory(dir=FOLDER.value) as name:
        folder = pathlib.Path(name)
        log = folder / f"log.{TYPE.value}"
        write_catalogue(folder / "shop.csv")
        write_log(log)
        command = [
            sys.executable, "-m", "moon_jax.prepare", f"--catalogue={folder}/shop.csv", f"--log={log}",
            f"--output={folder}/bench", *(f"--{one}" for one in FLAGS_OF_PREPARE.value),
        ]  # fmt: skip
        start = time.perf_counter()
        process = subprocess.Popen(command)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - start
        if process.returncode:
            sys.exit(process.returncode)
        size = sum(path.stat().st_size for path in (folder / "bench").iterdir())
        peak = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        print("\n| log rows | listings | log | wall s | rows/s | CPU s | peak RSS GB | written MB |")
        print("|---|---|---|---|---|---|---|---|")
        print(
            f"| {ROWS.value:,} | {LISTINGS.value:,} | {TYPE.value} | {wall:.0f} | {ROWS.value / wall:,.0f} "
            f"| {used.ru_utime + used.ru_stime:.0f} | {peak / 1e9:.2f} | {size / 1e6:,.0f} |"
        )


if __name__ == "__main__":
    app.run(main)
