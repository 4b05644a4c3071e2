"""How fast pictures become patches on one core, beside the Pillow processor of transformers; prints a table.

    python benchmarks/images.py

Both sides start from the same pictures, either in memory (decoded, RGB) or encoded, and end at arrays of float32
patches. transformers' arrays hold every patch twice, for the two frames of its kernel; ours once, because the model
adds the kernel's frames up. "ours, twice" copies them as well, so that both sides end at the same array. "resize" is
Pillow's bicubic resize alone, which both sides call and neither can do without.

A turn is eight pictures, one call each (transformers takes longer for a list of eight), all results kept until its end
as in a batch; the sides take turns, and the table shows the median CPU time of a turn over eight.
"""

import io
import os
import statistics
import time
from collections.abc import Callable

import numpy as np
import PIL
import transformers
from absl import app, flags
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from moon_jax.config import DataConfig, VisionConfig
from moon_jax.data import picture_files
from moon_jax.data.patches import Picture, patchify

TURNS = flags.DEFINE_integer("turns", 10, "Turns of each side per line of the table.", lower_bound=1)
CORE = flags.DEFINE_integer("core", 0, "Number of the CPU core that everything runs on.", lower_bound=0)

VISION = VisionConfig()
FRAMES = VISION.temporal_patch_size
TURN = 8
SMALLEST = 56 * 56
CLASS, HUB, OURS = 28 * 28 * 1280, 12_845_056, DataConfig().max_pixels
LINES = [  # what, side in px, file format or "", the most pixels of the result, and whose setting that is
    ("in memory", 448, "", CLASS, "transformers' default"),
    ("in memory", 1000, "", CLASS, "transformers' default"),
    ("in memory", 1000, "", HUB, "published 3B model"),
    ("in memory", 1000, "", OURS, "our default"),
    ("JPEG", 448, "JPEG", CLASS, "transformers' default"),
    ("JPEG", 1000, "JPEG", CLASS, "transformers' default"),
    ("JPEG", 1000, "JPEG", OURS, "our default"),
    ("RGBA PNG", 448, "PNG", CLASS, "transformers' default"),
]


def drawn(side: int, channels: int, seed: int) -> Image.Image:
    """Returns a picture of waves and noise, as hard to compress as a photo."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    waves = np.stack([127 + 90 * np.sin(x / (17 + 3 * c) + y / (31 - c)) for c in range(channels)], -1)
    return Image.fromarray((waves + rng.normal(0, 6, waves.shape)).clip(0, 255).astype(np.uint8))


def encoded(picture: Image.Image, kind: str) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, quality=90)
    return out.getvalue()


def twice(patches: np.ndarray) -> np.ndarray:
    """Returns patches as transformers has them: (channels, frames, patch, patch)."""
    channels = patches.reshape(len(patches), 3, 1, -1)
    return np.broadcast_to(channels, (*channels.shape[:2], FRAMES, channels.shape[-1])).reshape(len(patches), -1)


def milliseconds(
    sides: list[Callable[[Image.Image | bytes], object]], pictures: list[Image.Image | bytes]
) -> list[float]:
    """Returns the median CPU time of each side for a picture."""
    times: list[list[float]] = [[] for _ in sides]
    for number in range(TURNS.value + 1):  # the first turn warms up
        for side, taken in zip(sides, times, strict=True):
            start = time.process_time()
            kept = [side(picture) for picture in pictures]
            if number:
                taken.append(1e3 * (time.process_time() - start) / len(pictures))
            del kept
    return [statistics.median(taken) for taken in times]


def line(side: int, kind: str, max_pixels: int) -> tuple[tuple[int, int], float, list[float]]:
    """Returns (size of the result, largest difference, milliseconds of transformers, ours, ours twice, resize)."""
    processor = Qwen2VLImageProcessorPil(min_pixels=SMALLEST, max_pixels=max_pixels)
    drawings = [drawn(side, 4 if kind == "PNG" else 3, seed) for seed in range(TURN)]
    pictures = [encoded(drawing, kind) for drawing in drawings] if kind else drawings

    def theirs(picture: Image.Image | bytes) -> np.ndarray:
        image = Image.open(io.BytesIO(picture)) if kind else picture
        return processor(image, return_tensors="np")["pixel_values"]

    def ours(picture: Image.Image | bytes) -> Picture:
        image = picture_files.load(picture) if kind else picture
        return patchify(image, VISION, SMALLEST, max_pixels)

    grid = ours(pictures[0]).grid
    size = grid[1] * VISION.patch_size, grid[0] * VISION.patch_size
    decoded = iter([drawing.convert("RGB") for drawing in drawings] * (TURNS.value + 1))

    def resize(_: Image.Image | bytes) -> Image.Image:
        image = next(decoded)
        return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)

    difference = max(float(np.abs(theirs(picture) - twice(ours(picture).patches)).max()) for picture in pictures)
    sides = [theirs, ours, lambda picture: twice(ours(picture).patches), resize]
    return size, difference, milliseconds(sides, pictures)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {CORE.value})
    print(f"transformers {transformers.__version__}, Pillow {PIL.__version__}, one core, {TURNS.value} turns each\n")
    print(
        "| pictures | become | transformers ms | ours ms | ours, twice | resize | ratio | ratio, twice | difference |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for what, side, kind, most, setting in LINES:
        (wide, high), difference, (theirs, ours, doubled, resize) = line(side, kind, most)
        print(
            f"| {what}, {side}x{side} | {wide}x{high} ({setting}) | {theirs:.2f} | {ours:.2f} | {doubled:.2f} | "
            f"{resize:.2f} | {theirs / ours:.2f} | {theirs / doubled:.2f} | {difference:.1e} |",
            flush=True,
        )


if __name__ == "__main__":
    app.run(main)
