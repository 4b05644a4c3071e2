"""How fast records become packed batches, beside the Qwen2.5-VL processor in a torch DataLoader; prints tables.

    python benchmarks/pipeline.py                                  # the drawn catalogue
    python benchmarks/pipeline.py --data=DIR --max_pixels=65536    # any folder that moon_jax.train reads
    python benchmarks/pipeline.py --metrics=RUN/metrics.jsonl      # and the share of a run that waited for data

Both sides read the same triplets in the same order and make the same documents of them: files opened, turned upright,
the product cropped with its margin, picture and crop scaled and cut into patches, texts tokenised, a batch made. Ours
ends at the packed arrays of `TrainBatches`; theirs at what a training script feeds to the model: `input_ids` padded to
the longest of the batch and `pixel_values`. Theirs is the image processor of transformers and its tokenizer put
together as Qwen2_5_VLProcessor does it (which itself needs torchvision): the Pillow version, and the torchvision
version where that is installed. The number of pictures and their sizes are checked to be the same, and the largest
difference of a pixel is printed.

Everything runs in one thread on one core and the sides take turns; a figure is the median over the turns of pictures
per second of CPU time, crops counted.
"""

import importlib.util
import itertools
import json
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from absl import app, flags
from PIL import Image, ImageOps
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from moon_jax.config import Config, DataConfig, TrainConfig
from moon_jax.data import catalogue, images, sources, tokenizer
from moon_jax.data.documents import Document, encode, item_document, query_document
from moon_jax.data.pipeline import TrainBatches
from moon_jax.data.records import training_texts

DATA = flags.DEFINE_string("data", None, "Folder of training data; by default the drawn catalogue, made for the run.")
FORMAT = flags.DEFINE_string("format", "jsonl", "Its format, as config.data.format.")
PRODUCTS = flags.DEFINE_integer("products", 400, "Of the drawn catalogue.", lower_bound=8)
SIDE = flags.DEFINE_integer("side", 448, "Of the drawn pictures, in px.", lower_bound=32)
MAX_PIXELS = flags.DEFINE_integer(
    "max_pixels", DataConfig().max_pixels, "Of a picture for the model.", lower_bound=3136
)
BATCH = flags.DEFINE_integer("batch", 16, "Triplets of a batch.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 4, "Batches of a turn.", lower_bound=2)
TURNS = flags.DEFINE_integer("turns", 5, "Turns of each side.", lower_bound=1)
CORE = flags.DEFINE_integer("core", 0, "Number of the CPU core that everything runs on.", lower_bound=0)
METRICS = flags.DEFINE_string("metrics", None, "metrics.jsonl of a training run: prints its share of waiting as well.")


class Documents(torch.utils.data.Dataset):
    """The documents of the triplets of some steps, as a training script with transformers would load them."""

    def __init__(self, documents: Sequence[Document], margin: float):
        self._documents, self._margin = documents, margin

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, index: int) -> tuple[str, list[Image.Image]]:
        document, pictures = self._documents[index], []
        for ref in document.images:
            with Image.open(ref.path) as file:
                whole = ImageOps.exif_transpose(file).convert("RGB")
            pictures.append(whole)
            if ref.box is not None:
                x1, y1, x2, y2 = ref.box
                dx, dy = self._margin * (x2 - x1), self._margin * (y2 - y1)
                corners = np.floor([x1 - dx, y1 - dy]), np.ceil([x2 + dx, y2 + dy])
                (left, top), (right, bottom) = (c.clip((0, 0), whole.size).astype(int).tolist() for c in corners)
                pictures.append(whole.crop((left, top, right, bottom)))
        marks = "<|vision_start|><|image_pad|><|vision_end|>" * len(pictures)
        return marks + "\n".join(segment.text for segment in document.segments), pictures


