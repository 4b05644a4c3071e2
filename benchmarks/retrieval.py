"""Prints time and peak memory of exact retrieval beside a flat faiss index, over the same random unit vectors.

    python benchmarks/retrieval.py                                        # MBE's test set: 416,926 x 2,048, top 500
    python benchmarks/retrieval.py --gallery=50000 --width=1024 --k=10    # smaller

Each side runs in processes of its own that take turns, on all cores, with the gallery in a memory-mapped file. A
process searches twice: the first call compiles (ours) or starts the threads (faiss), the second one is warm. Peak
memory is that of the process, with the program itself and the mapped pages of the gallery, over the gallery's size;
faiss copies the gallery into its index, which is not timed. CPU seconds tell the work even where other programs use the
machine. Needs `pip install faiss-cpu` and Linux.
"""

import json
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

import numpy as np
from absl import app, flags

GALLERY = flags.DEFINE_integer("gallery", 416_926, "rows of the gallery", lower_bound=1)
QUERIES = flags.DEFINE_integer("queries", 1000, "queries", lower_bound=1)
WIDTH = flags.DEFINE_integer("width", 2048, "width of an embedding", lower_bound=1)
K = flags.DEFINE_integer("k", 500, "ranks to find", lower_bound=1)
BLOCK = flags.DEFINE_list("block", [], "ours: query and gallery rows scored at once; empty = the default")
ROUNDS = flags.DEFINE_integer("rounds", 3, "processes of each side", lower_bound=1)
FOLDER = flags.DEFINE_string("folder", "", "keeps the vectors there for the next run; empty = a temporary folder")
_SIDE = flags.DEFINE_enum("side", None, ["ours", "faiss"], "set by the benchmark for its processes")

_ROWS_AT_ONCE = 16384


def main(argv: list[str]) -> None:
    """Reads the flags; prints the table, or does the work of one side."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    if _SIDE.value:
        measure(pathlib.Path(FOLDER.value))
    elif FOLDER.value:
        compare(pathlib.Path(FOLDER.value))
    else:
        with tempfile.TemporaryDirectory() as folder:
            compare(pathlib.Path(folder))


def compare(folder: pathlib.Path) -> None:
    """Makes the vectors where they are missing, lets the sides take turns, prints the medians and where they differ."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows, seed in (("gallery", GALLERY.value, 0), ("queries", QUERIES.value, 1)):
        write_vectors(folder / f"{name}.npy", rows, seed)
    size = GALLERY.value * WIDTH.value * 4
    print(
        f"{GALLERY.value:,} x {WIDTH.value:,} gallery ({size / 1e9:.2f} GB), {QUERIES.value:,} queries, top {K.value}"
    )
    runs = {side: [] for side in ("faiss", "ours")}
    for _ in range(ROUNDS.value):
        for side, done in runs.items():
            command = [sys.executable, __file__, *sys.argv[1:], f"--side={side}", f"--folder={folder}"]
            done.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    print(f"{'':8} {'first s':>9} {'warm s':>9} {'(each)':>20} {'CPU s':>7} {'peak / gallery':>15}")
    for side, done in runs.items():
        first, warm, cpu, peak = (statistics.median(d[key] for d in done) for key in ("first", "warm", "cpu", "peak"))
        each = " ".join(f"{d['warm']:.1f}" for d in done)
        print(f"{side:8} {first:9.2f} {warm:9.2f} {each:>20} {cpu:7.1f} {peak / size:14.2f}x")
    (ours, theirs) = (np.load(folder / f"{side}.npz") for side in ("ours", "faiss"))
    same = np.mean(ours["indices"] == theirs["indices"])
    found = np.mean([len(np.intersect1d(a, b)) for a, b in zip(ours["indices"], theirs["indices"], strict=True)])
    difference = np.abs(ours["scores"] - theirs["scores"]).max()
    print(
        f"same index at the same rank: {same:.4%}; same set: {found / K.value:.4%}; scores differ by {difference:.1e}"
    )


def measure(folder: pathlib.Path) -> None:
    """Searches twice, writes what was found and prints seconds and bytes as JSON."""
    queries, gallery = np.load(folder / "queries.npy"), np.load(folder / "gallery.npy", mmap_mode="r")
    search = {"ours": ours, "faiss": theirs}[_SIDE.value](queries, gallery)
    seconds = []
    for _ in range(2):
        start, cpu_start = time.perf_counter(), time.process_time()
        scores, indices = search()
        seconds.append(time.perf_counter() - start)
        cpu = time.process_time() - cpu_start
    np.savez(folder / f"{_SIDE.value}.npz", scores=scores, indices=indices)
    print(json.dumps({"first": seconds[0], "warm": seconds[1], "cpu": cpu, "peak": peak_bytes()}))


def ours(queries: np.ndarray, gallery: np.ndarray) -> Callable[[], Sequence[np.ndarray]]:
    """Returns a search by moon_jax over the mapped file."""
    from moon_jax.evaluation.retrieval import top_k

    block = {"block": tuple(int(rows) for rows in BLOCK.value)} if BLOCK.value else {}
    return lambda: top_k(queries, gallery, K.value, **block)


def theirs(queries: np.ndarray, gallery: np.ndarray) -> Callable[[], Sequence[np.ndarray]]:
    """Returns a search by a flat faiss index, which holds a copy of the gallery."""
    import faiss

    index = faiss.IndexFlatIP(gallery.shape[1])
    for start in range(0, len(gallery), _ROWS_AT_ONCE):
        index.add(gallery[start : start + _ROWS_AT_ONCE])
    return lambda: index.search(queries, K.value)


def write_vectors(path: pathlib.Path, rows: int, seed: int) -> None:
    """Writes random unit vectors, unless the file has as many of them."""
    if path.exists() and np.load(path, mmap_mode="r").shape == (rows, WIDTH.value):
        return
    file = np.lib.format.open_memmap(path, "w+", np.float32, (rows, WIDTH.value))
    generator = np.random.default_rng(seed)
    for start in range(0, rows, _ROWS_AT_ONCE):
        part = generator.standard_normal((min(_ROWS_AT_ONCE, rows - start), WIDTH.value), np.float32)
        file[start : start + len(part)] = part / np.linalg.norm(part, axis=1, keepdims=True)
    file.flush()


def peak_bytes() -> int:
    """Returns the most memory that this process has had in RAM, mapped files included (Linux)."""
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", pathlib.Path("/proc/self/status").read_text())[1])


if __name__ == "__main__":
    app.run(main)
