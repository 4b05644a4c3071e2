"""Plain tables and MEP-3M: products without queries."""

import csv
import json

import pytest

from moon_jax.config import DataConfig
from moon_jax.data import records, sources
from moon_jax.data.records import DataError, ImageRef, Product


def read(folder, form="table", **settings):
    triplets, limit = settings.pop("triplets", False), settings.pop("limit", 0)
    return sources.read(DataConfig(path=str(folder), format=form, **settings), triplets=triplets, limit=limit)


def test_csv_by_hand(tmp_path):
    (tmp_path / "shop.csv").write_bytes(
        "\ufeffSKU,Product Name,image,category,Brand,color,price,Farbe\r\n"
        '7,"Coat, warm\nand long",a.jpg|b.jpg,Clothes > Coats,Acme,red|blue,12,rot\r\n'
        '\r\n8,Hat,"[""c|d.jpg""]",Clothes|Hats,,,3,\r\n'.encode()
    )
    dataset = read(tmp_path / "shop.csv", columns=(("attribute", "Farbe"),), parts=("mine",))
    assert dataset.products == {
        "7": Product(
            "7",
            "Coat, warm\nand long",
            images=(ImageRef(f"{tmp_path}/a.jpg"), ImageRef(f"{tmp_path}/b.jpg")),
            category=("Clothes", "Coats"),
            attributes=(("Brand", ("Acme",)), ("color", ("red", "blue")), ("Farbe", ("rot",))),
            part="mine",
        ),
        "8": Product("8", "Hat", images=(ImageRef(f"{tmp_path}/c|d.jpg"),), category=("Clothes", "Hats"), part="mine"),
    }
    assert dataset.report["columns_not_read"] == ("price",)
    with pytest.raises(DataError, match="lists 2 products, and no record is a query"):
        read(tmp_path / "shop.csv", triplets=True)


@pytest.mark.parametrize("between", ",;\t|")
def test_separators_and_quotes_are_those_of_python(tmp_path, between):
    rows = [{"id": f"n{i}", "title": f'a{between}"b"\n{i}', "image": f"{i}.jpg"} for i in range(5)]
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=between)
        writer.writeheader()
        writer.writerows(rows)
    found = read(tmp_path).products
    assert [(p.id, p.title, p.images[0].path) for p in found.values()] == [
        (row["id"], row["title"], f"{tmp_path}/{row['image']}") for row in rows
    ]


def test_json_lines_by_hand(tmp_path):
    rows = [
        {"item_id": 5, "name": "Coat", "images": ["a.jpg", "b.jpg"], "category": {"industry": "X", "cate2": "Y"},
         "attributes": {"color": ["red", "blue"], "size": 42}},
        {"name": "Hat", "image": "c.jpg", "category": ["A", "B"], "cate1": "C", "id": None},
    ]  # fmt: skip
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    coat, hat = read(tmp_path).products.values()
    assert (coat.id, coat.category) == ("5", ("X", "Y"))
    assert coat.attributes == (("color", ("red", "blue")), ("size", ("42",)))
    assert len(coat.images) == 2
    assert hat.id == records.identity("Hat", "c.jpg")
    assert hat.category == ("A", "B", "C")


def test_columns_are_named(tmp_path):
    (tmp_path / "a.csv").write_text("title,Bezeichnung,foto,name\nold,Mantel,a.jpg,x\n")
    (mantel,) = read(tmp_path, columns=(("title", "Bezeichnung"), ("images", "foto"))).products.values()
    assert (mantel.title, mantel.images) == ("Mantel", (ImageRef(f"{tmp_path}/a.jpg"),))
    (old,) = read(tmp_path).products.values()
    assert old.title == "old"  # the first of the usual names wins
    assert read(tmp_path).report["columns_not_read"] == ("Bezeichnung", "foto", "name")
    with pytest.raises(DataError, match=r"config\.data\.columns: no role titel; the roles are id, title"):
        read(tmp_path, columns=(("titel", "Bezeichnung"),))
    with pytest.raises(DataError, match=r"config\.data\.columns: there is no column 'Bild'.*'title', 'Bezeichnung'"):
        read(tmp_path, columns=(("images", "Bild"),))


