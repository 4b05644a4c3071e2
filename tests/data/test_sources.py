import collections
import hashlib
import json
import shutil

import pytest

from moon_jax.config import DataConfig
from moon_jax.data import records, sources, split
from moon_jax.data.records import DataError, ImageRef, Product, Query


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def record(number, positive="a:1", negative="a:2", **changes):
    negative = negative and {"item_id": negative, "title": f"title {negative}", "images": [f"{negative}.jpg"]}
    return {
        "id": f"r{number}",
        "query": {"image": f"q{number}.jpg", "text": f"query {number}", "kind": "photo", "bbox": [1, 2, 30, 40]},
        "positive": {"item_id": positive, "title": f"title {positive}", "images": [f"{positive}.jpg"]},
        "negative": negative,
        "category": {"industry": "Apparel", "cate1": "Men", "cate2": "", "cate3": "", "cate4": ""},
        "attributes": {"color": "red", "size": ["S", 42, ""], "brand": None},
    } | changes


def read(folder, **settings):
    return sources.read(DataConfig(path=str(folder), **{"unseen_share": 0.0} | settings))


# ---- our own layout


def test_records_without_items_become_triplets(tmp_path):
    write(tmp_path / "a.train.jsonl", record(0))
    write(tmp_path / "a.test.jsonl", record(1, "a:2", None))
    dataset = read(tmp_path)
    (triplet,), (tested,) = dataset.train, dataset.seen
    assert triplet.id == "r0"
    assert triplet.part == "a"
    assert triplet.query == Query("query 0", ImageRef(f"{tmp_path}/q0.jpg", (1.0, 2.0, 30.0, 40.0)), "photo")
    assert triplet.positive == Product(
        id="a:1",
        title="title a:1",
        images=(ImageRef(f"{tmp_path}/a:1.jpg"),),
        category=("Apparel", "Men"),
        attributes=(("color", ("red",)), ("size", ("S", "42"))),
        part="a",
    )
    # a:2 is the negative here, without category; as the positive of the test record it has one.
    assert triplet.negative is tested.positive
    assert triplet.negative.category == ("Apparel", "Men")
    assert tested.negative is None
    assert dataset.unseen == ()
    assert dataset.numbers == {"a:1": 0, "a:2": 1}
    assert dataset.report["query_pictures_without_box"] == 0
    assert dataset.report["listing_pictures_without_box"] == 2


def test_items_win_over_records_and_fill_negatives(tmp_path):
    write(
        tmp_path / "items.jsonl",
        {"item_id": "a:1", "title": "One", "image": "one.jpg", "image_bbox": [0, 0, 9, 9], "category": {"cate1": "X"}},
        {
            "item_id": "a:2", "title": "Two", "description": "Both sides.",
            "image": "f.jpg", "image_bbox": [1, 1, 2, 2],
            "images": ["f.jpg", "b.jpg"], "image_bboxes": [[1, 1, 2, 2], None],
            "attributes": {"color": ["red", "blue"]},
        },
        {"item_id": "a:3", "title": "Never asked for", "images": ["x.jpg", "y.jpg"], "image_bbox": [1, 1, 2, 2]},
        {"item_id": "b:1", "title": "Of another part"},
        {"item_id": "lost", "title": "Of no part"},
        {"item_id": "told", "title": "Says its part", "dataset": "a"},
    )  # fmt: skip
    write(tmp_path / "a.train.jsonl", record(0))
    write(tmp_path / "b.train.jsonl", record(0, "b:1", "b:2"))
    dataset = read(tmp_path)
    one, two = dataset.train[0].positive, dataset.train[0].negative
    assert (one.title, one.images) == ("One", (ImageRef(f"{tmp_path}/one.jpg", (0.0, 0.0, 9.0, 9.0)),))
    assert one.category == ("X",)
    assert one.attributes == (("color", ("red",)), ("size", ("S", "42")))  # items.jsonl has none: from the record
    assert two.description == "Both sides."
    assert [i.box for i in two.images] == [(1.0, 1.0, 2.0, 2.0), None]
    assert two.attributes == (("color", ("red", "blue")),)
    assert [i.box for i in dataset.products["a:3"].images] == [(1.0, 1.0, 2.0, 2.0), None]
    assert [p.id for p in records.gallery(dataset, "a")] == ["a:1", "a:2", "a:3", "told"]
    assert [p.id for p in records.gallery(dataset, "b")] == ["b:1", "b:2"]
    assert dataset.report["listings_of_no_part"] == 1
    assert dataset.report["products_not_in_items"] == 1  # b:2
    assert dataset.report["mentions_that_differ_from_listing"] == 3
    only = read(tmp_path, parts=("b",))
    assert set(only.products) == {"b:1", "b:2"}
    with pytest.raises(DataError, match="no listing belongs to the part 'a'; there are: b"):
        records.gallery(only, "a")


