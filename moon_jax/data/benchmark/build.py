"""The way from catalogue and log to the files of a benchmark, step by step."""

import collections
import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import ibis.expr.types as ir

from moon_jax.config import DataConfig
from moon_jax.data.benchmark import purchases, sampling, sides
from moon_jax.data.benchmark.engine import Engine, naming
from moon_jax.data.benchmark.listings import Listings
from moon_jax.data.benchmark.log_file import Columns, open_log
from moon_jax.data.benchmark.mining import Embeds, Miner
from moon_jax.data.benchmark.negatives import members, with_negatives
from moon_jax.data.benchmark.purchases import ALWAYS, UNKNOWN_ITEM, Window
from moon_jax.data.benchmark.writer import Writer, level
from moon_jax.data.records import DataError
from moon_jax.data.sources import lines

EXAMPLES = 5  # unknown items that the report names
LEFT = ("repeats of another row", "query of the other set", "not in the sample")
SETS = {False: "train", True: "test"}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the benchmark besides catalogue and log."""

    train_rows: int = 0  # records wanted; 0 = all
    test_rows: int = 0
    floor: int = 100  # records of every industry in either set, where there are as many
    seed: int = 0
    window: Window = ALWAYS
    max_personal_share: float = 0.01  # of the rows may look personal
    miner_margin: float = 0.0


def build(
    listings: Listings,
    log: DataConfig,
    columns: Columns,
    settings: Settings,
    engine: Engine,
    folder: pathlib.Path,
    home: pathlib.Path,
    say: Callable[[str], None] = lambda line: None,
    model: Embeds | None = None,
) -> dict[str, Any]:
    """Returns the report, after writing train.jsonl, test.jsonl and items.jsonl.

    Args:
        listings: of the catalogue.
        log: `path`, `on_error`, `max_skipped_share`; `image_folder` is where relative paths of query pictures start.
        columns: of the log.
        settings: see there.
        engine: that runs the tables.
        folder: to write to.
        home: where that folder will lie at last; pictures are referred to relative to it.
        say: is told what is done next.
        model: mines hard negatives; None = they are chosen by hash.

    Raises:
        DataError: the log cannot be used, or nothing is left of it.
    """
    say("reading the log")
    source = open_log(engine, log, columns)
    if settings.window != ALWAYS and "time" not in source.columns:
        raise DataError(
            f"--since and --until need a column with the time, and {log.path} has none (--columns=time=...)"
        )
    say("looking at every row")
    judged = purchases.judged(source.rows, listings.table(engine), settings.window, log.image_folder)
    with naming(log.path):
        rows = engine.stage(judged, "judged.parquet")
    report = _judged_report(rows)
    purchases.check_look(report["dropped"], report["rows"], settings.max_personal_share)
    if not report["usable"]:
        raise DataError(f"no row of {log.path} can be used: {said(report['dropped'])}")

    say("dividing queries and products")
    found = purchases.distinct(rows, settings.seed, engine)
    divided = engine.stage(sides.on_one_side(found, listings.test_share, settings.seed, engine), "divided.parquet")
    pure = divided.filter(~divided.leaks).drop("leaks")
    count = _count(found)
    report["dropped"] |= {LEFT[0]: report["usable"] - count, LEFT[1]: count - _count(pure)}

    say("drawing the sample")
    taken, report["industries"] = _quotas(pure, report.pop("purchases"), settings)
    drawn = engine.stage(sampling.sample(pure, taken, engine), "drawn.parquet")
    report["dropped"][LEFT[2]] = _count(pure) - _count(drawn)

    say("choosing hard negatives")
    bought = engine.stage(sides.keys(found, "product").distinct(), "bought.parquet")
    chosen = with_negatives(drawn, members(listings, engine), bought, settings.seed, engine)
    final = engine.stage(chosen.order_by("id"), "final.parquet")

    pictures = pathlib.Path(log.image_folder)
    if model is None:
        records = (row for batch in engine.batches("final.parquet") for row in batch.to_pylist())
    else:
        say("mining hard negatives")
        miner = Miner(model, listings, _bought(engine, bought), settings.miner_margin)
        records = miner.apply(_openable(engine, pictures))
        report["miner"] = miner.counts
    say("writing")
    depths = {name: collections.Counter() for name in SETS.values()}
    writer = Writer(listings.products, home, pictures)
    counts = writer.write(folder, _counted(records, depths), _count(final))
    in_both = {
        "queries": sides.overlap(final, log.image_folder),
        "products": len(writer.used[False] & writer.used[True]),
    }
    if any(in_both.values()):
        raise RuntimeError(f"training and test set share {in_both}: this must not happen; please report it")
    report |= {
        "columns": source.columns,
        "log": source.report,
        "catalogue": listings.report,
        "written": {SETS[test]: n for test, n in counts.items()}
        | {"listings": len(writer.used[False] | writer.used[True])},
        "hard_negatives_share": {name: dict(sorted(found.items())) for name, found in depths.items()},
        "in_both_sets": in_both,
    }
    return report


def _count(table: ir.Table) -> int:
    return int(table.count().to_pyarrow().as_py())


def _judged_report(rows: ir.Table) -> dict[str, Any]:
    """Returns how many rows there are, how many are dropped for what, and the purchases of every industry."""
    dropped = {r["dropped"]: r["n"] for r in _grouped(rows, "dropped")}
    usable = rows.filter(rows.dropped == "")
    unknown = rows.filter(rows.dropped == UNKNOWN_ITEM).select("item").distinct().order_by("item").limit(EXAMPLES)
    times = (
        usable.filter(usable.time >= 0).agg(first=usable.time.min(), last=usable.time.max()).to_pyarrow().to_pylist()
    )
    return {
        "rows": sum(dropped.values()),
        "usable": dropped.pop("", 0),
        "dropped": dict(sorted(dropped.items())),
        "unknown_items": unknown.item.to_pyarrow().to_pylist(),
        "seconds_since_1970": times[0],
        "purchases": {r["industry"]: r["n"] for r in _grouped(usable, "industry")},
    }


def _grouped(rows: ir.Table, *names: str) -> list[dict[str, Any]]:
    return rows.group_by(names).agg(n=rows.count()).to_pyarrow().to_pylist()


def _quotas(
    pure: ir.Table, bought: dict[str, int], settings: Settings
) -> tuple[dict[tuple[bool, str], int], dict[str, dict[str, int]]]:
    """Returns the rows to take of each (test, industry), and the same for the report."""
    there = {(r["test"], r["industry"]): r["n"] for r in _grouped(pure, "test", "industry")}
    taken: dict[tuple[bool, str], int] = {}
    for test, rows in ((False, settings.train_rows), (True, settings.test_rows)):
        available = {industry: n for (side, industry), n in there.items() if side == test}
        if not available:
            raise DataError(f"no purchase is left for the {SETS[test]} set: the log is too small for --test_share")
        rows = rows or sum(available.values())
        floor = settings.floor if rows < sum(available.values()) else 0
        taken |= {(test, name): n for name, n in sampling.quotas(bought, available, rows, floor).items()}
    shown = {
        name or "(none)": {"purchases": bought[name]}
        | {f"{SETS[test]}_possible": there.get((test, name), 0) for test in SETS}
        | {SETS[test]: taken.get((test, name), 0) for test in SETS}
        for name in sorted(bought, key=lambda name: (-bought[name], name))
    }
    return taken, shown


def _bought(engine: Engine, bought: ir.Table) -> dict[str, list[str]]:
    engine.stage(bought, "bought_by_key.parquet")
    found: dict[str, list[str]] = collections.defaultdict(list)
    for batch in engine.batches("bought_by_key.parquet"):
        for row in batch.to_pylist():
            found[row["key"]].append(row["product"])
    return found


def _openable(engine: Engine, pictures: pathlib.Path) -> Iterator[list[dict[str, Any]]]:
    """Yields the rows in batches, with their keys, pictures as paths from here."""
    for batch in engine.batches("final.parquet"):
        rows = batch.to_pylist()
        for row in rows:
            row["keys"] = row["text_key"], row["image_key"]
            if row["image"] and not lines.is_url(row["image"]):
                row["image"] = str(pictures / row["image"])
        yield rows


def _counted(rows: Iterator[dict[str, Any]], depths: dict[str, collections.Counter]) -> Iterator[dict[str, Any]]:
    for row in rows:
        has = row["negative"] is not None
        depths[SETS[row["test"]]][level(row["depth"]) if has else "without a hard negative"] += 1
        yield row


def said(dropped: dict[str, int]) -> str:
    """Returns reasons and counts as one line."""
    return ", ".join(f"{reason}: {count:,}" for reason, count in dropped.items()) or "it has no rows"
