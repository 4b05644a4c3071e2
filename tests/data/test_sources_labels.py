"""M5Product and Product1M: queries and gallery joined by labels, counted again from the files by a few lines."""

import collections
import json

import pytest

from moon_jax.config import DataConfig
from moon_jax.data import records, sources
from moon_jax.data.records import DataError, ImageRef, Query


def read(folder, form, **settings):
    triplets, limit = settings.pop("triplets", True), settings.pop("limit", 0)
    config = DataConfig(path=str(folder), format=form, **{"unseen_share": 0.0} | settings)
    return sources.read(config, triplets=triplets, limit=limit)


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def m5product(folder):
    info = {
        "1": {"title": "红色 coat", "pv": "颜色#:#红#;#size#:#S#;#size#:#M#;#broken#;#"},
        "2": {"title": "blue coat", "pv": ""},
        "3": {"title": "a hat"},
        "9": {"title": "only in training", "pv": "color#:#red"},
    }
    labels = {
        "1": {"title": "other title", "label": "coat", "url": "https://cdn/a.jpg"},
        "2": {"title": "blue coat", "label": "coat", "url": "pictures/two.jpg"},
        "3": {"title": "a hat", "label": "hat"},
        "4": {"title": "coat, seen in the street", "label": "coat"},
        "5": {"title": "a shoe", "label": "shoe"},
    }
    write_json(folder / "id_info.json", info)
    write_json(folder / "id_label.json", labels)
    write_json(folder / "gallery_ids.json", ["3", "2", 1])
    write_json(folder / "query_ids.json", ["4", "5"])


def test_m5product_by_hand(tmp_path):
    m5product(tmp_path)
    dataset = read(tmp_path, "m5product", parts=("shop",))
    (triplet,) = dataset.seen
    assert triplet.query == Query("coat, seen in the street", ImageRef(f"{tmp_path}/4_0.jpg"))
    assert triplet.positive.id == "2"  # the first of the gallery with that label
    assert triplet.relevant == {"1", "2"}
    assert triplet.negative is None
    assert dataset.train == ()
    assert [p.id for p in records.gallery(dataset, "shop")] == ["1", "2", "3"]
    assert [p.id for p in records.gallery(dataset, "catalogue")] == ["9"]
    one = dataset.products["1"]
    assert one.title == "红色 coat"
    assert one.attributes == (("颜色", ("红",)), ("size", ("S", "M")))
    assert one.images == (ImageRef("https://cdn/a.jpg"),)
    assert dataset.products["2"].images == (ImageRef(f"{tmp_path}/pictures/two.jpg"),)
    counted = {name: dataset.report[name] for name in ("queries_without_answer", "malformed_attributes", "gallery")}
    assert counted == {"queries_without_answer": 1, "malformed_attributes": 1, "gallery": 3}
    (tmp_path / "photos").mkdir()
    moved = read(tmp_path, "m5product", image_folder=str(tmp_path / "photos"))
    assert moved.products["9"].images == (ImageRef(f"{tmp_path}/photos/9_0.jpg"),)
    assert moved.products["1"].images == (ImageRef(f"{tmp_path}/photos/1_0.jpg"),)
    assert moved.products["2"].images == (ImageRef(f"{tmp_path}/photos/pictures/two.jpg"),)


def test_m5product_listings_alone_are_a_catalogue(tmp_path):
    m5product(tmp_path)
    for name in ("gallery_ids", "query_ids", "id_label"):
        (tmp_path / f"{name}.json").unlink()
    dataset = read(tmp_path, "m5product", triplets=False)
    assert list(dataset.products) == ["1", "2", "3", "9"]
    assert {p.part for p in dataset.products.values()} == {tmp_path.name}
    with pytest.raises(DataError, match=r"lists 4 products.*training and evaluation need triplets"):
        read(tmp_path, "m5product")


BAD_M5 = {
    "no_label": ("query_ids.json", ["4", "77"], r"query_ids\.json:2: id: '77' has no label and no listing"),
    "unlabelled": ("query_ids.json", ["4", "9"], r"query_ids\.json:2: id: '9' has no label \("),
    "empty_label": ("id_label.json", {"4": {"title": "x", "label": " "}}, r"id_label\.json:1: label: of '4' is empty"),
    "pv_type": ("id_info.json", {"1": {"title": "x", "pv": ["a"]}}, r"id_info\.json:1: pv: must be a text"),
    "twice": ("id_info.json", '{"1": {"title": "a", "pv": ""}, "1": {"title": "b"}}', r":2: id: '1' is listed twice"),
    "cut": ("id_info.json", '{"1": {"title": "a", "pv": ""}, "2": {"tit', r"id_info\.json: entry 2: not JSON"),
    "list": ("gallery_ids.json", [], r"a list of query ids, and no list of gallery ids"),
}


@pytest.mark.parametrize(("name", "content", "message"), BAD_M5.values(), ids=BAD_M5)
def test_bad_m5product_is_named(tmp_path, name, content, message):
    m5product(tmp_path)
    if isinstance(content, str):
        (tmp_path / name).write_text(content)
    else:
        write_json(tmp_path / name, content)
    with pytest.raises(DataError, match=message):
        read(tmp_path, "m5product")


