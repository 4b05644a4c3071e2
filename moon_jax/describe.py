"""Shows what a data set holds: `python -m moon_jax.describe --input=PATH [--output=DIR]`.

Reads a folder or a file as training would and prints what it found: the format (guessed, with the reason, unless
--format says it), records and skipped records with the reasons, listings and triplets by part, which fields are there
and which are missing, categories by level, attributes, and how long texts and how large pictures are. Bad records are
always skipped and counted here, never a reason to stop.

With --output, the folder receives
  describe.json      all of it, and the captions of the contact sheet in full
  histograms.png     lengths and sizes as bars
  contact_sheet.png  query, positive and hard negative side by side (listings where there are no triplets), boxes in red

    python -m moon_jax.describe --input=../data
    python -m moon_jax.describe --input=shop.csv --image_folder=photos --columns=title=Bezeichnung,attribute=Farbe
    python -m moon_jax.describe --input=m5product --image_folder=m5product/images --output=out --limit=10000
"""

import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from absl import app, flags, logging

from moon_jax.command_flags import CommandFlags, pairs
from moon_jax.config import ConfigError, DataConfig
from moon_jax.config_rules import FORMATS
from moon_jax.data import sources, summary, tokenizer, whole_file
from moon_jax.data.contact_sheet import chart, contact_sheet, lacks_chinese
from moon_jax.data.histogram import Histogram
from moon_jax.data.policy import printable
from moon_jax.data.records import DataError, Dataset
from moon_jax.data.sources import guess

MOST_ATTRIBUTES = 20  # that the terminal shows; describe.json has all


