"""Finds the product in each picture: `python -m moon_jax.detect --model=DIR --input=DATA --output=boxes.jsonl`.

A generative model (Qwen2.5-VL as published, converted, or one that was trained with config.loss.kind = "next_token") is
asked for the box of the product that the title names; a query's picture is asked for by the query's own text. Training,
evaluation and embedding then feed the crop beside the picture:

    --config.data.path=DATA --config.data.boxes=boxes.jsonl

The input is a data set in any format that training reads. The output has one JSON object a line:
  image, title     what was asked; the picture's path relative to the input's folder, or its URL
  listing, query   id of the product, or of the record whose query it is
  box              [x1, y1, x2, y2] in pixels of the upright source picture
  status           parsed; shipped: a box that came with the data, used as it is; whole_image: the answer had no usable
                   box (reason); unreadable: no picture (--on_error=skip), no box
  answer           what the model said
boxes.settings.json beside it says what made it, with the counts; boxes.png shows some pictures with their boxes.

Killed at any time, the same command goes on where it was, and the file comes out the same. If the model, the data or a
setting has changed since, it refuses.

    python -m moon_jax.detect --model=Qwen2.5-VL-3B-Instruct --input=DATA --output=boxes.jsonl --max_pixels=802816
    python -m moon_jax.detect --model=runs/ground --input=runs/ground/catalogue --shipped=check --output=boxes.jsonl
"""

import collections
import dataclasses
import hashlib
import heapq
import json
import pathlib
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
from absl import app, flags, logging
from jax.experimental import multihost_utils
from tqdm import tqdm

from moon_jax.command_flags import CommandFlags
from moon_jax.config import ConfigError, DataConfig
from moon_jax.config_rules import FORMATS
from moon_jax.data import contact_sheet, sources, store_refs
from moon_jax.data.box_file import BoxFile, box_in, line_of
from moon_jax.data.grounding import Question, all_questions
from moon_jax.data.grounding_answers import PARSED, STATUSES, UNREADABLE, WHOLE, Found
from moon_jax.data.picture_files import ImageError
from moon_jax.data.records import DataError, ImageRef
from moon_jax.data.sources import files, guess
from moon_jax.data.tokenizer import TokenizerError
from moon_jax.encoder import DTYPES, from_pretrained, with_max_pixels
from moon_jax.evaluation.grounding import iou
from moon_jax.parallel.mesh import make_mesh, parse_mesh
from moon_jax.parallel.processes import meet, say, together
from moon_jax.training.detector import Detector
from moon_jax.training.pretrained import Pretrained, open_pretrained
from moon_jax.weights.source import WeightsError, fingerprint
from moon_jax.weights.spec import describe

_MISTAKES = (ConfigError, DataError, TokenizerError, WeightsError, OSError)
FEW_PARSED = 0.5  # a smaller share of usable answers deserves a word


