"""Packs the pictures of a data set: `python -m moon_jax.pack_images --input=DATA --format=jsonl --output=STORE`.

Millions of small files are slow to list, copy and read at random, above all on network disks. A packed image store
holds them in a few large files, with checksums and an index of their sizes; training reads it with

    --config.data.path=DATA --config.data.image_store=STORE

Pictures of at most --max_pixels are stored as they are and give the same pixels as their files; larger ones become
JPEG files of that many pixels. All are decoded once: one that cannot be stops the run, or is left out, counted and
listed in skipped-*.jsonl with --on_error=skip.

Killed at any time, the same command goes on where it was; pictures that the data set has gained since are added.
Several machines that see the same folders share the work with --host=0/4, --host=1/4, ...
"""

import pathlib
import signal
import sys

import numpy as np
from absl import app, flags

from moon_jax.command_flags import CommandFlags
from moon_jax.config import DataConfig, VisionConfig
from moon_jax.data import sources, store_refs
from moon_jax.data.records import DataError
from moon_jax.data.sources import files
from moon_jax.data.store import Store
from moon_jax.data.store_encode import KEEP, StoreSettings
from moon_jax.data.store_pack import pack
from moon_jax.data.store_writer import SHARD_PICTURES, Part


def main(argv: list[str]) -> None:
    """Reads the flags and runs; mistakes of the user end with one plain message instead of a traceback."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; settings are given as --name=value")
    try:
        run()
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from the last whole shard")
    except (DataError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


def run() -> None:
    """Packs what the flags say; see the module."""
    config = DataConfig(
        path=INPUT.value, format=FORMAT.value, parts=tuple(PARTS.value), image_folder=IMAGE_FOLDER.value,
        on_error=ON_ERROR.value, max_skipped_share=MAX_SKIPPED_SHARE.value,
    )  # fmt: skip
    part, settings = Part.parse(HOST.value), StoreSettings(MAX_PIXELS.value, QUALITY.value, KEEP_FILES.value)
    folder = pathlib.Path(OUTPUT.value).expanduser().absolute()
    dataset = sources.read(config, triplets=False)
    pictures = store_refs.pictures_of(dataset, files.image_root(config))
    done = pack(
        pictures, folder, settings, part=part, workers=WORKERS.value, on_error=ON_ERROR.value,
        max_skipped_share=MAX_SKIPPED_SHARE.value, shard_pictures=SHARD.value,
    )  # fmt: skip
    # The store can be opened when no other part adds to it: the index then is of all its shards.
    counts = store_refs.tokens(Store(folder), config, VisionConfig()) if part.of == 1 else ()
    print(
        f"{folder}: {done.stored} pictures stored, {done.there_before} were there, {done.skipped} skipped; "
        f"now {done.index['pictures']} in {len(done.index['shards'])} shards, {done.index['bytes'] / 1e6:,.1f} MB"
        + (f", {np.mean(counts):.0f} visual tokens each at 448x448 px" if len(counts) else "")
    )


FLAGS = CommandFlags(__name__)
INPUT = FLAGS.string("input", None, "folder or file of the data set, as config.data.path")
FORMAT = FLAGS.string("format", "jsonl", f"of the data set: {', '.join(sources.READERS)}")
PARTS = FLAGS.list("parts", [], "names of the sets in the folder; by default all that are there")
IMAGE_FOLDER = FLAGS.string("image_folder", "", "where relative paths of pictures start; by default --input")
OUTPUT = FLAGS.string("output", None, "folder of the image store: made, or gone on with")
MAX_PIXELS = FLAGS.integer(
    "max_pixels", StoreSettings.max_pixels, "larger pictures are scaled down to it; leave room for crops of the product"
)
QUALITY = FLAGS.integer("quality", StoreSettings.quality, "of the JPEG files that are written, 1..100")
KEEP_FILES = FLAGS.enum(
    "keep", StoreSettings.keep, KEEP, "which pictures of at most --max_pixels keep their bytes: all, or JPEG files only"
)
WORKERS = FLAGS.integer("workers", 0, "processes that decode and write; 0 = none beside this one", lower_bound=0)
HOST = FLAGS.string("host", "0/1", "which share of the pictures this machine packs, as NUMBER/OF")
SHARD = FLAGS.integer("shard_pictures", SHARD_PICTURES, "pictures of a shard", lower_bound=1)
ON_ERROR = FLAGS.enum("on_error", "raise", ("raise", "skip"), "what a bad record or an unreadable picture does")
MAX_SKIPPED_SHARE = FLAGS.float("max_skipped_share", 0.01, "more than this share skipped stops the run")

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    flags.mark_flags_as_required(["input", "output"])
    FLAGS.run(main)