def main(argv: list[str]) -> None:
    """Reads the flags and runs; mistakes of the user end with one plain message instead of a traceback."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; settings are given as --name=value")
    logging.set_verbosity(logging.WARNING)
    try:
        run()
    except (ConfigError, DataError, tokenizer.TokenizerError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


def run() -> None:
    """Describes what the flags say; see the module."""
    if min(LIMIT.value, PICTURES.value, SHEET.value) < 0:
        raise ConfigError("--limit, --pictures and --sheet must not be negative")
    if MAX_PIXELS.value < DataConfig.min_pixels:
        raise ConfigError(f"--max_pixels must be at least {DataConfig.min_pixels} (config.data.min_pixels)")
    guesses = [guess.Guess(FORMAT.value, "as --format says")] if FORMAT.value else guess.guess(INPUT.value)
    data = DataConfig(
        path=str(INPUT.value),
        format=guesses[0].format,
        image_folder=IMAGE_FOLDER.value,
        image_store=IMAGE_STORE.value,
        parts=tuple(PARTS.value),
        mbe_keys=pairs("mbe_keys", MBE_KEYS.value),
        columns=pairs("columns", COLUMNS.value),
        max_pixels=MAX_PIXELS.value,
        on_error="skip",
        max_skipped_share=1.0,
    )
    dataset = sources.read(data, triplets=False, limit=LIMIT.value)
    if TOKENIZER.value:
        words = tokenizer.load(TOKENIZER.value)
        lengths = summary.text_lengths(dataset, lambda text: len(words.encode(text)), "tokens")
    else:
        lengths = summary.text_lengths(dataset, len, "characters")
    sizes = summary.picture_sizes(dataset, data, PICTURES.value)
    histograms = [*lengths, *sizes.histograms]
    found = {
        "input": data.path,
        "format": [one._asdict() for one in guesses],
        "report": dataset.report,
        "counts": summary.counts(dataset),
        "fields": summary.fields(dataset),
        "categories": summary.categories(dataset),
        "attributes": summary.attributes(dataset),
        "pictures": {"looked_at": sizes.looked_at, "of": sizes.of, "broken": sizes.broken},
        "histograms": [dataclasses.asdict(one) for one in histograms],
    }
    print("\n".join(map(printable, text(found, histograms))))
    if OUTPUT.value:
        _write(pathlib.Path(OUTPUT.value).expanduser(), found, histograms, dataset)


def _write(folder: pathlib.Path, found: dict[str, Any], histograms: Sequence[Histogram], dataset: Dataset) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    cells, columns = summary.cells(dataset, SHEET.value)
    captions = [{"heading": c.heading, "caption": c.caption, "picture": c.image and str(c.image.path)} for c in cells]
    whole_file.write_json(folder / "describe.json", found | {"contact_sheet": captions})
    written = ["describe.json"]
    if histograms:
        chart(histograms).save(folder / "histograms.png")
        written.append("histograms.png")
    if cells:
        contact_sheet(cells, columns).save(folder / "contact_sheet.png")
        written.append("contact_sheet.png")
        if lacks_chinese() and any("\u2e80" <= sign <= "\u9fff" for cell in cells for sign in cell.caption):
            print("no font with Chinese is installed (for example fonts-noto-cjk): read the captions in describe.json")
    print(f"\nwritten to {folder}: {', '.join(written)}")


def text(found: dict[str, Any], histograms: Sequence[Histogram]) -> list[str]:
    """Returns the description as lines for the terminal."""
    first, *others = found["format"]
    report, counts = found["report"], found["counts"]
    out = [f"{found['input']}", f"format: {first['format']} ({first['reason']})"]
    out += [f"  or {other['format']} ({other['reason']}); --format={other['format']} reads it so" for other in others]
    out += ["", f"records: {report['records']:,}, of them skipped: {report['skipped']:,}"]
    out += [f"  {count:,} for {reason}" for reason, count in report["skipped_reasons"].items()]
    out += [f"  {example}" for example in report["skipped_examples"]]
    shown = ("records", "skipped", "skipped_reasons", "skipped_examples")
    out += [f"  {name.replace('_', ' ')}: {value}" for name, value in report.items() if name not in shown and value]
    out += ["", *_table("part", ("listings", "train", "seen", "unseen"), counts["parts"])]
    out += ["", f"listing pictures: {counts['listing_pictures']:,}; listings with several: "
            f"{counts['listings_with_several_pictures']:,}"]  # fmt: skip
    if sum(counts["triplets"].values()):
        queries = ", ".join(f"{name} {count:,}" for name, count in counts["queries"].items())
        out += [f"queries: {queries}", f"  with a hard negative: {counts['triplets_with_hard_negative']:,}"]
        out += [f"  with several right answers: {counts['queries_with_several_answers']:,}"]
        out += [f"  kinds: {', '.join(f'{k} {n:,}' for k, n in counts['query_kinds'].items()) or 'none given'}"]
    for what, there in found["fields"].items():
        total = there["all"]
        out += ["", f"fields of {total:,} {what}"]
        for name, count in there.items():
            if name != "all":
                note = "none has it" if not count else f"{total - count:,} lack it" if count < total else "all have it"
                out.append(f"  {name:<12} {count / max(1, total):6.1%}  {note}")
    out += ["", "categories by level" if found["categories"] else "categories: none"]
    for depth, level in enumerate(found["categories"]):
        names = ", ".join(f"{name} {count:,}" for name, count in level["most_frequent"].items())
        out.append(f"  {depth}: {level['listings']:,} listings, {level['distinct']:,} names: {names}")
    out += ["", f"attributes: {len(found['attributes'])}"]
    for key, of_key in list(found["attributes"].items())[:MOST_ATTRIBUTES]:
        share = of_key["listings"] / counts["listings"]
        names = ", ".join(of_key["most_frequent"])
        several = f", {of_key['with_several_values']:,} with several" if of_key["with_several_values"] else ""
        out.append(f"  {_short(key, 24):<24} {share:6.1%}{several}; {of_key['distinct']:,} values: {_short(names, 60)}")
    if len(found["attributes"]) > MOST_ATTRIBUTES:
        out.append(f"  and {len(found['attributes']) - MOST_ATTRIBUTES} more")
    pictures = found["pictures"]
    out += [
        "",
        f"pictures: {pictures['looked_at']:,} of {pictures['of']:,} looked at, {len(pictures['broken']):,} broken",
    ]
    out += [f"  {message}" for message in pictures["broken"][: summary.MOST_NAMED]]
    if len(pictures["broken"]) > pictures["looked_at"] / 2:
        out.append("  are they in another folder? --image_folder says where relative paths start")
    for one in histograms:
        out += ["", *one.lines()]
    return out


def _table(what: str, columns: Sequence[str], rows: dict[str, dict[str, int]]) -> list[str]:
    width = max(len(what), *map(len, rows))
    head = f"{what:<{width}}" + "".join(f"{column:>10}" for column in columns)
    return [head, *(f"{name:<{width}}" + "".join(f"{row[c]:>10,}" for c in columns) for name, row in rows.items())]


def _short(said: str, most: int) -> str:
    return said if len(said) <= most else said[: most - 3] + "..."


FLAGS = CommandFlags(__name__)
INPUT = FLAGS.string("input", None, "folder or file of records")
OUTPUT = FLAGS.string("output", "", "folder for describe.json and the two PNGs; without it nothing is written")
FORMAT = FLAGS.enum("format", None, FORMATS, "of the input; by default it is guessed, and the reason is shown")
IMAGE_FOLDER = FLAGS.string("image_folder", "", "where relative paths of pictures start; by default the input's")
IMAGE_STORE = FLAGS.string("image_store", "", "packed image store that holds the pictures")
PARTS = FLAGS.list("parts", [], "names of the sets in the folder to read; by default all")
COLUMNS = FLAGS.list("columns", [], "for tables: OURS=THEIRS names, e.g. title=Bezeichnung,attribute=Farbe")
MBE_KEYS = FLAGS.list("mbe_keys", [], "for the MBE layout: OURS=THEIRS keys; OURS= says there is none")
TOKENIZER = FLAGS.string("tokenizer", "", "Hugging Face tokenizer folder: lengths in tokens, not characters")
MAX_PIXELS = FLAGS.integer("max_pixels", DataConfig().max_pixels, "pixel budget for counting visual tokens")
LIMIT = FLAGS.integer("limit", 0, "records read of every file; 0 = all")
PICTURES = FLAGS.integer("pictures", 1000, "pictures that are decoded, chosen by hash")
SHEET = FLAGS.integer("sheet", 36, "pictures on the contact sheet")

if __name__ == "__main__":
    flags.mark_flags_as_required(["input"])
    FLAGS.run(main)