class Collate:
    """Qwen2_5_VLProcessor.__call__ by its parts: pictures, then every <|image_pad|> as often as it has tokens."""

    def __init__(self, processor: Any, words: Any, merge: int):
        self._processor, self._words, self._merge = processor, words, merge

    def __call__(self, documents: Sequence[tuple[str, list[Image.Image]]]) -> dict[str, torch.Tensor]:
        """Returns what the model takes."""
        pictures = [picture for _, own in documents for picture in own]
        made = dict(self._processor(pictures, return_tensors="pt")) if pictures else {}
        counts = iter(made["image_grid_thw"].prod(-1) // self._merge if pictures else ())
        texts = []
        for text, own in documents:
            parts = text.split("<|image_pad|>", len(own))
            pads = ["<|image_pad|>" * int(next(counts)) for _ in own]
            texts.append("".join(itertools.chain(*itertools.zip_longest(parts, pads, fillvalue=""))))
        return dict(self._words(texts, padding=True, return_tensors="pt")) | made


def documents_of(batches: TrainBatches, steps: int) -> list[Document]:
    """Returns the documents of the first steps in order: query, positive, negative of every row."""
    data, out = batches.config.data, []
    for step in range(steps):
        for row in batches.sampler.rows(step)[0]:
            form = row.form._asdict()
            out += [query_document(row.query, row.modality), item_document(row.triplet.positive, data, **form)]
            out.append(item_document(row.negative, data, **form))
    return out


def check_same_work(batches: TrainBatches, theirs: Collate, documents: Sequence[Document]) -> tuple[float, int, int]:
    """Returns (largest difference of a pixel, tokens of ours, tokens of theirs) of some documents."""
    config = batches.config
    data, vision = config.data, config.model.vision
    pictures = [images.pictures(document, data, vision) for document in documents]
    made = theirs([Documents(documents, data.crop_margin)[i] for i in range(len(documents))])
    grids = [[1, *picture.grid] for own in pictures for picture in own]
    assert made["image_grid_thw"].tolist() == grids, "the sides do not make the same pictures"
    frames = made["pixel_values"].numpy().reshape(-1, 3, vision.temporal_patch_size, vision.patch_size**2)[:, :, 0]
    ours = np.concatenate([picture.patches for own in pictures for picture in own])
    difference = float(np.abs(ours - frames.reshape(ours.shape)).max())
    encoded = [encode(d, batches.tokenizer, p, data, vision) for d, p in zip(documents, pictures, strict=True)]
    return difference, sum(len(e.tokens) for e in encoded), int(made["attention_mask"].sum())


def cpu_seconds(sides: Sequence[Callable[[], object]]) -> list[float]:
    """Returns the median CPU time of each side; the first turn warms up."""
    times: list[list[float]] = [[] for _ in sides]
    for turn in range(TURNS.value + 1):
        for side, taken in zip(sides, times, strict=True):
            start = time.process_time()
            side()
            if turn:
                taken.append(time.process_time() - start)
    return [statistics.median(taken) for taken in times]


def show_waiting(path: pathlib.Path) -> None:
    """Prints the share of the steps of a run that was spent waiting for data, less the interval that compiled."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    waited = total = 0.0
    for before, now in itertools.pairwise(lines):
        waited += now["data_wait_seconds"]
        total += now["seconds_per_step"] * (now["step"] - before["step"])
    print(f"\n{path}: waited for data {waited:.2f} of {total:.2f} seconds, {waited / total:.1%}")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        folder = DATA.value or f"{work}/catalogue"
        if not DATA.value:
            catalogue.write(folder, PRODUCTS.value, size_px=SIDE.value)
        data = DataConfig(
            path=folder, format=FORMAT.value, max_pixels=MAX_PIXELS.value, title_tokens=512, category_tokens=512,
            attribute_tokens=512,
        )  # fmt: skip
        config = Config(data=data, train=TrainConfig(batch_size=BATCH.value))
        dataset = sources.read(data)
        words = tokenizer.train_bpe(training_texts(dataset), f"{work}/tokenizer", 4096)
        batches = TrainBatches(dataset, words, config, 1, range(1))
        fast = transformers.AutoTokenizer.from_pretrained(f"{work}/tokenizer")
        limits = {"min_pixels": data.min_pixels, "max_pixels": data.max_pixels}
        processors = {"transformers, Pillow": Qwen2VLImageProcessorPil(**limits)}
        if importlib.util.find_spec("torchvision"):
            from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

            processors["transformers, torchvision"] = Qwen2VLImageProcessor(**limits)
        merge = config.model.vision.merge_unit
        collates = {name: Collate(processor, fast, merge) for name, processor in processors.items()}
        documents = documents_of(batches, STEPS.value)
        count = sum(1 + (ref.box is not None) for document in documents for ref in document.images)
        print(
            f"transformers {transformers.__version__}, torch {torch.__version__}; a turn is {STEPS.value} batches of "
            f"{BATCH.value} triplets: {len(documents)} documents, {count} pictures of at most {data.max_pixels:,} px"
        )
        for name, collate in collates.items():
            difference, ours, theirs = check_same_work(batches, collate, documents[: 3 * BATCH.value])
            print(f"{name}: pixels differ by {difference:.1e} at most, {theirs} tokens a batch (ours {ours})")

        def loader(collate: Collate) -> Iterator[Any]:
            every = Documents(documents, data.crop_margin)
            return iter(torch.utils.data.DataLoader(every, 3 * BATCH.value, collate_fn=collate, num_workers=0))

        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {CORE.value})
        sides = [lambda: [batches[step] and None for step in range(STEPS.value)]]
        sides += [lambda collate=collate: [None for _ in loader(collate)] for collate in collates.values()]
        names, seconds = ["ours, packed", *collates], cpu_seconds(sides)
        print("\n| | pictures/s on a core | ms a picture | ours is |\n|---|---|---|---|")
        for name, taken in zip(names, seconds, strict=True):
            rate = f"{count / taken:.1f} | {1e3 * taken / count:.2f}"
            print(f"| {name} | {rate} | {taken / seconds[0]:.2f} x as fast |", flush=True)
    if METRICS.value:
        show_waiting(pathlib.Path(METRICS.value))


if __name__ == "__main__":
    app.run(main)
