"""Embeds the records of a file: `python -m moon_jax.embed --model=DIR --input=records.jsonl --output=DIR`.

The input has one JSON object a line: "id", and any of "text" or "title", "description", "category" (a text or a list of
levels), "attributes" (a text, a list or an object), "images" (paths, relative to the file or absolute), "boxes" (one
[x1, y1, x2, y2] or null for each image). Blank lines are no records. With --image_store pictures are looked up there by
path or URL, as in training; --image_folder is where the paths start, if not beside the file.

The model is a Hugging Face folder of Qwen2.5-VL as it is, a converted model, or a training run's work folder.

The output folder receives
  embeddings.npy  float32 [records, width], unit vectors; row i belongs to the i-th record
  ids.json        the "id" of every record in the same order, null where it has none
  settings.json   what was embedded with which model and settings; the records that were skipped
A skipped record (--on_error=skip) keeps its row, which is NaN: no similarity with it is a number.

Killed at any time, the same command goes on where it was, and the files come out the same to the last bit. If the
model, the input or a setting has changed since, it refuses; pictures are not compared.

    python -m moon_jax.embed --model=runs/shop --input=items.jsonl --output=out/items --kind=item
    python -m moon_jax.embed --model=Qwen2.5-VL-3B-Instruct --input=items.jsonl --output=out --mesh=fsdp=8
"""

import pathlib
import sys
from typing import Any

import jax
from absl import app, flags, logging
from jax.experimental import multihost_utils
from tqdm import tqdm

from moon_jax.command_flags import CommandFlags
from moon_jax.config import ConfigError
from moon_jax.data.documents import KINDS, PLAIN
from moon_jax.data.embed_records import Reader
from moon_jax.data.picture_files import ImageError
from moon_jax.data.record_file import RecordFile, Scan, check_share
from moon_jax.data.records import DataError
from moon_jax.data.store import Store, open_store
from moon_jax.data.tokenizer import TokenizerError
from moon_jax.data.vector_file import SETTINGS, VECTORS, VectorFile
from moon_jax.encoder import DTYPES, Encoder, from_pretrained, with_max_pixels
from moon_jax.parallel.mesh import make_mesh, parse_mesh
from moon_jax.parallel.processes import meet, say, together
from moon_jax.training.embedder import EmbeddingError, window_documents
from moon_jax.training.pretrained import Pretrained, open_pretrained
from moon_jax.weights.source import WeightsError, fingerprint
from moon_jax.weights.spec import describe

_MISTAKES = (ConfigError, DataError, EmbeddingError, TokenizerError, WeightsError, OSError)