def test_products_without_item_id_are_told_apart_by_title_and_picture(tmp_path):
    def listing(title, image):
        return {"title": title, "images": [image]}

    write(
        tmp_path / "train.jsonl",
        record(0, positive=None) | {"positive": listing("Red  Coat", "1.jpg"), "negative": listing("Blue", "2.jpg")},
        record(1) | {"positive": listing("red coat ", "1.jpg"), "negative": listing("Red coat", "3.jpg")},
    )
    dataset = read(tmp_path)
    first, second = dataset.train
    assert first.positive is second.positive
    assert first.positive.id == hashlib.sha256(b"red coat\x001.jpg").hexdigest()[:32]
    assert len(dataset.products) == 3
    assert {t.part for t in dataset.train} == {tmp_path.name}


def test_part_of_plain_files(tmp_path):
    write(tmp_path / "shop" / "train.jsonl", record(0))
    write(tmp_path / "shop" / "test.jsonl", record(1))
    assert read(tmp_path / "shop").train[0].part == "shop"
    assert read(tmp_path / "shop", parts=("mine",)).train[0].part == "mine"
    drawn = read(tmp_path / "shop", format="catalogue")
    assert [p.part for p in records.gallery(drawn, "catalogue")] == ["catalogue", "catalogue"]
    one_file = read(tmp_path / "shop" / "test.jsonl")
    assert (one_file.train, len(one_file.seen)) == ((), 1)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match="'nowhere' does not exist"):
        read("nowhere")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match=r"no train or test file.*notes\.txt"):
        read(tmp_path)
    write(tmp_path / "a.train.jsonl", record(0))
    write(tmp_path / "b.test.jsonl", record(0))
    with pytest.raises(DataError, match="has no part c; it has a, b"):
        read(tmp_path, parts=("a", "c"))
    with pytest.raises(DataError, match="must be one of jsonl, mbe, catalogue, m5product"):
        read(tmp_path, format="parquet")


def test_records_without_a_positive_are_counted(tmp_path):
    write(tmp_path / "a.train.jsonl", record(0), record(1) | {"positive": None, "negative": None})
    dataset = read(tmp_path)
    assert len(dataset.train) == 1
    assert dataset.report["no_positive"] == 1
    assert dataset.report["records"] == 2
    write(tmp_path / "a.train.jsonl", record(1) | {"positive": None})
    with pytest.raises(DataError, match="no record is a query with a product"):
        read(tmp_path)


def query(**changes):
    return {"query": record(9)["query"] | changes}


