import json

import pytest

from moon_jax.config import DataConfig
from moon_jax.data import records, sources
from moon_jax.data.records import DataError, ImageRef, Query
from moon_jax.data.sources import mbe


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read(folder, **settings):
    return sources.read(DataConfig(path=str(folder), **{"unseen_share": 0.0, "format": "mbe"} | settings))


def mbe_row(number, title="Coat", **changes):
    return {
        "id": f"{number:032x}",
        "query_title": f"query {number}",
        "query_image": f"q{number}.jpg",
        "query bbox": [0, 0, 10, 20],
        "doc_title": title,
        "doc_image": f"{title}.jpg",
        "doc_industry_name": "Apparel",
        **{f"doc_cate{i}_name": f"level {i}" for i in (1, 2, 3)},
        "doc_cate4_name": "",
        "doc_attributes": "color:red!!!blue,,size:12:30,,broken,,",
        "neg_title": "Hat",
        "neg_image": "Hat.jpg",
    } | changes


def test_mbe_rows(tmp_path):
    hat = mbe_row(1, "Hat", neg_title="", neg_image=None) | {"query bbox": None, "doc_attributes": None}
    write(tmp_path / "shop.train.mbe.jsonl", mbe_row(0), hat)
    write(tmp_path / "shop.train.jsonl", {"not": "MBE"})
    dataset = read(tmp_path)
    coat, hat = dataset.train
    assert coat.id == "0" * 32
    assert coat.part == "shop"
    assert coat.query == Query("query 0", ImageRef(f"{tmp_path}/q0.jpg", (0.0, 0.0, 10.0, 20.0)))
    assert coat.positive.id == records.identity("Coat", "Coat.jpg")
    assert coat.positive.category == ("Apparel", "level 1", "level 2", "level 3")
    assert coat.positive.attributes == (("color", ("red", "blue")), ("size", ("12:30",)))
    assert coat.negative is hat.positive  # joined by title and picture
    assert coat.negative.category == ("Apparel", "level 1", "level 2", "level 3")
    assert hat.negative is None
    assert hat.query.image.box is None
    assert dataset.report["malformed_attributes"] == 1
    assert dataset.report["query_pictures_without_box"] == 1


def test_mbe_keys_that_do_not_fit_are_listed(tmp_path):
    row = mbe_row(0)
    row["photo"] = row.pop("query_image")
    del row["query bbox"]
    write(tmp_path / "train.jsonl", row)
    with pytest.raises(DataError, match=r"query_image \(looked for 'query_image', 'query_pic'.*query_box.*'photo'"):
        read(tmp_path)
    keys = (("query_image", "photo"), ("query_box", ""))
    (triplet,) = read(tmp_path, mbe_keys=keys).train
    assert triplet.query.image == ImageRef(f"{tmp_path}/q0.jpg")
    with pytest.raises(DataError, match=r"query_image \(looked for 'foto'\)"):
        read(tmp_path, mbe_keys=(("query_image", "foto"), ("query_box", "")))
    with pytest.raises(DataError, match="no role picture; the roles are query_text, query_image"):
        read(tmp_path, mbe_keys=(("picture", "photo"),))


def test_mbe_underscore_box_and_item_ids(tmp_path):
    rows = [
        mbe_row(i, title) | {"query_bbox": [1, 1, 2, 2], "item_id": "coat"}
        for i, title in enumerate(["Coat", "Big coat"])
    ]
    for row in rows:
        del row["query bbox"]
    write(tmp_path / "test.jsonl", *rows)
    dataset = read(tmp_path)
    assert [t.query.image.box for t in dataset.seen] == [(1.0, 1.0, 2.0, 2.0)] * 2
    assert [t.positive.id for t in dataset.seen] == ["coat", "coat"]
    assert dataset.products["coat"].title == "Coat"


def test_mbe_bad_rows_are_named(tmp_path):
    write(
        tmp_path / "train.jsonl", mbe_row(0), mbe_row(1, query_title="", query_image=""), mbe_row(2, "", doc_image="")
    )
    with pytest.raises(DataError, match=r"train\.jsonl:2: query: has neither"):
        read(tmp_path)
    dataset = read(tmp_path, on_error="skip", max_skipped_share=0.7)
    assert dataset.report["skipped_reasons"] == {"query": 1, "positive": 1}
    write(tmp_path / "train.jsonl", mbe_row(0, "Hat"))
    with pytest.raises(DataError, match=r"train\.jsonl:1: negative: is the positive itself"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("said", "pairs", "malformed"),
    [
        ("", (), 0),
        ("a:1", (("a", ("1",)),), 0),
        ("a:1!!!2!!!,,b:x:y", (("a", ("1", "2")), ("b", ("x:y",))), 0),
        ("a:1,,a:2!!!1", (("a", ("1", "2")),), 0),
        ("no colon,,:no key,,no value:,,k:!!!,, ,,颜色:红色", (("颜色", ("红色",)),), 4),
        ("size:S, M,,b:2,,", (("size", ("S, M",)), ("b", ("2",))), 0),
    ],
)
def test_mbe_attributes(said, pairs, malformed):
    assert mbe.parse_attributes(said) == (pairs, malformed)


def test_real_rows_say_the_same_as_our_records(moon_data):
    ours = read(moon_data, format="jsonl", parts=("grocery", "luma"))
    theirs = read(moon_data)
    assert len(ours.train) == len(theirs.train)
    assert theirs.report["malformed_attributes"] == 0
    for a, b in zip((*ours.train, *ours.seen), (*theirs.train, *theirs.seen), strict=True):
        assert (a.query.text, a.query.image) == (b.query.text, b.query.image)
        assert (a.positive.title, a.positive.category) == (b.positive.title, b.positive.category)
        assert a.positive.attributes == b.positive.attributes
        assert a.negative.title == b.negative.title