def main(argv: list[str]) -> None:
    """Reads the flags and runs; mistakes of the user end with one plain message instead of a traceback."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; settings are given as --name=value")
    logging.set_verbosity(logging.WARNING)
    try:
        with together(*_MISTAKES):
            run()
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from the last batch")
    except _MISTAKES as error:
        hint = " (--on_error=skip leaves it out)" if isinstance(error, ImageError) else ""
        sys.exit(f"{type(error).__name__}: {error}{hint}")


def run() -> None:
    """Detects what the flags say; see the module."""
    found = open_pretrained(MODEL.value)
    if MAX_PIXELS.value is not None:
        found = with_max_pixels(found, MAX_PIXELS.value)
    mesh = make_mesh(parse_mesh(MESH.value))
    meet(mesh)
    given = DataConfig(
        path=INPUT.value, format=FORMAT.value or guess.guess(INPUT.value)[0].format, image_folder=IMAGE_FOLDER.value,
        image_store=IMAGE_STORE.value, parts=tuple(PARTS.value), on_error=ON_ERROR.value,
        max_skipped_share=MAX_SKIPPED_SHARE.value,
    )  # fmt: skip
    dataset, folder = sources.read(given, triplets=False), files.image_root(given)
    questions = all_questions(dataset)
    data = dataclasses.replace(found.spec.data, on_error=ON_ERROR.value)
    found = dataclasses.replace(found, spec=dataclasses.replace(found.spec, data=data))
    output = BoxFile(
        pathlib.Path(OUTPUT.value).expanduser().absolute(), _identity(found, questions, folder, dict(mesh.shape))
    )
    if output.done:
        say(f"{output.path} is finished already: {output.settings.name} says how")
        return
    encoder = from_pretrained(found, mesh, DTYPE.value, progress=True)
    detector = Detector(encoder.config, mesh, encoder.tokenizer, encoder.head)
    if jax.process_count() > 1:  # all have read where to go on, before one of them writes
        multihost_utils.sync_global_devices("output")
    try:
        if jax.process_index() == 0:
            output.begin()
        batches = detector.batches(
            encoder.params, questions, BATCH_SIZE.value, done=output.lines, ask_shipped=SHIPPED_BOXES.value == "check"
        )
        _write(output, batches, len(questions), folder)
        if jax.process_index() == 0:
            _finish(output, questions, folder)
    finally:
        output.close()


def _write(
    output: BoxFile, batches: Iterable[Sequence[tuple[Question, Found]]], total: int, folder: pathlib.Path
) -> None:
    """Writes the lines of all batches that are not in the output yet, and checks the share of unreadable pictures."""
    main_process, unreadable = jax.process_index() == 0, 0
    with tqdm(total=total, initial=output.lines, unit="picture", desc="detecting", disable=not main_process) as bar:
        for batch in batches:
            bad = [one.reason for _, one in batch if one.status == UNREADABLE]
            unreadable += len(bad)
            if bad and unreadable > MAX_SKIPPED_SHARE.value * total:
                raise DataError(
                    f"more than --max_skipped_share = {MAX_SKIPPED_SHARE.value:g} of the {total} pictures cannot be "
                    f"read, the last of them: {bad[-1]}"
                )
            if main_process:
                output.write([line_of(question, one, folder) for question, one in batch])
            bar.update(len(batch))


def _finish(output: BoxFile, questions: Sequence[Question], folder: pathlib.Path) -> None:
    summary = summarize(output.read())
    if SHEET.value:
        boxed = (line for line in output.read() if line["box"] is not None)
        chosen = heapq.nsmallest(SHEET.value, boxed, lambda line: hashlib.sha256(repr(_asked(line)).encode()).digest())
        wanted = {_asked(line) for line in chosen}
        asked = {key: q for q in questions if (key := (store_refs.key_of(q.image.path, folder), q.title)) in wanted}
        cells = [_cell(line, asked[_asked(line)]) for line in chosen]
        contact_sheet.contact_sheet(cells, 6).save(output.path.with_suffix(".png"))
    output.finish({"model": MODEL.value, **summary})
    print("\n".join(text(summary)))
    print(f"written to {output.path}")


def _asked(line: Mapping[str, Any]) -> tuple[str, str]:
    return line["image"], line["title"]


def _cell(line: Mapping[str, Any], question: Question) -> contact_sheet.Cell:
    image, shipped = question.image.path, line.get("shipped")
    heading = line["status"] if shipped is None else f"{line['status']}, IoU {_agreement(line):.2f}"
    return contact_sheet.Cell(
        ImageRef(image, box_in(line["box"], image)),
        heading,
        line["title"] or "(no title)",
        shipped and box_in(shipped, image),
    )


def summarize(lines: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns counts by status and reason, and how well answers agree with shipped boxes where both are known."""
    status: collections.Counter[str] = collections.Counter()
    reasons: collections.Counter[str] = collections.Counter()
    scores = []
    for line in lines:
        status[line["status"]] += 1
        if "reason" in line and line["status"] == WHOLE:
            reasons[line["reason"]] += 1
        if "shipped" in line:
            scores.append(_agreement(line))
    out: dict[str, Any] = {"counts": {name: status[name] for name in STATUSES}, "reasons": dict(reasons)}
    if scores:
        out["shipped_boxes"] = {
            "compared": len(scores), "mean_IoU": sum(scores) / len(scores),
            "share_of_IoU_at_least_0.5": sum(score >= 0.5 for score in scores) / len(scores),
        }  # fmt: skip
    return out


