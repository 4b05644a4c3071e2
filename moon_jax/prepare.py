r"""Makes a benchmark: `python -m moon_jax.prepare --catalogue=PATH --log=PATH --output=DIR`.

The log has a purchase a row: the text or the picture of the query (or both), the item that was bought, the time. It is
CSV, TSV, JSON Lines or Parquet. The catalogue is anything that `python -m moon_jax.describe` reads. The output is what
training and describe read: train.jsonl, test.jsonl, items.jsonl; and report.json says what was dropped and why.
As the MBE benchmark was made (paper 4):
  - every industry (first level of the category) keeps its share of the purchases, rare ones get --floor records;
  - each record has a hard negative: another product of the same category, the deepest that has one; with --miner the
    product that a trained model finds most similar to the query, but less so than what was bought;
  - no product, text or picture of a query that is in the test set is in training;
  - columns with personal data are refused, and rows that look personal dropped.
The same catalogue, log and flags give the same files, whatever the engine and the order of the rows.

    python -m moon_jax.prepare --catalogue=shop.csv --log=purchases.parquet --output=bench
    python -m moon_jax.prepare --catalogue=shop.csv --log=log.csv --columns=query_text=Suche,item_id=Artikel \
        --ignore_columns=user_id --train_rows=100000 --test_rows=10000 --output=bench
    spark-submit ... moon_jax/prepare.py --engine=spark --log=hdfs:///log --work=/shared/tmp ...
"""

import dataclasses
import datetime
import os
import pathlib
import signal
import sys
from typing import Any

from absl import app, flags, logging

from moon_jax.command_flags import CommandFlags, pairs
from moon_jax.config import ConfigError, DataConfig
from moon_jax.config_rules import FORMATS
from moon_jax.data import sources, whole_file
from moon_jax.data.benchmark import output as folders
from moon_jax.data.benchmark import report as reports
from moon_jax.data.benchmark.build import Settings, build
from moon_jax.data.benchmark.engine import ENGINES, connect
from moon_jax.data.benchmark.functions import NO_TIME, seconds
from moon_jax.data.benchmark.listings import listings
from moon_jax.data.benchmark.log_file import Columns
from moon_jax.data.benchmark.purchases import Window
from moon_jax.data.records import DataError
from moon_jax.data.sources import guess