BAD = {
    "json": ("{", r"line: not JSON"),
    "twice": ('{"id": "a", "id": "b"}', r"line: not JSON \(named twice: id\)"),
    "utf8": (b'{"id": "\xff"}', r"line: not UTF-8 at byte 8 \(0xff\)"),
    "list": ("[1]", r"line: a record is a JSON object, this is \[1\]"),
    "no_query": ({"query": None}, "query: has neither a text nor an image"),
    "empty_query": (query(image="", text="  "), "query: has neither a text nor an image"),
    "text_type": (query(text=7), r"query\.text: must be a text, is 7"),
    "image_type": (query(image=["a.jpg"]), r"query\.image: must be a text"),
    "nan_box": (query(bbox=[0, 0, float("nan"), 5]), r"query\.image box: must be null or four finite numbers"),
    "inverted_box": (query(bbox=[9, 0, 5, 5]), r"query\.image box: must have x1 < x2"),
    "flat_box": (query(bbox=[0, 3, 5, 3]), r"query\.image box: must have x1 < x2"),
    "short_box": (query(bbox=[1, 2, 3]), "four finite numbers"),
    "box_of_booleans": (query(bbox=[False, 0, True, 5]), "four finite numbers"),
    "huge_box": (query(bbox=[0, 0, 10**400, 5]), "four finite numbers"),
    "empty_positive": ({"positive": {"item_id": "a:1"}}, "positive: has neither a title nor an image"),
    "positive_type": ({"positive": "a:1"}, "positive: must be an object"),
    "same": ({"negative": record(9)["positive"]}, "negative: is the positive itself"),
    "category": ({"category": {"cate1": 3}}, r"category\.cate1: must be a text"),
    "attributes": ({"attributes": ["color"]}, "attributes: must be an object"),
    "attribute": ({"attributes": {"color": {"a": 1}}}, r"attributes\.color: must be a text"),
    "boxes": ({"positive": {"images": ["a", "b"], "image_bboxes": [None]}}, "one box or null for each of the 2 images"),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_bad_records_are_named_or_skipped(tmp_path, change, message):
    file = tmp_path / "a.train.jsonl"
    line = json.dumps(record(9) | change) if isinstance(change, dict) else change
    line = line if isinstance(line, bytes) else line.encode()
    good = json.dumps(record(0)).encode()
    file.write_bytes(good + b"\n\n" + line + b"\n" + good)
    with pytest.raises(DataError, match=rf"a\.train\.jsonl:3: .*{message}"):
        read(tmp_path)
    dataset = read(tmp_path, on_error="skip", max_skipped_share=0.5)
    assert len(dataset.train) == 2
    assert dataset.report["skipped"] == sum(dataset.report["skipped_reasons"].values()) == 1
    assert "a.train.jsonl:3: " in dataset.report["skipped_examples"][0]
    with pytest.raises(DataError, match=r"1 of 3 records cannot be used.*max_skipped_share = 0\.3"):
        read(tmp_path, on_error="skip", max_skipped_share=0.3)


def test_bad_listings(tmp_path):
    write(tmp_path / "a.train.jsonl", record(0))
    write(tmp_path / "items.jsonl", {"item_id": "a:1", "title": "x"}, {"item_id": "a:1", "title": "y"})
    with pytest.raises(DataError, match=r"items\.jsonl:2: item_id: 'a:1' is listed twice"):
        read(tmp_path)
    write(tmp_path / "items.jsonl", {"title": "x"})
    with pytest.raises(DataError, match=r"items\.jsonl:1: item_id: a listing needs one"):
        read(tmp_path)


def test_unusual_but_valid_text(tmp_path):
    changed = record(0) | query(text="\ud800 \u202bקפה\u202c \0 \u2028 end", image="/abs/q.jpg")
    (tmp_path / "train.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(changed).encode() + b"\r\n \r\n")
    (triplet,) = read(tmp_path).train
    assert triplet.query.text == "\ufffd \u202bקפה\u202c \0 \u2028 end"
    assert triplet.query.image.path == "/abs/q.jpg"


# ---- the split


def test_unseen_products_are_never_trained_on(tmp_path):
    write(
        tmp_path / "a.train.jsonl",
        *[record(i, f"a:{i % 50}", f"a:{(i * 7 + 1) % 50}") for i in range(300) if i % 50 != 8],
    )
    write(tmp_path / "a.test.jsonl", *[record(1000 + i, f"a:{i}") for i in range(3, 50)])
    dataset = read(tmp_path, unseen_share=0.3)
    unseen = {p for p in dataset.products if int(hashlib.sha256(p.encode()).hexdigest()[:16], 16) / 2**64 < 0.3}
    assert 0 < len(unseen) < 30
    assert dataset.report["unseen_products"] == len(unseen)
    trained = {p.id for t in dataset.train for p in (t.positive, t.negative)}
    assert not trained & unseen
    assert {t.positive.id for t in dataset.unseen} <= unseen
    assert not {t.positive.id for t in dataset.seen} & unseen
    assert len(dataset.train) + len(dataset.seen) + len(dataset.unseen) == 294 + 47
    assert {t.id for t in dataset.seen} <= {f"r{1000 + i}" for i in range(50)}
    assert any(int(t.id[1:]) < 1000 for t in dataset.unseen)
    assert any(int(t.id[1:]) >= 1000 for t in dataset.unseen)
    before = {f"r{i}": f"a:{(i * 7 + 1) % 50}" for i in range(300)}
    assert dataset.report["replaced_negatives"] == sum(before[t.id] in unseen for t in dataset.train)
    assert all(before[t.id] == t.negative.id for t in dataset.train if before[t.id] not in unseen)
    assert all(t.positive.id != t.negative.id for t in dataset.train)
    assert read(tmp_path, unseen_share=0.3) == dataset


def test_tokenizer_texts_hold_nothing_of_unseen_products(tmp_path):
    write(tmp_path / "a.train.jsonl", *[record(i, f"a:{i}", f"a:{(i + 1) % 20}") for i in range(20)])
    dataset = read(tmp_path, unseen_share=0.5)
    texts = list(records.training_texts(dataset))
    used = {p.id for t in dataset.train for p in (t.positive, t.negative)}
    assert sorted(t for t in texts if t.startswith("title")) == sorted(f"title {p}" for p in used)
    assert [t for t in texts if t.startswith("query")] == [t.query.text for t in dataset.train]
    assert {"Apparel", "Men", "color: red", "size: S, 42"} <= set(texts)
    assert not used & {p for p in dataset.products if split.is_unseen(p, 0.5)}


def by_hash(unseen):
    """Returns an unused id that the hash puts on the wanted side of a split in halves."""
    number = 0
    while True:
        number += 1
        name = f"p{number}"
        if split.is_unseen(name, 0.5) == unseen:
            yield name


def test_replacement_shares_the_deepest_category(tmp_path):
    seen, (hidden,) = by_hash(False), [next(by_hash(True))]
    one, sibling, cousin, stranger = (next(seen) for _ in range(4))
    paths = {
        one: ("G", "Fruit", "Apple"), sibling: ("G", "Fruit", "Apple"), cousin: ("G", "Fruit", "Pear"),
        stranger: ("G", "Milk", "Oat"), hidden: ("G", "Fruit", "Apple"),
    }  # fmt: skip

    def items(*ids):
        return [
            {"item_id": i, "title": i, "category": dict(zip(("industry", "cate1", "cate2"), paths[i], strict=True))}
            for i in ids
        ]

    write(tmp_path / "train.jsonl", record(0, one, hidden))
    for there, expected in [
        ((one, sibling, cousin, stranger, hidden), sibling),
        ((one, cousin, stranger, hidden), cousin),
        ((one, stranger, hidden), stranger),
    ]:
        write(tmp_path / "items.jsonl", *items(*there))
        dataset = read(tmp_path, unseen_share=0.5)
        assert dataset.train[0].negative.id == expected
        assert dataset.report["replaced_negatives"] == 1
    write(tmp_path / "items.jsonl", *items(one, hidden))
    dataset = read(tmp_path, unseen_share=0.5)
    assert dataset.train[0].negative is None
    assert dataset.report["dropped_negatives"] == 1


def test_fingerprint_follows_the_bytes_and_the_split(tmp_path):
    write(tmp_path / "one" / "a.train.jsonl", record(0))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    one = read(tmp_path / "one").fingerprint
    assert one == read(tmp_path / "two").fingerprint
    assert one != read(tmp_path / "one", unseen_share=0.1).fingerprint
    file = tmp_path / "two" / "a.train.jsonl"
    file.write_text(file.read_text().replace("query 0", "query 1"))  # as long as before
    assert one != read(tmp_path / "two").fingerprint
    assert len(one) == 64


# ---- real data, counted again by a few lines of json


def rows_of(folder, *parts, ending="jsonl"):
    for part in parts:
        for kind in ("train", "test"):
            for line in (folder / f"{part}.{kind}.{ending}").read_text(encoding="utf-8").splitlines():
                yield kind, json.loads(line)


def test_real_data(moon_data):
    dataset = read(moon_data, unseen_share=0.2)
    items = [json.loads(line) for line in (moon_data / "items.jsonl").read_text(encoding="utf-8").splitlines()]
    listed = collections.Counter(item["item_id"].split(":")[0] for item in items)
    assert {part: len(records.gallery(dataset, part)) for part in listed} == listed
    unseen = {i["item_id"] for i in items if int(hashlib.sha256(i["item_id"].encode()).hexdigest(), 16) < 2**256 // 5}
    counts = collections.Counter()
    for kind, row in rows_of(moon_data, "grocery", "luma"):
        hidden = row["positive"]["item_id"] in unseen
        counts["unseen" if hidden else kind] += 1
        counts["replaced_negatives"] += kind == "train" and not hidden and row["negative"]["item_id"] in unseen
        counts["query_pictures_without_box"] += row["query"]["bbox"] is None
    assert len(dataset.train) == counts["train"]
    assert len(dataset.seen) == counts["test"]
    assert len(dataset.unseen) == counts["unseen"]
    assert {name: dataset.report[name] for name in ("replaced_negatives", "query_pictures_without_box")} == {
        name: counts[name] for name in ("replaced_negatives", "query_pictures_without_box")
    }
    assert dataset.report["no_positive"] == sum(1 for _ in rows_of(moon_data, "clothing"))
    assert dataset.report.get("mentions_that_differ_from_listing", 0) == 0
    by_id = {item["item_id"]: item for item in items}
    for triplet in (*dataset.train, *dataset.seen, *dataset.unseen):
        for product in (triplet.positive, triplet.negative):
            item = by_id[product.id]
            assert product.title == item["title"].strip()
            assert product.images[0].path == str(moon_data / item["image"])
            assert list(product.images[0].box) == item["image_bbox"]
            assert list(product.category) == [level for level in item["category"].values() if level]
            assert {k: list(v) for k, v in product.attributes} == {
                k: v if isinstance(v, list) else [v] for k, v in item["attributes"].items()
            }
    assert {t.part for t in read(moon_data, parts=("luma",)).train} == {"luma"}