def main(argv: list[str]) -> None:
    """Reads the flags and runs; mistakes of the user end with one plain message instead of a traceback."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; settings are given as --name=value")
    logging.set_verbosity(logging.WARNING)
    try:
        with together(*_MISTAKES):
            run()
    except _MISTAKES as error:
        hint = " (--on_error=skip leaves its record out)" if isinstance(error, ImageError) else ""
        sys.exit(f"{type(error).__name__}: {error}{hint}")


def run() -> None:
    """Embeds what the flags say; see the module."""
    if BATCH_SIZE.value < 1 or not 0 <= MAX_SKIPPED_SHARE.value <= 1:
        raise ConfigError("--batch_size must be at least 1, and --max_skipped_share lie in 0..1")
    found = open_pretrained(MODEL.value)
    if MAX_PIXELS.value is not None:
        found = with_max_pixels(found, MAX_PIXELS.value)
    mesh = make_mesh(parse_mesh(MESH.value))
    meet(mesh)
    path = pathlib.Path(INPUT.value).expanduser().absolute()
    window = window_documents(BATCH_SIZE.value, mesh)
    reader = Reader(KIND.value, found.spec.data, _image_folder(path), _image_store())
    file = RecordFile(path, reader, window)
    scan = file.scan()
    check_share(scan.bad, scan, ON_ERROR.value, MAX_SKIPPED_SHARE.value)
    if reader.store is not None:
        say(f"{reader.looked_up[True]} of {reader.looked_up.total()} pictures are in the image store")

    identity = _identity(found, scan, dict(mesh.shape))
    if reader.store is not None:
        identity["image_store"] = reader.store.digest
    if IMAGE_FOLDER.value:
        identity["image_folder"] = str(reader.folder)
    folder = pathlib.Path(OUTPUT.value).expanduser().absolute()
    output = VectorFile(folder, identity, scan.records, found.spec.model.text.hidden_size)
    if output.done:
        say(f"{folder} is finished already: {SETTINGS} says how")
        return
    _warn(found, scan)
    encoder = from_pretrained(found, mesh, DTYPE.value, progress=True)
    if jax.process_count() > 1:  # all have read where to go on, before one of them writes
        multihost_utils.sync_global_devices("output")
    try:
        if jax.process_index() == 0:
            output.begin()
        _embed(encoder, file, scan, window, output)
        if jax.process_index() == 0:
            output.finish(file.ids(scan), _settings(path, scan, output, found.kind), scan.bad)
    finally:
        output.close()
    skipped = len(scan.bad | output.skipped)
    say(f"{scan.records} records, {skipped} of them skipped: {folder / VECTORS}")


def _embed(encoder: Encoder, file: RecordFile, scan: Scan, window: int, output: VectorFile) -> None:
    """Writes the vectors of all batches that are not in the output yet, and checks the share of skipped records."""
    start = output.position
    main_process = jax.process_index() == 0
    with tqdm(
        total=scan.records - len(scan.bad), initial=output.counts.get("records", 0), unit="record", desc="embedding",
        disable=not main_process,
    ) as bar:  # fmt: skip
        windows = file.windows(scan, start[0])
        for part in encoder.parts(windows, start=start, batch_size=BATCH_SIZE.value, on_error=ON_ERROR.value):
            rows = part.rows + part.window * window
            skipped = {int(row) + part.window * window: why for row, why in part.left_out.items()}
            check_share(scan.bad | output.skipped | skipped, scan, ON_ERROR.value, MAX_SKIPPED_SHARE.value)
            bar.update(len(rows))
            if main_process:
                counts = {"records": len(rows), **part.info}
                output.write(rows, part.vectors, skipped, counts, (part.window, part.batch + 1))


def _image_folder(path: pathlib.Path) -> pathlib.Path:
    """Returns where relative paths of pictures start."""
    if not IMAGE_FOLDER.value:
        return path.parent
    folder = pathlib.Path(IMAGE_FOLDER.value).expanduser().absolute()
    if not folder.is_dir():
        raise DataError(f"--image_folder: there is no folder {folder}")
    return folder


def _image_store() -> Store | None:
    return open_store(str(pathlib.Path(IMAGE_STORE.value).expanduser().absolute())) if IMAGE_STORE.value else None


def _identity(found: Pretrained, scan: Scan, mesh: dict[str, int]) -> dict[str, Any]:
    """Returns all that decides the vectors, under flat names: what must not change when a run goes on."""
    described = describe(found.spec)
    return {
        "weights": fingerprint(found.source),
        "tokenizer": found.load_tokenizer().fingerprint,
        **{f"{group}.{name}": value for group in ("model", "moe", "data") for name, value in described[group].items()},
        "input": scan.sha256,
        "records": scan.records,
        "kind": KIND.value,
        "dtype": DTYPE.value or found.spec.model.dtype,
        "batch_size": BATCH_SIZE.value,
        "mesh": mesh,
    }


def _settings(path: pathlib.Path, scan: Scan, output: VectorFile, kind: str) -> dict[str, Any]:
    skipped = {**scan.bad, **output.skipped}
    return {
        "model": {"path": MODEL.value, "kind": kind},
        "input": {"path": str(path), "sha256": scan.sha256, "records": scan.records, "repeated_ids": scan.repeated_ids},
        "embeddings": {"file": VECTORS, "rows": scan.records, "pooling": "mean", "normalized": True},
        "counts": output.counts,
        "skipped": [{"row": row, "reason": skipped[row]} for row in sorted(skipped)],
    }


def _warn(found: Pretrained, scan: Scan) -> None:
    if KIND.value == "plain" and {found.spec.data.prompt, found.spec.data.query_prompt} != {PLAIN}:
        say("this model has prompts of its own: --kind=item or --kind=query puts them around the records")
    if scan.repeated_ids:
        say(f"{scan.repeated_ids} records have an id that an earlier record has")
    for what, count in scan.unread.items():
        say(f"{count} items have {what}, which this model does not read")


FLAGS = CommandFlags(__name__)
MODEL = FLAGS.string("model", None, "folder of the model: Hugging Face, converted, or a training run's")
INPUT = FLAGS.string("input", None, "file with one JSON record a line")
OUTPUT = FLAGS.string("output", None, "folder for embeddings.npy, ids.json and settings.json")
KIND = FLAGS.enum(
    "kind", "plain", KINDS, "plain: the record as it stands; item, query: with the model's prompt and limits for these"
)
IMAGE_FOLDER = FLAGS.string("image_folder", "", "where relative paths of pictures start; by default the file's folder")
IMAGE_STORE = FLAGS.string("image_store", "", "packed image store that holds pictures, by path or URL")
BATCH_SIZE = FLAGS.integer("batch_size", 32, "records of a batch on one device (one batch shard)")
DTYPE = FLAGS.enum("dtype", None, DTYPES, "of the weights and the computation; by default the checkpoint's")
MESH = FLAGS.string("mesh", "", "sizes of mesh axes, e.g. fsdp=8; by default a whole model on each device")
MAX_PIXELS = FLAGS.integer("max_pixels", None, "larger pictures are scaled down to it; by default the model's")
ON_ERROR = FLAGS.enum("on_error", "raise", ("raise", "skip"), "what a bad record or an unreadable picture does")
MAX_SKIPPED_SHARE = FLAGS.float("max_skipped_share", 0.01, "more than this share skipped stops the run")

if __name__ == "__main__":
    flags.mark_flags_as_required(["model", "input", "output"])
    FLAGS.run(main)
