"""Logs as they come: Parquet of every ordinary type, spellings of pictures, ids and times; and what is refused."""

import datetime
import decimal
import json
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_prepare import LINES, run, small

from moon_jax.data.benchmark import sides
from moon_jax.data.benchmark.engine import connect
from moon_jax.data.benchmark.functions import NO_TIME, reference, seconds
from moon_jax.data.benchmark.listings import Listings, listings
from moon_jax.data.records import DataError, Dataset, ImageRef, Product

N = 30
TEXTS = [f"thing number {n}" for n in range(N)]
IDS = [str(n) for n in range(N)]
DAY = datetime.datetime(2024, 3, 5, tzinfo=datetime.UTC)


def written(folder, **columns):
    """Makes a benchmark of a Parquet log with these columns; returns all records and the report."""
    given = small(folder, "query,item_id")
    given["log"].unlink()
    given["log"] = folder / "log.parquet"
    pq.write_table(pa.table(columns), given["log"])
    train, test, _, report = run(**given)
    assert report["rows"] == len(train) + len(test) + sum(report["dropped"].values())
    return train + test, report


@pytest.mark.parametrize(
    "columns",
    [
        {"query": TEXTS, "item_id": IDS},
        {"query_image": [f"{n}.jpg" for n in range(N)], "item_id": IDS},
        {"query": TEXTS, "item_id": IDS, "query_image": pa.nulls(N)},
        {"query": TEXTS, "item_id": IDS, "query_image": pa.nulls(N), "time": pa.nulls(N)},
        {"query": TEXTS, "item_id": [float(n) for n in range(N)]},
        {"query": TEXTS, "item_id": pa.array([decimal.Decimal(n) for n in range(N)], pa.decimal128(20, 0))},
        {"query": [text.encode() for text in TEXTS], "item_id": [n.encode() for n in IDS]},
        {"query": pa.array(TEXTS).dictionary_encode(), "item_id": pa.array(IDS, pa.large_string())},
    ],
)
def test_ordinary_columns_of_parquet(tmp_path, columns):
    records, report = written(tmp_path, **columns)
    assert len(records) == N
    for record in records:
        shown = record["query"].get("text", "").removeprefix("thing number ") or record["query"]["image"][3:-4]
        assert shown == record["positive"]["item_id"]
    assert report["seconds_since_1970"] == {"first": None, "last": None}


@pytest.mark.parametrize(
    "times",
    [
        [DAY.timestamp() + 0.5] * (N - 2) + [None, float("nan")],
        [DAY.timestamp() * 1000] * (N - 2) + [float("inf"), None],
        pa.array([int(DAY.timestamp()) * 10**9] * N),
        pa.array([DAY.replace(tzinfo=None)] * N, pa.timestamp("us")),
        pa.array([20240305] * N),
    ],
)
def test_times_of_parquet(tmp_path, times):
    records, report = written(tmp_path, query=TEXTS, item_id=IDS, time=times)
    assert len(records) == N
    assert report["seconds_since_1970"] == {"first": DAY.timestamp(), "last": DAY.timestamp()}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"query": TEXTS, "item_id": [n + 0.5 for n in range(N)]}, "numbers that are no ids"),
        ({"query": TEXTS, "item_id": [2.0**53] * N}, "numbers that are no ids"),
        ({"query": [[text] for text in TEXTS], "item_id": IDS}, r"'query' \(query_text\) holds array"),
        ({"query": [b"\xff\xfe"] * N, "item_id": IDS}, r"log\.parquet cannot be read"),
        ({"query": pa.array([b"\xff\xfe"] * N).view(pa.string()), "item_id": IDS}, r"log\.parquet cannot be read"),
    ],
)
def test_parquet_that_cannot_be_used_is_named(tmp_path, columns, message):
    with pytest.raises(DataError, match=message):
        written(tmp_path, **columns)


def test_files_of_one_log_may_lack_columns(tmp_path):
    given = small(tmp_path, "query,item_id")
    given["log"] = tmp_path / "log"
    given["log"].mkdir()
    whole = pa.table({"query": TEXTS[:20], "item_id": IDS[:20], "time": ["2024-03-05"] * 20})
    pq.write_table(whole, given["log"] / "a.parquet")
    pq.write_table(pa.table({"item_id": IDS[20:], "query": TEXTS[20:]}), given["log"] / "b.parquet")
    train, test, *_ = run(**given)
    assert {r["query"]["text"] for r in train + test} == set(TEXTS)
    pq.write_table(pa.table({"item_id": IDS, "buyer_phone": IDS}), given["log"] / "c.parquet")
    with pytest.raises(DataError, match="buyer_phone"):
        run(**given)


@pytest.mark.parametrize(
    ("spellings", "one"),
    [
        (("q/0.jpg", "./q/0.jpg", "q//0.jpg", "q/../q/0.jpg", "/shop/log/q/0.jpg", "//shop/log/q/0.jpg"), "q/0.jpg"),
        (("../p/0.jpg", "/shop/p/0.jpg", "../../shop/p/./0.jpg"), "../p/0.jpg"),
        (("HTTPS://CDN.example.com/A.jpg?x=B#top", "https://cdn.example.com/A.jpg?x=B"), "https://cdn.example.com/A.jpg?x=B"),
        (("https://[bad/1.jpg",), "https://[bad/1.jpg"),
        (("",), ""),
    ],
)  # fmt: skip
def test_one_picture_has_one_reference(spellings, one):
    assert {reference(text, "/shop/log") for text in spellings} == {one}


