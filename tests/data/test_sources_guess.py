"""The guess of the format on every layout, and that what was guessed reads."""

import json
import shutil

import pyarrow
import pyarrow.parquet
import pytest

from moon_jax.config import DataConfig
from moon_jax.config_rules import FORMATS
from moon_jax.data import catalogue, sources
from moon_jax.data.records import DataError
from moon_jax.data.sources import guess

TRIPLET = {"id": "1", "query": {"text": "q"}, "positive": {"title": "t"}, "negative": None}
MBE = {f"doc_cate{i}_name": "" for i in range(1, 5)} | {
    "query_title": "q", "query_image": None, "query bbox": None, "doc_title": "t", "doc_image": "", "neg_title": "",
    "neg_image": "", "doc_industry_name": "", "doc_attributes": "",
}  # fmt: skip
MADE = {
    "jsonl": {"a.train.jsonl": TRIPLET, "items.jsonl": {"item_id": "1", "title": "t"}},
    "mbe": {"train.jsonl": MBE},
    "mbe_by_name": {"shop.train.mbe.jsonl": MBE},
    "m5product": {"id_info.json": {"1": {"title": "t", "pv": ""}}},
    "m5product_labels": {
        "label.json": {"1": {"title": "t", "label": "x"}, "2": {"title": "u", "label": "x"}},
        "query.json": ["1"],
        "gallery.json": ["2"],
    },
    "mep3m": {"mep.json": [{"class_name": "c", "img_path": "a.jpg", "title": "t"}]},
    "product1m": {"product1m_gallery_ossurl_v2.txt": b"1#####t#####u#####v#####l\n"},
    "muge": {"test_imgs.tsv": b"1\tAAAA\n", "test_texts.jsonl": {"text_id": 1, "text": "t", "image_ids": [1]}},
    "table": {"shop.csv": b"sku,name\n1,t\n"},
    "table_tsv": {"shop.tsv": b"sku\timage\n1\ta.jpg\n"},
    "table_jsonl": {"products.jsonl": {"title": "t"}},
}


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("alone", [False, True], ids=["folder", "file"])
def test_formats_are_guessed_and_read(tmp_path, name, alone):
    for file, content in MADE[name].items():
        if not isinstance(content, bytes):
            content = json.dumps(content).encode() + b"\n"
        (tmp_path / file).write_bytes(content)
    path = tmp_path / next(iter(MADE[name])) if alone else tmp_path
    best = guess.guess(path)[0]
    assert best.format == name.split("_")[0]
    assert next(iter(MADE[name])) in best.reason
    if not (alone and name == "m5product_labels"):
        assert sources.read(DataConfig(path=str(path), format=best.format), triplets=False).products


def test_parquet_and_the_drawn_catalogue_are_guessed(tmp_path):
    (tmp_path / "data").mkdir()
    table = pyarrow.Table.from_pylist([{"image": b"x", "item_ID": "1", "query": "q"}])
    pyarrow.parquet.write_table(table, tmp_path / "data/test-00000-of-00001.parquet")
    (found,) = guess.guess(tmp_path)
    assert found.format == "marqo"
    assert "item_ID" in found.reason
    catalogue.write(tmp_path / "drawn", 10, seed=0)
    assert [g.format for g in guess.guess(tmp_path / "drawn")] == ["catalogue", "table"]
    shutil.rmtree(tmp_path / "drawn")


@pytest.mark.parametrize("content", ["id,title,image\n", 'id,title\n1,"bad\n2,good\n', "id,title\n1,2,3\n"])
def test_a_table_is_known_by_its_header(tmp_path, content):
    (tmp_path / "a.csv").write_text(content)
    assert [found.format for found in guess.guess(tmp_path)] == ["table"]


def test_a_damaged_parquet_file_hides_nothing(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(DataError, match=r"no known format.*(.*\n)+.*a\.parquet: cannot be read as a Parquet file"):
        guess.guess(tmp_path)
    (tmp_path / "shop.csv").write_text("sku,name\n1,t\n")
    assert [found.format for found in guess.guess(tmp_path)] == ["table"]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"image": b"x", "item_ID": "1"}]), tmp_path / "b.parquet")
    assert [found.format for found in guess.guess(tmp_path)] == ["marqo", "table"]


def test_every_format_has_a_reader_and_a_name_in_the_config():
    assert set(sources.READERS) == set(FORMATS)


def test_what_nobody_knows_is_listed(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        guess.guess(tmp_path / "nothing")
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "a.json").write_text("[1, 2")
    (tmp_path / "b.jsonl").write_bytes(b"\xff\n")
    (tmp_path / "c.csv").write_text("x,y\n1,2\n")
    with pytest.raises(DataError, match=r"no known format. There is a\.json, b\.jsonl, c\.csv, notes\.txt; looked for"):
        guess.guess(tmp_path)


def test_real_folders_are_guessed(moon_data):
    assert [g.format for g in guess.guess(moon_data)] == ["jsonl", "mbe", "table"]
    for name in ("m5product", "product1m", "muge"):
        assert guess.guess(moon_data / "formats" / name)[0].format == name