def main(argv: list[str]) -> None:
    """Reads the flags and runs; mistakes of the user end with one plain message instead of a traceback."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; settings are given as --name=value")
    logging.set_verbosity(logging.WARNING)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that folders are removed
    try:
        run()
    except (ConfigError, DataError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


def run() -> None:
    """Makes the benchmark that the flags ask for; see the module."""
    output = pathlib.Path(OUTPUT.value).expanduser().resolve()
    folders.check_replaceable(output)
    columns = Columns(LOG.value, dict(pairs("columns", COLUMNS.value)), IGNORE_COLUMNS.value)
    window = Window(_day("since", SINCE.value), _day("until", UNTIL.value))
    settings = Settings(
        TRAIN_ROWS.value, TEST_ROWS.value, FLOOR.value, SEED.value, window, MAX_PERSONAL_SHARE.value, MINER_MARGIN.value
    )
    found = listings(sources.read(_catalogue(), triplets=False), TEST_SHARE.value, output)
    model = _miner() if MINER.value else None
    log = DataConfig(
        path=LOG.value,
        image_folder=_query_pictures(),
        on_error=ON_ERROR.value,
        max_skipped_share=MAX_SKIPPED_SHARE.value,
    )
    say = lambda line: print(f"{line} ...", file=sys.stderr)  # noqa: E731
    place = pathlib.Path(WORK.value).expanduser().absolute() if WORK.value else output.parent
    place.mkdir(parents=True, exist_ok=True)
    folders.clear(place, "prepare")
    mode = 0o777 if ENGINE.value == "spark" else 0o700  # executors may run as another user
    with folders.fresh(output) as folder, folders.temporary(place, "prepare", mode) as work:
        engine = connect(ENGINE.value, work, MEMORY_GB.value)
        try:
            report = build(found, log, columns, settings, engine, folder, output, say, model)
        finally:
            engine.close()
        report["settings"] = dataclasses.asdict(settings) | {
            "test_share": TEST_SHARE.value, "engine": ENGINE.value, "miner": MINER.value,
        }  # fmt: skip
        whole_file.write_json(folder / folders.REPORT, folders.STAMP | report)
    print(reports.text(report))
    share = "" if TEST_SHARE.value == DataConfig().unseen_share else f" --config.data.unseen_share={TEST_SHARE.value:g}"
    print(f"\n{output}: train with --config.data.format=jsonl --config.data.path={OUTPUT.value}{share}")


def _catalogue() -> DataConfig:
    return DataConfig(
        path=CATALOGUE.value,
        format=FORMAT.value or guess.guess(CATALOGUE.value)[0].format,
        image_folder=IMAGE_FOLDER.value,
        columns=pairs("catalogue_columns", CATALOGUE_COLUMNS.value),
        on_error=ON_ERROR.value,
        max_skipped_share=MAX_SKIPPED_SHARE.value,
    )


def _query_pictures() -> str:
    if QUERY_FOLDER.value:
        return os.path.abspath(pathlib.Path(QUERY_FOLDER.value).expanduser())
    path = os.path.abspath(pathlib.Path(LOG.value).expanduser())
    return path if os.path.isdir(path) else os.path.dirname(path)


def _miner() -> Any:
    from moon_jax.data.tokenizer import TokenizerError  # JAX takes seconds to start, and only this needs it
    from moon_jax.encoder import load
    from moon_jax.weights.source import WeightsError

    try:
        return load(MINER.value, progress=True)
    except (WeightsError, TokenizerError) as error:
        raise ConfigError(f"--miner={MINER.value}: {error}") from error


def _day(name: str, given: str | None) -> int | None:
    if given is None:
        return None
    found = seconds(given) if "-" in given else NO_TIME
    if found == NO_TIME:
        today = datetime.date.today().isoformat()
        raise ConfigError(f"--{name}={given}: not a day or time after 1970, such as {today} or {today}T12:00:00+08:00")
    return found


FLAGS = CommandFlags(__name__)
CATALOGUE = FLAGS.string("catalogue", None, "folder or file of the listings")
FORMAT = FLAGS.enum("format", None, FORMATS, "of the catalogue; by default it is guessed")
IMAGE_FOLDER = FLAGS.string("image_folder", "", "where relative paths of the catalogue's pictures start")
CATALOGUE_COLUMNS = FLAGS.list("catalogue_columns", [], "for tables: OURS=THEIRS names, as --columns of describe")
LOG = FLAGS.string("log", None, ".csv, .tsv or .jsonl file, or Parquet: a file, a folder, an address of Spark's")
COLUMNS = FLAGS.list("columns", [], "OURS=THEIRS names of the log: query_text, query_image, item_id, time")
IGNORE_COLUMNS = FLAGS.list("ignore_columns", [], "columns of the log with personal data: allowed there, not read")
QUERY_FOLDER = FLAGS.string("query_folder", "", "where paths of query pictures start; by default the log's folder")
OUTPUT = FLAGS.string("output", None, "folder of the benchmark; one that this command wrote is replaced")
TRAIN_ROWS = FLAGS.integer("train_rows", 0, "training records wanted; 0 = all there are", lower_bound=0)
TEST_ROWS = FLAGS.integer("test_rows", 0, "test records wanted; 0 = all there are", lower_bound=0)
TEST_SHARE = FLAGS.float(
    "test_share",
    DataConfig().unseen_share,
    "of the products, by a hash of their id, are for the test set only",
    0.001,
    0.999,
)
FLOOR = FLAGS.integer("floor", 100, "records that a rare industry has in each set, if there are as many", 0)
SEED = FLAGS.integer("seed", 0, "of the draws; products are divided without it, as training divides them")
SINCE = FLAGS.string("since", None, "purchases from this day or time on (UTC unless it names a zone)")
UNTIL = FLAGS.string("until", None, "purchases before this day or time")
MAX_PERSONAL_SHARE = FLAGS.float("max_personal_share", 0.01, "more rows that look personal stop the run", 0, 1)
MINER = FLAGS.string("miner", "", "folder of a trained model that finds the hard negatives")
MINER_MARGIN = FLAGS.float("miner_margin", 0.0, "how much less similar to the query than what was bought", 0)
ENGINE = FLAGS.enum("engine", "duckdb", ENGINES, "duckdb: in this process; spark: the session of spark-submit")
MEMORY_GB = FLAGS.float("memory_gb", 2.0, "that DuckDB may take; the catalogue comes on top", 0.2)
WORK = FLAGS.string("work", "", "folder for intermediate tables, removed at the end; Spark's machines must see it")
ON_ERROR = FLAGS.enum("on_error", "raise", ("raise", "skip"), "what an unreadable line or listing does")
MAX_SKIPPED_SHARE = FLAGS.float("max_skipped_share", 0.01, "more than this share skipped stops the run", 0, 1)

if __name__ == "__main__":
    flags.mark_flags_as_required(["catalogue", "log", "output"])
    FLAGS.run(main)