BOXES = {
    "1": ("a.jpg", "[10, 20, 30.5, 40]", [(10, 20, 30.5, 40)]),
    "2": ("a.jpg", "10 20 30 40", [(10, 20, 30, 40)]),
    "3": ("a.jpg", "(10,20, 30;40)", [(10, 20, 30, 40)]),
    "4": ("a.jpg", "", [None]),
    "5": ("a.jpg|b.jpg|c.jpg", "1 2 3 4||5 6 7 8", [(1, 2, 3, 4), None, (5, 6, 7, 8)]),
    "6": ("a.jpg|b.jpg", "[null, [1, 2, 3, 4]]", [None, (1, 2, 3, 4)]),
    "7": ("a.jpg|b.jpg", "[1,2,3,4]|[5,6,7,8]", [(1, 2, 3, 4), (5, 6, 7, 8)]),
    "8": ("a.jpg|b.jpg", "", [None, None]),
    "9": ("a.jpg", "[[1, 2, 3, 4]]", [(1, 2, 3, 4)]),
    "10": ("", "", []),
    "11": ("a.jpg|b.jpg", "|", [None, None]),
}


def test_boxes_stand_beside_their_pictures(tmp_path):
    with (tmp_path / "a.csv").open("w", newline="") as file:
        rows = [("sku", "title", "Bild", "bbox"), *((i, "t", images, boxes) for i, (images, boxes, _) in BOXES.items())]
        csv.writer(file).writerows(rows)
    found = read(tmp_path, columns=(("images", "Bild"),)).products
    for item_id, (_, _, boxes) in BOXES.items():
        assert [image.box for image in found[item_id].images] == boxes, item_id
    (tmp_path / "a.csv").unlink()
    rows = [
        {"id": "a", "image": "a.jpg", "box": [1, 2, 3, 4]},
        {"id": "b", "images": ["a.jpg", "b.jpg"], "box": [[1, 2, 3, 4], None]},
        {"id": "c", "images": ["a.jpg", "b.jpg"], "box": None},
        {"id": "d", "images": ["a.jpg"], "box": []},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read(tmp_path).products.values()
    assert [[i.box for i in p.images] for p in found] == [[(1, 2, 3, 4)], [(1, 2, 3, 4), None], [None] * 2, [None]]
    assert "box" not in read(tmp_path).report["columns_not_read"]


@pytest.mark.parametrize(
    ("images", "box", "message"),
    [
        ("a.jpg|b.jpg", "1 2 3 4", r"a\.csv:2: boxes: must be one box or nothing for each of the 2 images"),
        ("a.jpg", "1 2 3 4|5 6 7 8", "one box or nothing for each of the 1 images"),
        ("", "1 2 3 4", "one box or nothing for each of the 0 images"),
        ("a.jpg", "1 2 3", "images box: must be null or four finite numbers"),
        ("a.jpg", "30 2 3 40", "must have x1 < x2 and y1 < y2"),
        ("a.jpg", "left", "boxes: must be four numbers, is 'left'"),
        ("a.jpg", "[1, 2, 3, NaN]", "boxes: must be one box or nothing"),
        ("a.jpg", "1 2 3 nan", "images box: must be null or four finite numbers"),
        ("a.jpg", "7", "boxes: must be one box or nothing"),
    ],
)
def test_boxes_that_cannot_be_used_are_named(tmp_path, images, box, message):
    (tmp_path / "a.csv").write_text(f'title,image,box\nt,{images},"{box}"\n')
    with pytest.raises(DataError, match=message):
        read(tmp_path)


BAD = {
    "cells": (b"1,a\n", r"a\.csv:3: line: has 2 cells, the header has 3"),
    "many_cells": (b"1,a,b,c\n", r"a\.csv:3: line: has 4 cells"),
    "bytes": (b"1,\xff,b.jpg\n", r"a\.csv:3: line: not UTF-8"),
    "nothing": (b"1,,\n", r"a\.csv:3: row: has neither a title nor a picture"),
    "huge": (b"1," + b"x" * 10_000_001 + b",b.jpg\n", r"a\.csv:3: line: not CSV \(field larger"),
}


@pytest.mark.parametrize(("line", "message"), BAD.values(), ids=BAD)
def test_bad_rows_are_named_or_skipped(tmp_path, line, message):
    (tmp_path / "a.csv").write_bytes(b"id,title,image\n0,first,0.jpg\n" + line + b"2,last,2.jpg\n")
    with pytest.raises(DataError, match=message):
        read(tmp_path)
    dataset = read(tmp_path, on_error="skip", max_skipped_share=0.5)
    assert list(dataset.products) == ["0", "2"]
    assert dataset.report["skipped"] == 1


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("column", "cell", "message"),
    [
        ("image", DEEP, "cell: a list nested too deeply"),
        ("category", DEEP, "cell: a list nested too deeply"),
        ("brand", DEEP, "cell: a list nested too deeply"),
        ("box", DEEP, "boxes: must be four numbers"),
        ("attributes", DEEP, r"attributes: must be a JSON object, .*nested too deeply"),
        ("attributes", '{""a"": 1, ""a"": 2}', "attributes: must be a JSON object, .*named twice: a"),
        ("box", "[" + "7" * 5001 + "]", "boxes: must be one box or nothing"),
        ("attributes", '{""a"": ' + "7" * 5001 + "}", "attributes: must be a JSON object"),
    ],
    ids=range(8),
)
def test_cells_of_endless_json_are_bad_rows(tmp_path, column, cell, message):
    (tmp_path / "a.csv").write_text(f'id,title,{column}\n1,t,"{cell}"\n2,u,\n')
    with pytest.raises(DataError, match=rf"a\.csv:2: {message}"):
        read(tmp_path)
    assert list(read(tmp_path, on_error="skip", max_skipped_share=0.5).products) == ["2"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"a\.csv:1: must be a header"),
        (b"id,title,title\n", r"a\.csv:1: two columns have the name 'title'"),
        (b"id,t\xfftle\n", r"a\.csv:1: must be a header of column names in UTF-8"),
        (b"id,price\n1,2\n", r"a\.csv: no column for a title or a picture.*'id', 'price'"),
        (b"id,title\n", "there is not a single product"),
    ],
)
def test_unusable_tables_are_refused(tmp_path, content, message):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path)