def test_m5product_sample(moon_data):
    folder = moon_data / "formats/m5product"
    dataset = read(folder, "m5product", image_folder=str(moon_data))
    said = {name: json.loads((folder / f"{name}.json").read_text()) for name in ("id_info", "id_label")}
    queries, gallery = (json.loads((folder / f"{name}_ids.json").read_text()) for name in ("query", "gallery"))
    label = {name: entry["label"] for name, entry in said["id_label"].items()}
    answers = {q: {g for g in gallery if label[g] == label[q]} for q in queries}
    assert {t.id: t.relevant for t in dataset.seen} == {q: a for q, a in answers.items() if a}
    assert {p.id for p in records.gallery(dataset, "m5product")} == set(gallery)
    for name, product in dataset.products.items():
        assert product.title == said["id_info"][name]["title"].strip()
        assert product.images[0].path == str(moon_data / said["id_label"][name]["url"])
        pairs = [pair.split("#:#") for pair in said["id_info"][name]["pv"].split("#;#") if pair]
        assert [[key, *values] for key, values in product.attributes] == pairs


def product1m(folder, **files):
    for name, lines in files.items():
        text = "\n".join("#####".join(fields) for fields in lines) + "\n"
        (folder / f"product1m_{name}_ossurl_v2.txt").write_text(text, encoding="utf-8")


def test_product1m_by_hand(tmp_path):
    product1m(
        tmp_path,
        gallery=[("1", "cream 50 ml", "a.jpg", "b.jpg", "cream"), ("2", "soap", "c.jpg", "c.jpg", "soap"),
                 ("3", "large cream", "d.jpg", "d.jpg", "cream")],
        test=[("7", "set of two", "q.jpg", "q.jpg", "soap#;#cream"), ("8", "lost", "q.jpg", "q.jpg", "lipstick")],
        dev=[("6", "one soap", "q.jpg", "q.jpg", "soap"), ("2", "soap", "c.jpg", "c.jpg", "soap")],
        train=[("20", "without labels", "t.jpg", "t.jpg")],
    )  # fmt: skip
    dataset = read(tmp_path, "product1m", parts=("p1m",))
    assert {t.id: (t.positive.id, t.relevant) for t in dataset.seen} == {
        "6": ("2", {"2"}),
        "7": ("2", {"1", "2", "3"}),  # a set is answered by each of its products
    }
    assert dataset.report["queries_without_answer"] == 1
    assert dataset.report["queries_in_gallery"] == 1
    assert {p.id: p.part for p in dataset.products.values()} == {"1": "p1m", "2": "p1m", "3": "p1m", "20": "catalogue"}
    assert dataset.products["1"].images == (ImageRef(f"{tmp_path}/a.jpg"),)


def test_product1m_addresses_are_kept_or_files_by_id(tmp_path):
    line = ("1", "cream", "https://oss/x.jpg", "https://oss/y.jpg", "cream")
    product1m(tmp_path, gallery=[line], test=[("7", *line[1:])])
    assert read(tmp_path, "product1m").products["1"].images == (ImageRef("https://oss/x.jpg"),)
    dataset = read(tmp_path, "product1m", image_folder=str(tmp_path))
    assert dataset.products["1"].images == (ImageRef(f"{tmp_path}/1.jpg"),)
    assert dataset.seen[0].query.image == ImageRef(f"{tmp_path}/7.jpg")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"1#####a", "line: 2 fields between #####, must be 5"),
        (b"1#####a#####b#####c#####d#####e", "line: 6 fields"),
        (b"#####a#####b#####c#####d", "id: is empty"),
        (b"0#####a#####b#####c#####d", "id: '0' is listed twice"),
        (b"1#####a#####b#####c##### #;#", "label: of '1' is empty"),
        (b"1#####\xff#####b#####c#####d", "line: not UTF-8 at byte 6"),
    ],
)
def test_bad_product1m_lines_are_named_or_skipped(tmp_path, line, message):
    product1m(tmp_path, gallery=[("0", "a", "b", "c", "d")], test=[("9", "a", "b", "c", "d")])
    with (tmp_path / "product1m_gallery_ossurl_v2.txt").open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(DataError, match=rf"gallery_ossurl_v2\.txt:2: ({message})"):
        read(tmp_path, "product1m")
    dataset = read(tmp_path, "product1m", on_error="skip", max_skipped_share=0.5)
    assert dataset.report["skipped"] == 1
    assert list(dataset.products) == ["0"]


def test_product1m_sample(moon_data):
    folder = moon_data / "formats/product1m"
    dataset = read(folder, "product1m", image_folder=str(moon_data))
    by_label = collections.defaultdict(set)
    for line in (folder / "product1m_gallery_ossurl_v2.txt").read_text(encoding="utf-8").splitlines():
        fields = line.split("#####")
        by_label[fields[4]].add(fields[0])
        product = dataset.products[fields[0]]
        assert (product.title, product.images[0].path) == (fields[1].strip(), str(moon_data / fields[2]))
    lines = (folder / "product1m_test_ossurl_v2.txt").read_text(encoding="utf-8").splitlines()
    expected = {fields[0]: by_label[fields[4]] for fields in (line.split("#####") for line in lines)}
    assert {t.id: t.relevant for t in dataset.seen} == {name: found for name, found in expected.items() if found}