def text(summary: Mapping[str, Any]) -> list[str]:
    """Returns the summary as lines for the terminal."""
    counts = summary["counts"]
    asked = counts[PARSED] + counts[WHOLE]
    out = [
        f"{sum(counts.values())} pictures: " + ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    ]
    out += [f"  {count} whole_image for: {reason}" for reason, count in summary["reasons"].items()]
    if agreed := summary.get("shipped_boxes"):
        out.append(
            f"against {agreed['compared']} shipped boxes: mean IoU {agreed['mean_IoU']:.3f}, "
            f"at least 0.5 for {agreed['share_of_IoU_at_least_0.5']:.1%}"
        )
    if asked and counts[PARSED] < FEW_PARSED * asked:
        out.append(
            f"only {counts[PARSED] / asked:.0%} of the answers had a usable box: is this a model that can answer, with "
            "config.data.grounding as it was trained?"
        )
    return out


def _agreement(line: Mapping[str, Any]) -> float:
    return iou(tuple(line["box"]), tuple(line["shipped"]))


def _identity(
    found: Pretrained, questions: Sequence[Question], folder: pathlib.Path, mesh: dict[str, int]
) -> dict[str, Any]:
    """Returns all that decides the lines and their order, under flat names."""
    digest = hashlib.sha256()
    for question in questions:
        key = store_refs.key_of(question.image.path, folder)
        digest.update(json.dumps([key, question.title, question.image.box, question.kind, question.id]).encode())
    described = describe(found.spec)
    names = ("grounding", "title_tokens", "min_pixels", "max_pixels", "max_aspect")
    return {
        "weights": fingerprint(found.source),
        "tokenizer": found.load_tokenizer().fingerprint,
        **{f"{group}.{name}": value for group in ("model", "moe") for name, value in described[group].items()},
        **{f"data.{name}": described["data"][name] for name in names},
        "input": digest.hexdigest(),
        "image_store": IMAGE_STORE.value,
        "dtype": DTYPE.value or found.spec.model.dtype,
        "batch_size": BATCH_SIZE.value,
        "mesh": mesh,
        "shipped": SHIPPED_BOXES.value,
    }


FLAGS = CommandFlags(__name__)
MODEL = FLAGS.string("model", None, "folder of a generative model: Hugging Face, converted, or a training run's")
INPUT = FLAGS.string("input", None, "folder or file of the data set, as config.data.path")
OUTPUT = FLAGS.string("output", None, "file of boxes; its settings and a contact sheet are written beside it")
FORMAT = FLAGS.enum("format", None, FORMATS, "of the data set; by default it is guessed")
PARTS = FLAGS.list("parts", [], "names of the sets in the folder; by default all that are there")
IMAGE_FOLDER = FLAGS.string("image_folder", "", "where relative paths of pictures start; by default --input")
IMAGE_STORE = FLAGS.string("image_store", "", "packed image store that holds the pictures")
SHIPPED_BOXES = FLAGS.enum(
    "shipped", "use", ("use", "check"), "boxes that came with the data: use them as they are, or ask and compare"
)
BATCH_SIZE = FLAGS.integer("batch_size", 8, "pictures of a batch on one device (one batch shard)", lower_bound=1)
DTYPE = FLAGS.enum("dtype", None, DTYPES, "of the weights and the computation; by default the checkpoint's")
MESH = FLAGS.string("mesh", "", "sizes of mesh axes, e.g. fsdp=8; by default a whole model on each device")
MAX_PIXELS = FLAGS.integer("max_pixels", None, "larger pictures are scaled down to it; by default the model's")
ON_ERROR = FLAGS.enum("on_error", "raise", ("raise", "skip"), "what a bad record or an unreadable picture does")
MAX_SKIPPED_SHARE = FLAGS.float("max_skipped_share", 0.01, "more than this share skipped stops the run")
SHEET = FLAGS.integer("sheet", 36, "pictures on the contact sheet; 0 = no sheet", lower_bound=0)

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    flags.mark_flags_as_required(["model", "input", "output"])
    FLAGS.run(main)