def test_a_picture_in_several_spellings_is_on_one_side(tmp_path):
    spellings = ("q/{}.jpg", "./q/{}.jpg", "q//{}.jpg", f"{tmp_path}/q/{{}}.jpg")
    rows = [f"{spelling.format(n % 3)},{n}" for n in range(N) for spelling in spellings]
    train, test, _, report = run(**small(tmp_path, "query_image,item_id", *rows), test_share=0.5)
    sides_of = [{record["query"]["image"] for record in records} for records in (train, test)]
    assert not sides_of[0] & sides_of[1]
    assert sides_of[0] | sides_of[1] == {f"../q/{n}.jpg" for n in range(3)}
    assert report["dropped"]["repeats of another row"] == 3 * N


def test_overlap_is_of_what_is_written(tmp_path):
    engine = connect("duckdb", tmp_path, 1.0)
    rows = pa.table(
        {
            "text": ["Mug", "mug ", "cup", ""],
            "image": ["q/0.jpg", "./q/0.jpg", "", "q/1.jpg"],
            "text_key": ["a", "b", "c", ""],
            "image_key": ["d", "e", "", "f"],
            "test": [True, False, False, True],
        }
    )
    assert sides.overlap(engine.put(rows, "rows.parquet"), "/log") == 2
    engine.close()


def test_ids_with_several_spaces_are_found(tmp_path):
    given = small(tmp_path, "query,item_id", *(f"thing {n},a   {n}" for n in range(N)))
    found = [json.loads(line) for line in given["catalogue"].read_text().splitlines()]
    given["catalogue"].write_text("".join(json.dumps(one | {"id": f"a   {one['id']}"}) + "\n" for one in found))
    train, test, *_ = run(**given)
    assert len(train) + len(test) == N
    assert {record["positive"]["item_id"] for record in train + test} == {f"a   {n}" for n in range(N)}
    same = {id_: Product(id_, f"title {id_}") for id_ in ("a b", "a  b")}
    with pytest.raises(DataError, match="'a b' and 'a  b'"):
        Listings(same, {id_: id_ for id_ in same}, 0.2, {}).table(connect("duckdb", tmp_path, 1.0))


def test_times_as_they_are_written():
    for text in (
        "20240305", "2024/03/05", "2024/3/5", "2024.03.05", "2024-3-5 0:00", "20240305000000", "2024/03/05 00:00",
        str(int(DAY.timestamp()) * 10**6), str(int(DAY.timestamp()) * 10**9), f"{int(DAY.timestamp())}.0",
    ):  # fmt: skip
        assert seconds(text) == DAY.timestamp(), text
    assert seconds("20240305101112") == DAY.timestamp() + 36672
    for text in ("20241305", "20240305250000", "2024/13/05", "05/03/2024", "1e9"):
        assert seconds(text) == NO_TIME, text


def test_a_named_column_is_used(tmp_path):
    lines = (f"{line},thing {n}" for n, line in enumerate(LINES))
    given = small(tmp_path, "user_query,item_id,order_time,user", *lines)
    with pytest.raises(DataError, match=r"personal data: 'user' \(a person\)\. "):
        run(**given)
    mapped = ["query_text=user", "time=order_time"]
    train, test, _, report = run(**given, columns=mapped)
    assert {record["query"]["text"] for record in train + test} == {f"thing {n}" for n in range(N)}
    assert report["columns"]["time"] == "order_time"


def test_nothing_personal_comes_from_the_catalogue():
    product = Product(
        "a", "mug", attributes=(("color", ("red",)), ("call 13800138000", ("yes",))),
        category=("Home", "Mugs", "of anna@example.com", "red"),
        images=tuple(map(ImageRef, (
            "https://x.com/a.jpg?access_token=1", "/anna@example.com/shop/b.jpg", "/c@example.com.jpg"
        ))),
    )  # fmt: skip
    found = listings(Dataset((), (), (), {"a": product}, "", {}), 0.2, home=pathlib.Path("/anna@example.com/bench"))
    kept = found.products["a"]
    assert kept.attributes == (("color", ("red",)),)
    assert kept.category == ("Home", "Mugs")
    assert [image.path for image in kept.images] == ["/anna@example.com/shop/b.jpg"]  # written as ../shop/b.jpg
    assert found.report == {
        "listings": 1, "repeated_listings": 0, "personal_attributes_removed": 1, "personal_categories_cut": 1,
        "personal_pictures_removed": 2,
    }  # fmt: skip


@pytest.mark.slow
def test_spark_reads_the_same_columns(tmp_path):
    given = small(tmp_path, "query,item_id")
    given["log"] = tmp_path / "log"
    given["log"].mkdir()
    times = [DAY.timestamp(), DAY.timestamp() * 1000, None, float("nan"), float("inf")] * 4
    queries = [text.encode() for text in TEXTS]
    one = {"query": queries[:20], "item_id": [float(n) for n in range(20)], "time": times, "image": pa.nulls(20)}
    other = {"query": queries[20:], "item_id": [float(n) for n in range(20, N - 1)] + [None]}
    pq.write_table(pa.table(one), given["log"] / "a.parquet")
    pq.write_table(pa.table(other), given["log"] / "b.parquet")
    ours, theirs = (run(**given, engine=engine) for engine in ("duckdb", "spark"))
    assert len(ours[0] + ours[1]) == N - 1
    assert ours[3]["dropped"]["no item"] == 1
    assert ours[3]["seconds_since_1970"] == {"first": DAY.timestamp(), "last": DAY.timestamp()}
    for report in (ours[3], theirs[3]):
        report["settings"].pop("engine")
    assert ours == theirs
    pq.write_table(pa.table(one | {"query": [b"\xff"] * 20}), given["log"] / "a.parquet")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        run(**given, engine="spark")
