"""The packed image store beside plain files: writing, reading in order and at random, sizes, space; prints a table.

    python benchmarks/image_store.py

The same pictures (waves and noise, JPEG at quality 85) lie in a folder, as they come from a crawler, and in a store.
Both sides run in one process on one core and take turns; a figure is the median over the turns: pictures a second of
CPU time, or of wall time where it says so. "Cold" asks the kernel to forget the files before each turn (posix_fadvise,
which a file system may ignore); pictures are then read in random order. "Packed" is `moon_jax.data.store_pack.pack`:
every picture is decoded; those above the cap are scaled down and encoded again. The plain side of writing is a copy of
the files.
"""

import os
import pathlib
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable

import numpy as np
from absl import app, flags
from PIL import Image

from moon_jax.config import DataConfig, VisionConfig
from moon_jax.data import images, picture_files
from moon_jax.data.documents import Document
from moon_jax.data.records import ImageRef
from moon_jax.data.store import PackedImage, Store, open_store
from moon_jax.data.store_encode import StoreSettings, encode
from moon_jax.data.store_pack import pack
from moon_jax.data.store_writer import Part

PICTURES = flags.DEFINE_integer("pictures", 1000, "Pictures in the folder and in the store.", lower_bound=8)
SIDE = flags.DEFINE_integer("side", 500, "Of the pictures, in px.", lower_bound=16)
TURNS = flags.DEFINE_integer("turns", 3, "Turns of each side per line of the table.", lower_bound=1)
CORE = flags.DEFINE_integer("core", 0, "Number of the CPU core that everything runs on.", lower_bound=0)
FOLDER = flags.DEFINE_string("folder", None, "Where the files are made and removed; by default a temporary folder.")


def photo(side: int, seed: int) -> Image.Image:
    """Returns a picture that is about as hard to compress as a product photo."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    waves = np.stack([127 + 90 * np.sin(x / rng.uniform(9, 40) + y / rng.uniform(9, 40)) for _ in range(3)], -1)
    return Image.fromarray((waves + rng.normal(0, 4, waves.shape)).clip(0, 255).astype(np.uint8))


def forget(folder: pathlib.Path) -> None:
    """Asks the kernel to drop the files of a folder from its cache."""
    os.sync()
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def rate(
    sides: list[Callable[[], None]], clock: Callable[[], float] = time.process_time, before: Callable[[], None] = list
) -> list[float]:
    """Returns pictures a second of each side by a clock; `before` runs before each turn."""
    times: list[list[float]] = [[] for _ in sides]
    for _ in range(TURNS.value):
        for side, taken in zip(sides, times, strict=True):
            before()
            start = clock()
            side()
            taken.append(clock() - start)
    return [PICTURES.value / statistics.median(taken) for taken in times]


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {CORE.value})
    with tempfile.TemporaryDirectory(dir=FOLDER.value) as folder:
        measure(pathlib.Path(folder))


def measure(folder: pathlib.Path) -> None:
    plain, packed, count = folder / "plain", folder / "packed", PICTURES.value
    plain.mkdir()
    drawn = [photo(SIDE.value, seed) for seed in range(8)]
    for number in range(count):  # of eight contents, each with a mark of its own
        drawn[number % 8].putpixel((number % SIDE.value, number // SIDE.value % SIDE.value), (number % 256, 0, 0))
        drawn[number % 8].save(plain / f"{number:08d}.jpg", quality=85)
    pictures = {path.name: str(path) for path in sorted(plain.iterdir())}

    def written(target: pathlib.Path, **settings) -> None:
        shutil.rmtree(target, ignore_errors=True)
        pack(pictures, target, StoreSettings(**settings), part=Part())

    def copied() -> None:
        shutil.rmtree(folder / "copy", ignore_errors=True)
        shutil.copytree(plain, folder / "copy")

    copy, kept, smaller = rate([copied, lambda: written(packed), lambda: written(folder / "small", max_pixels=40_000)])
    store = open_store(str(packed))
    order = np.random.default_rng(0).permutation(count)
    paths = list(pictures.values())
    rows = store.find(list(pictures))
    refs = [PackedImage(str(packed), int(row), key) for row, key in zip(rows, pictures, strict=True)]
    in_order = np.lexsort((store.rows["record"], store.rows["shard"]))
    data, vision = DataConfig(), VisionConfig()

    def files(numbers, use) -> Callable[[], None]:
        def run() -> None:
            for number in numbers:
                use(pathlib.Path(paths[number]).read_bytes())

        return run

    def records(numbers, use) -> Callable[[], None]:
        def run() -> None:
            opened = Store(packed)
            for row in numbers:
                use(opened.read(row))

        return run

    def planned(sources) -> Callable[[], None]:
        return lambda: [images.grids(Document((ImageRef(source),)), data, vision) for source in sources]

    def both() -> None:
        forget(plain)
        forget(packed)

    numbers = range(count)
    lines = [
        ("bytes, in order, warm", rate([files(numbers, len), records(in_order, len)])),
        ("bytes, at random, warm", rate([files(order, len), records(rows[order], len)])),
        (
            "bytes, at random, cold, wall time",
            rate([files(order, len), records(rows[order], len)], time.perf_counter, both),
        ),
        (
            "decoded to RGB, at random, warm",
            rate([files(order, picture_files.load), records(rows[order], picture_files.load)]),
        ),
        ("sizes for the packer, warm", rate([planned([paths[i] for i in order]), planned([refs[i] for i in order])])),
    ]
    size = sum(path.stat().st_size for path in plain.iterdir())
    blocks = [sum(512 * path.stat().st_blocks for path in place.iterdir()) for place in (plain, packed)]
    small = Store(folder / "small").index["bytes"]
    print(f"\n{count} pictures of {SIDE.value}x{SIDE.value} px, {size / count / 1e3:.1f} kB each, one core\n")
    print("| pictures a second | plain files | store | store / files |")
    print("|---|---|---|---|")
    print(f"| written: copied; decoded, checked and packed | {copy:,.0f} | {kept:,.0f} | {kept / copy:.2f} |")
    for what, (theirs, ours) in lines:
        print(f"| {what} | {theirs:,.0f} | {ours:,.0f} | {ours / theirs:.2f} |", flush=True)
    print(f"| MB on the disk | {blocks[0] / 1e6:.1f} | {blocks[1] / 1e6:.1f} | {blocks[1] / blocks[0]:.2f} |")
    print(f"\npacked with --max_pixels=40000: {smaller:,.0f} pictures a second, {small / count / 1e3:.1f} kB each")
    lost()


def lost() -> None:
    """Prints what recompression changes: a picture scaled down and stored as JPEG against the same one not stored."""
    print("\n| scaled down, stored as JPEG | kB | PSNR dB | largest change of a channel |")
    print("|---|---|---|---|")
    source = photo(1600, 0)
    for quality in (80, 90, 95):
        stored = encode(source, StoreSettings(max_pixels=500_000, quality=quality))
        exact = np.asarray(source.resize(stored.size, Image.Resampling.BICUBIC), float)
        error = np.abs(np.asarray(picture_files.load(stored.content), float) - exact)
        psnr = 10 * np.log10(255**2 / (error**2).mean())
        print(f"| quality {quality} | {len(stored.content) / 1e3:.0f} | {psnr:.1f} | {error.max():.0f} |")


if __name__ == "__main__":
    app.run(main)