def test_repeated_ids_are_counted(tmp_path):
    (tmp_path / "a.csv").write_text("id,title\n1,first\n1,second\n")
    dataset = read(tmp_path)
    assert [p.title for p in dataset.products.values()] == ["first"]
    assert dataset.report["repeated_ids"] == 1


def test_limit_ends_every_file(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.csv").write_text("id,title\n" + "".join(f"{name}{i},t\n" for i in range(9)))
    assert list(read(tmp_path, limit=2).products) == ["a0", "a1", "b0", "b1"]


def test_real_listings_as_a_table(moon_data):
    found = read(moon_data / "items.jsonl").products
    items = [json.loads(line) for line in (moon_data / "items.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {p.id: p.title for p in found.values()} == {i["item_id"]: i["title"].strip() for i in items}
    for item in items:
        product = found[item["item_id"]]
        assert product.images[0].path == str(moon_data / item["image"])
        assert list(product.category) == [level for level in item["category"].values() if level]
        assert {k: list(v) for k, v in product.attributes} == {
            k: v if isinstance(v, list) else [v] for k, v in item["attributes"].items()
        }


def test_mep3m_by_hand(tmp_path):
    entries = [
        {"class_id": 1, "class_name": "食品", "sub_class_id": 2, "sub_class_name": "茶", "subsub_class_id": "FALSE",
         "subsub_class_name": "FALSE", "img_path": "1/a.jpg", "title": "绿茶", "OCR": "新茶 上市"},
        {"class_name": "Toys", "sub_class_name": False, "img_path": "b.jpg", "title": "Car", "OCR": ["fast", "red"]},
        {"class_name": "Toys", "img_path": "b.jpg", "title": "car"},
    ]  # fmt: skip
    (tmp_path / "mep.json").write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")
    dataset = read(tmp_path, "mep3m", parts=("mep",))
    tea, car = sorted(dataset.products.values(), key=lambda p: p.category, reverse=True)
    assert tea == Product(
        records.identity("绿茶", "1/a.jpg"),
        "绿茶",
        "新茶 上市",
        (ImageRef(f"{tmp_path}/1/a.jpg"),),
        ("食品", "茶"),
        part="mep",
    )
    assert (car.title, car.description, car.category) == ("Car", "fast red", ("Toys",))
    assert dataset.report["repeated_products"] == 1
    (tmp_path / "mep.json").write_text(json.dumps([*entries, {"image": "x"}]))
    with pytest.raises(DataError, match=r"mep\.json:4: entry: has neither title nor img_path; it has image"):
        read(tmp_path, "mep3m")
