"""`python -m moon_jax.prepare` from catalogue and log to files, against what plain Python says of the same log."""

import collections
import json
import os
import pathlib
import random
import subprocess
import sys
import unicodedata

import pytest
import synthetic_log

from moon_jax import prepare
from moon_jax.config import ConfigError, DataConfig
from moon_jax.data import sources
from moon_jax.data.records import DataError
from moon_jax.data.split import is_unseen

PRODUCTS, ROWS = 300, 3000


def run(**given):
    """Runs with these flags; returns the records of training, of the test set, the listings by id, and the report."""
    output = pathlib.Path(given["output"])
    prepare.FLAGS.parse(**given)
    prepare.run()
    train, test, items = (
        [json.loads(line) for line in (output / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "test", "items")
    )
    return train, test, {item["item_id"]: item for item in items}, json.loads((output / "report.json").read_text())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with the catalogue and the log, what they hold, and the whole benchmark that was made of them."""
    folder = tmp_path_factory.mktemp("prepare")
    listings = synthetic_log.catalogue(PRODUCTS)
    rows = synthetic_log.purchases(listings, ROWS)
    synthetic_log.write_catalogue(folder / "shop.jsonl", listings)
    synthetic_log.write_log(folder / "log.parquet", rows)
    found = run(catalogue=folder / "shop.jsonl", log=folder / "log.parquet", output=folder / "bench")
    return folder, listings, rows, found


def plain(text):
    """The same query in another spelling is the same text here."""
    text = "".join(" " if unicodedata.category(c) == "Cc" else c for c in text)
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def canonical(listings):
    """Listing -> the first one with the same title and picture."""
    first, of = {}, {}
    for listing in sorted(listings, key=lambda one: one["id"]):
        of[listing["id"]] = first.setdefault((plain(listing["title"]), listing["image"]), listing["id"])
    return of


def bought_for(listings, rows):
    """(query text or picture) -> products."""
    of, found = canonical(listings), collections.defaultdict(set)
    for row in rows:
        if row["item_id"] in of:
            for key in (plain(row["query"]), row["query_image"]):
                found[key].add(of[row["item_id"]])
    return found


def picture(record, folder):
    """The picture of a query as the log names it."""
    path = record["query"].get("image")
    return path and os.path.relpath((folder / "bench" / path).resolve(), folder)


def test_every_row_is_accounted_for(made):
    _, listings, rows, (train, test, _, report) = made
    known = {listing["id"] for listing in listings}
    assert report["rows"] == len(rows)
    dropped = report["dropped"]
    assert sum(dropped.values()) + len(train) + len(test) == len(rows)
    no_query = [row for row in rows if not plain(row["query"]) and not row["query_image"]]
    personal = [row for row in rows if "138 0013 8000" in row["query"] and row not in no_query]
    unknown = [row for row in rows if row["item_id"] not in known and row not in no_query and row not in personal]
    assert dropped["no query"] == len(no_query) > 0
    assert dropped["personal: phone number in the query text"] == len(personal) > 0
    assert dropped["item not in the catalogue"] == len(unknown) > 0
    assert report["unknown_items"] == sorted({row["item_id"] for row in unknown})[:5]
    assert report["catalogue"]["repeated_listings"] == sum(one["id"].startswith("twin") for one in listings) > 0
    of = canonical(listings)
    usable = [r for r in rows if r not in no_query and r not in personal and r not in unknown]
    distinct = {(plain(r["query"]), r["query_image"], of[r["item_id"]]) for r in usable}
    assert dropped["repeats of another row"] == len(usable) - len(distinct) > 0
    assert dropped["not in the sample"] == 0


def test_records_are_purchases_and_both_sets_share_nothing(made):
    folder, listings, rows, (train, test, items, report) = made
    of, there = canonical(listings), set()
    there = {(plain(r["query"]), r["query_image"] or None, of.get(r["item_id"])) for r in rows}
    seen = []
    for records in (train, test):
        products = {r[role]["item_id"] for r in records for role in ("positive", "negative") if r[role]}
        queries = {plain(r["query"].get("text", "")) for r in records} | {picture(r, folder) for r in records}
        seen.append(products | (queries - {"", None}))
        for record in records:
            key = (plain(record["query"].get("text", "")), picture(record, folder), record["positive"]["item_id"])
            assert key in there
    assert not seen[0] & seen[1]
    assert len(test) > 100
    assert len(train) > 600
    assert report["in_both_sets"] == {"queries": 0, "products": 0}
    assert len({r["id"] for r in train + test}) == len(train) + len(test)
    assert items.keys() == {p for p in seen[0] | seen[1] if p in of}
    # A query is given to one side only where it must be: leaks are purchases of products on the other side.
    crossing = {
        key
        for key, products in bought_for(listings, rows).items()
        if key and len({is_unseen(product, 0.2) for product in products}) == 2
    }
    lost = report["dropped"]["query of the other set"]
    touched = [r for r in rows if plain(r["query"]) in crossing or r["query_image"] in crossing]
    assert 0 < lost < len(touched)


def test_hard_negatives_share_the_deepest_category_there_is(made):
    folder, listings, rows, (train, test, _, report) = made
    of, bought = canonical(listings), bought_for(listings, rows)
    category = {of[one["id"]]: one["category"] for one in listings}
    counts = {"train": collections.Counter(), "test": collections.Counter()}
    first_choices, contested = 0, []
    for name, records in (("train", train), ("test", test)):
        side = [product for product in category if is_unseen(product, 0.2) == (name == "test")]
        for record in records:
            own, negative = record["positive"]["item_id"], record["negative"]
            asked = (plain(record["query"].get("text", "")), picture(record, folder))
            answers = set().union(*(bought[key] for key in asked if key))
            depths = {
                other: sum(category[own][: d + 1] == category[other][: d + 1] for d in range(len(category[own])))
                for other in side
                if other != own
            }
            deepest = max(depths.values(), default=0)
            best = max((depth for other, depth in depths.items() if other not in answers), default=0)
            shared = depths[negative["item_id"]] if negative else 0
            assert shared <= best <= deepest
            assert bool(negative) == bool(best)
            if answers == {own}:
                assert shared == deepest
            elif any(depth == deepest for other, depth in depths.items() if other in answers):
                contested.append(shared == best)
            assert not negative or negative["item_id"] not in answers
            first_choices += shared == deepest > 0
            counts[name][negative["shares"] if negative else "without a hard negative"] += 1
            if negative:  # the chosen one may share more than the level that it was chosen by
                assert ("industry", "cate1", "cate2").index(negative["shares"]) + 1 <= shared
    assert sum(contested) > 0.97 * len(contested) > 50
    assert first_choices > 0.8 * (len(train) + len(test))
    assert report["hard_negatives_share"] == {name: dict(sorted(found.items())) for name, found in counts.items()}
    chosen = collections.Counter(r["negative"]["item_id"] for r in train if r["negative"])
    assert len(chosen) > 0.5 * sum(not is_unseen(p, 0.2) for p in category)  # not always the same few


def test_training_reads_it_at_once(made):
    folder, listings, _, (train, test, items, _) = made
    found = sources.read(DataConfig(path=str(folder / "bench"), format="jsonl"))
    assert len(found.train) == len(train)
    assert not found.seen
    assert len(found.unseen) == len(test)
    assert found.report["replaced_negatives"] == found.report["dropped_negatives"] == 0
    assert found.products.keys() == items.keys()
    by_id = {one["id"]: one for one in listings}
    for product in found.products.values():
        assert product.title == by_id[product.id]["title"]
        assert list(product.category) == by_id[product.id]["category"]
        assert product.attributes == (("brand", (by_id[product.id]["brand"],)),)
        assert pathlib.Path(os.path.normpath(product.images[0].path)) == folder / by_id[product.id]["image"]
    pictures = [t.query.image.path for t in found.train if t.query.image]
    assert {pathlib.Path(os.path.normpath(path)).parent for path in pictures} == {folder / "queries"}


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_neither_the_order_of_rows_nor_the_format_of_the_log_matters(made, tmp_path, ending):
    folder, _, rows, _ = made
    rows = rows.copy()
    random.Random(7).shuffle(rows)
    log = synthetic_log.write_log(folder / f"shuffled{ending}", rows)
    run(catalogue=folder / "shop.jsonl", log=log, output=folder / f"again{ending}")
    for name in ("train.jsonl", "test.jsonl", "items.jsonl"):
        assert (folder / f"again{ending}" / name).read_bytes() == (folder / "bench" / name).read_bytes()


def test_a_sample_keeps_the_shares_of_industries_and_a_floor(made):
    folder, _, _, (whole, _, _, report) = made
    train, test, _, drawn = run(
        catalogue=folder / "shop.jsonl", log=folder / "log.parquet", output=folder / "sample", train_rows=400,
        test_rows=60, floor=12,
    )  # fmt: skip
    assert (len(train), len(test)) == (400, 60)
    for industry, found in drawn["industries"].items():
        possible, taken = (
            sorted(r["id"] for r in rs if r["category"]["industry"] == industry) for rs in (whole, train)
        )
        assert taken == possible[: found["train"]]  # ids are digests: a draw by lot
    bought = {name: found["purchases"] for name, found in report["industries"].items()}
    rare = collections.Counter(r["category"]["industry"] for r in train)["Auctions"]
    assert rare == min(12, report["industries"]["Auctions"]["train_possible"])
    assert bought["Auctions"] / sum(bought.values()) * 400 < rare
    others = [name for name in bought if name != "Auctions"]
    for name in others:
        share = bought[name] / sum(bought[other] for other in others)
        assert abs(drawn["industries"][name]["train"] - share * (400 - rare)) < 1
    assert drawn["dropped"]["not in the sample"] > 0
    other = run(
        catalogue=folder / "shop.jsonl", log=folder / "log.parquet", output=folder / "other", train_rows=400,
        test_rows=60, floor=12, seed=1,
    )[0]  # fmt: skip
    assert {r["positive"]["item_id"] + str(r["query"]) for r in other} != {
        r["positive"]["item_id"] + str(r["query"]) for r in train
    }


def small(folder, header, *rows, listings=30):
    """Writes a small catalogue and a CSV log; returns the flags."""
    catalogue = [
        {"id": str(n), "title": f"thing {n}", "category": ["A", f"B{n % 2}"], "image": f"{n}.jpg"}
        for n in range(listings)
    ]
    synthetic_log.write_catalogue(folder / "shop.jsonl", catalogue)
    (folder / "log.csv").write_text("\n".join((header, *rows)) + "\n", encoding="utf-8")
    return {"catalogue": folder / "shop.jsonl", "log": folder / "log.csv", "output": folder / "bench"}


LINES = tuple(f"thing number {n},{n},2024-03-0{n % 9 + 1}T12:00:00Z" for n in range(30))


def test_personal_columns_are_refused_unless_they_are_ignored(tmp_path):
    given = small(
        tmp_path, "query,item_id,time,user_id,buyerPhone", *(f"{line},u{n},1" for n, line in enumerate(LINES))
    )
    with pytest.raises(DataError, match=r"'user_id' \(a person\), 'buyerPhone'"):
        run(**given)
    assert not given["output"].exists()
    *_, report = run(**given, ignore_columns=["user_id", "buyerPhone"])
    assert report["log"]["columns_not_read"] == ["user_id", "buyerPhone"]
    written = "".join(path.read_text() for path in given["output"].glob("*.jsonl"))
    assert "u7" not in written


def test_a_column_of_personal_values_is_refused_without_showing_them(tmp_path):
    given = small(tmp_path, "query,item_id", *(f"1380013{8000 + n},{n}" for n in range(30)))
    with pytest.raises(DataError, match="phone number in the query text: 30 rows") as caught:
        run(**given)
    assert "138001" not in str(caught.value)


def test_the_window_of_time_has_both_ends(tmp_path):
    given = small(tmp_path, "query,item_id,time", *LINES, "one more,3,soon")
    train, test, _, report = run(**given, since="2024-03-02", until="2024-03-04T12:00:00Z", test_share=0.5)
    assert len(train) + len(test) == 8  # n % 9 is 1 or 2 (n = 1, 10, 19, 28 and 2, 11, 20, 29)
    assert report["dropped"]["before --since"] == 4
    assert report["dropped"]["after --until"] == 18
    assert report["dropped"]["time cannot be read"] == 1
    assert report["seconds_since_1970"] == {"first": 1709380800, "last": 1709467200}  # 2 and 3 March 2024, noon
    with pytest.raises(ConfigError, match="not a day or time"):
        run(**given, since="yesterday")


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        ("query,thing", LINES, "there are 'query', 'thing'"),
        ("query,item_id,time", ("a,b",), r"log\.csv:2: line: has 2 cells"),
        ("query,item_id,time", ("a,gone,2024-01-01",), "no row of .* can be used: item not in the catalogue: 1"),
        ("query,item_id,time", (), "no row of .* can be used: it has no rows"),
    ],
)
def test_a_log_that_cannot_be_used_is_named(tmp_path, header, rows, message):
    given = small(tmp_path, header, *rows)
    with pytest.raises(DataError, match=message):
        run(**given)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.csv", "shop.jsonl"]  # nothing is left behind


def test_other_names_of_columns(tmp_path):
    given = small(tmp_path, "Suche,item_id,Artikel", *(f"thing number {n},x,{n}" for n in range(30)))
    train, test, *_ = run(**given, columns=["query_text=Suche", "item_id=Artikel"])
    assert len(train) + len(test) == 30
    with pytest.raises(DataError, match="there is no column Sache; there are 'Suche'"):
        run(**given, columns=["query_text=Sache", "item_id=Artikel"])


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    given = small(tmp_path, "query,item_id,time", *LINES)
    run(**given)
    run(**given)
    given["output"].joinpath("report.json").unlink()
    with pytest.raises(ConfigError, match="holds something that is not"):
        run(**given)


def test_the_command(tmp_path):
    given = small(tmp_path, "query,item_id,time,email", *(f"{line},a@b.com" for line in LINES))
    command = [sys.executable, "-m", "moon_jax.prepare", *(f"--{name}={value}" for name, value in given.items())]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert refused.returncode
    assert "DataError" in refused.stderr
    assert "Traceback" not in refused.stderr
    done = subprocess.run([*command, "--ignore_columns=email"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "in both sets: 0 queries, 0 products" in done.stdout


@pytest.mark.slow
def test_spark_gives_the_same_rows(tmp_path):
    listings = synthetic_log.catalogue(800)
    rows = synthetic_log.purchases(listings, 10_000)
    synthetic_log.write_catalogue(tmp_path / "shop.jsonl", listings)
    settings = {"catalogue": tmp_path / "shop.jsonl", "train_rows": 3000, "test_rows": 300, "floor": 20}
    for ending in (".parquet", ".csv"):
        log = synthetic_log.write_log(tmp_path / f"log{ending}", rows)
        ours = run(**settings, log=log, output=tmp_path / f"duckdb{ending}")
        theirs = run(**settings, log=log, output=tmp_path / f"spark{ending}", engine="spark")
        assert len(ours[0]) == 3000
        for name in ("train.jsonl", "test.jsonl", "items.jsonl"):
            one, other = (tmp_path / f"{engine}{ending}" / name for engine in ("duckdb", "spark"))
            assert one.read_bytes() == other.read_bytes()
        for report in (ours[3], theirs[3]):
            report["settings"].pop("engine")
        assert ours[3] == theirs[3]
