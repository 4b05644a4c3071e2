"""Formats with pictures inside their files: MUGE's base64 and Marqo's Parquet, written here by other means."""

import base64
import dataclasses
import io
import json
import pickle

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from moon_jax.config import Config, DataConfig, ModelConfig, TrainConfig, VisionConfig
from moon_jax.data import images, picture_files, records, sources, tokenizer
from moon_jax.data.pipeline import TrainBatches, stream
from moon_jax.data.records import DataError, Query
from moon_jax.data.sources import embedded


def read(folder, form, **settings):
    triplets, limit = settings.pop("triplets", True), settings.pop("limit", 0)
    config = DataConfig(path=str(folder), format=form, **{"unseen_share": 0.0} | settings)
    return sources.read(config, triplets=triplets, limit=limit)


def png(number):
    """The bytes of a small picture of one colour."""
    out = io.BytesIO()
    Image.new("RGB", (8, 6), (number, 255 - number, 7 * number % 256)).save(out, "PNG")
    return out.getvalue()


def signs(number):
    """The same with bytes behind it that need both signs in which the two kinds of base64 differ."""
    return png(number) + bytes(range(256))


def shown(ref):
    return tuple(np.asarray(picture_files.load(ref.path))[3, 4].tolist())


def colour(number):
    return number, 255 - number, 7 * number % 256


def muge(folder, split, pictures, texts):
    lines = [f"{name}\t".encode() + encode(content) + b"\n" for name, encode, content in pictures]
    (folder / f"{split}_imgs.tsv").write_bytes(b"".join(lines))
    lines = [json.dumps(text, ensure_ascii=False) + "\n" for text in texts]
    (folder / f"{split}_texts.jsonl").write_text("".join(lines), encoding="utf-8")


def test_muge_by_hand(tmp_path):
    plain, url_safe = base64.b64encode, base64.urlsafe_b64encode
    assert set(b"+/") <= set(plain(signs(250)))
    muge(
        tmp_path,
        "train",
        [(10, plain, png(10)), (20, lambda b: url_safe(b).rstrip(b"="), png(20)), (250, url_safe, signs(250))],
        [{"text_id": 1, "text": "红色", "image_ids": [10, 250]}, {"text_id": 2, "text": "blue", "image_ids": [20]}],
    )
    muge(
        tmp_path,
        "valid",
        [(10, plain, png(11)), (30, plain, png(30))],
        [{"text_id": 1, "text": "two", "image_ids": [30, 10]}, {"text_id": 2, "text": "kept back", "image_ids": []}],
    )
    dataset = read(tmp_path, "muge")
    assert [(t.query, t.positive.id) for t in dataset.train] == [
        (Query("红色", None), "train:10"),
        (Query("红色", None), "train:250"),
        (Query("blue", None), "train:20"),
    ]
    (valid,) = dataset.seen
    assert (valid.positive.id, valid.relevant) == ("valid:30", {"valid:30", "valid:10"})
    assert dataset.report["queries_without_answer"] == 1
    assert [p.id for p in records.gallery(dataset, "valid")] == ["valid:10", "valid:30"]
    for name, number in (("train:10", 10), ("train:20", 20), ("train:250", 250), ("valid:10", 11), ("valid:30", 30)):
        (ref,) = dataset.products[name].images
        assert not isinstance(ref.path, bytes)
        assert shown(pickle.loads(pickle.dumps(ref))) == colour(number)
    images.check(dataset, DataConfig())
    assert [p.part for p in read(tmp_path, "muge", parts=("valid",)).products.values()] == ["valid", "valid"]
    with pytest.raises(DataError, match=r"no part test; it has \['train', 'valid'\]"):
        read(tmp_path, "muge", parts=("test",))


@pytest.mark.parametrize(
    ("line", "text", "message"),
    [
        (b"10", {}, r"valid_imgs\.tsv:2: line: must be an id, a tab"),
        (b"11\t", {}, r"valid_imgs\.tsv:2: line: must be an id, a tab"),
        (b"10\tAAAA", {}, r"valid_imgs\.tsv:2: id: '10' is there twice"),
        (b"\xff\tAAAA", {}, r"valid_imgs\.tsv:2: line: not UTF-8"),
        (b"11\tAAAA", {"text": " "}, r"valid_texts\.jsonl:1: text: is empty"),
        (b"11\tAAAA", {"image_ids": [10, 99]}, r"valid_texts\.jsonl:1: image_ids: '99' is not in valid_imgs\.tsv"),
    ],
)
def test_bad_muge_lines_are_named(tmp_path, line, text, message):
    muge(
        tmp_path,
        "valid",
        [(10, base64.b64encode, png(10))],
        [{"text_id": 1, "text": "a", "image_ids": [10]} | text],
    )
    with (tmp_path / "valid_imgs.tsv").open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(DataError, match=message):
        read(tmp_path, "muge")


def test_broken_base64_is_a_broken_picture(tmp_path):
    muge(
        tmp_path,
        "valid",
        [(10, base64.b64encode, png(10)), (11, lambda b: b"!!not base64!!", b"")],
        [{"text_id": 1, "text": "a", "image_ids": [10]}],
    )
    dataset = read(tmp_path, "muge")
    with pytest.raises(
        picture_files.ImageError, match=r"1 of 2 pictures(.*\n){3}.*valid_imgs\.tsv, the picture at byte \d+: can"
    ):
        images.check(dataset, DataConfig())
    images.check(dataset, DataConfig(on_error="skip", max_skipped_share=0.5))


def test_muge_sample(moon_data):
    dataset = read(moon_data / "formats/muge", "muge")
    lines = (moon_data / "formats/muge/test_imgs.tsv").read_text().splitlines()
    for line in lines:
        name, _, content = line.partition("\t")
        expected = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB"))
        np.testing.assert_array_equal(picture_files.load(dataset.products[f"test:{name}"].images[0].path), expected)
    assert len(dataset.products) == len(dataset.seen) == len(lines)


# ---- Parquet


def parquet(path, rows, group=2):
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=group)


def pair(number, query, product, position, **changes):
    return {
        "image": {"bytes": png(number), "path": f"{product}.jpg"}, "query": query, "product_id": product,
        "position": position, "title": f"title of {product}", "pair_id": f"pair{number}",
        "score_linear": 100 - position, "score_reciprocal": 1.0 / position, "no_score": 1, "query_id": f"id of {query}",
    } | changes  # fmt: skip


def test_marqo_by_hand(tmp_path):
    parquet(
        tmp_path / "data/in_domain-00000-of-00002.parquet",
        [pair(1, "coat", "p1", 1), pair(2, "coat", "p2", 2), pair(3, "hat", "p3", 1)],
    )
    parquet(tmp_path / "data/in_domain-00001-of-00002.parquet", [pair(1, "red coat", "p1", 5)])
    parquet(
        tmp_path / "data/zero_shot-00000-of-00001.parquet",
        [pair(4, "shoe", "p4", 7), pair(5, "shoe", "p5", 2), pair(6, "sock", "p4", 1)],
    )
    dataset = read(tmp_path, "marqo")
    assert [(t.query.text, t.positive.id, t.relevant) for t in dataset.train] == [
        ("coat", "p1", set()), ("coat", "p2", set()), ("hat", "p3", set()), ("red coat", "p1", set()),
    ]  # fmt: skip
    assert [(t.query.text, t.positive.id, t.relevant, t.part) for t in dataset.seen] == [
        ("shoe", "p5", {"p4", "p5"}, "zero_shot"), ("sock", "p4", {"p4"}, "zero_shot"),
    ]  # fmt: skip
    assert [p.id for p in records.gallery(dataset, "zero_shot")] == ["p4", "p5"]
    for name, number in (("p1", 1), ("p2", 2), ("p3", 3), ("p4", 4), ("p5", 5)):
        product = dataset.products[name]
        assert product.title == f"title of {name}"
        assert shown(pickle.loads(pickle.dumps(product.images[0]))) == colour(number)
    images.check(dataset, DataConfig())
    changed = [pair(1, "red coat", "p1", 6)]
    parquet(tmp_path / "data/in_domain-00001-of-00002.parquet", changed)
    assert read(tmp_path, "marqo").fingerprint != dataset.fingerprint


def test_marqo_sets_without_queries_are_catalogues(tmp_path):
    row = {
        "image": {"bytes": png(1), "path": None}, "category1": "men", "category2": "tops", "category3": "",
        "color": "blue", "description": "soft", "text": "a blue shirt", "item_ID": 17,
    }  # fmt: skip
    parquet(tmp_path / "data-00000-of-00001.parquet", [row])
    (product,) = read(tmp_path, "marqo", triplets=False).products.values()
    assert (product.id, product.title, product.description) == ("17", "a blue shirt", "soft")
    assert product.category == ("men", "tops")
    assert product.attributes == (("color", ("blue",)),)
    assert product.part == "data"


def test_bad_marqo_rows_and_files_are_named(tmp_path):
    path = tmp_path / "test-00000-of-00001.parquet"
    rows = [pair(1, "a", "p1", 1), pair(2, "b", None, 1), pair(3, " ", "p3", 1), pair(4, "d", "p4", 1)]
    parquet(path, rows, group=4)
    with pytest.raises(DataError, match=r"test-00000-of-00001\.parquet:2: product_id: is empty"):
        read(tmp_path, "marqo")
    dataset = read(tmp_path, "marqo", on_error="skip", max_skipped_share=0.5)
    assert list(dataset.products) == ["p1", "p4"]
    assert shown(dataset.products["p4"].images[0]) == colour(4)  # the skipped rows are still rows of the file
    assert dataset.report["skipped_reasons"] == {"product_id": 1, "query": 1}
    parquet(path, [pair(1, "a", "p1", 1, image={"bytes": None, "path": "p1.jpg"})])
    with pytest.raises(
        picture_files.ImageError, match=r"row 0 of row group 0: cannot be read as a picture.*the cell is empty"
    ):
        images.check(read(tmp_path, "marqo"), DataConfig())
    parquet(path, [{"picture": png(1), "product_id": "p"}])
    with pytest.raises(DataError, match=r"needs the columns 'image' and one of product_id.*it has picture, product_id"):
        read(tmp_path, "marqo")
    path.write_bytes(b"PAR1 this is none")
    with pytest.raises(DataError, match=r"parquet: cannot be read as a Parquet file"):
        read(tmp_path, "marqo")


def test_pictures_of_a_row_group_are_read_together(tmp_path):
    """What makes reading in the order of the file quick: a group is read once, and few groups are kept."""
    parquet(tmp_path / "train-00000-of-00001.parquet", [pair(i, f"q{i}", f"p{i}", 1) for i in range(12)], group=4)
    dataset = read(tmp_path, "marqo")
    embedded._row_group.cache_clear()
    for i in range(12):
        assert shown(dataset.products[f"p{i}"].images[0]) == colour(i)
    assert embedded._row_group.cache_info().misses == 3
    assert embedded._row_group.cache_info().currsize <= 2


@pytest.mark.parametrize("workers", [0, 2])
def test_training_batches_from_inside_a_file_equal_those_from_plain_files(tmp_path, workers):
    names = [f"p{i:02}" for i in range(12)]
    (tmp_path / "plain").mkdir()
    for i, name in enumerate(names):
        (tmp_path / "plain" / f"{name}.png").write_bytes(png(i))
    listing = {n: {"item_id": n, "title": f"title of {n}", "images": [f"{n}.png"]} for n in names}
    rows = [{"id": f"r{i}", "query": {"text": f"query {i}"}, "positive": listing[n]} for i, n in enumerate(names)]
    (tmp_path / "plain/in_domain.train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "marqo/in_domain-00000-of-00001.parquet"
    parquet(path, [pair(i, f"query {i}", n, 1) for i, n in enumerate(names)], group=5)
    words = tokenizer.train_bpe([f"title of query {i}" for i in range(20)], tmp_path / "tokenizer", 300)
    arrays = []
    for form, folder, count in (("jsonl", "plain", 0), ("marqo", "marqo", workers)):
        found = read(tmp_path / folder, form)
        same_ids = tuple(dataclasses.replace(t, id=f"r{i}") for i, t in enumerate(found.train))
        config = Config(
            model=ModelConfig(vision=VisionConfig(patch_size=4, window_size=16)),
            data=DataConfig(min_pixels=64, max_pixels=640, modality_mix=(0, 1, 0)),
            train=TrainConfig(batch_size=4),
        )
        batches = TrainBatches(dataclasses.replace(found, train=same_ids), words, config, 1, range(1))
        arrays.append([batch.arrays for _, batch in stream(batches, 0, 3, count, 2)])
    for plain, embedded_ in zip(*arrays, strict=True):
        assert plain.keys() == embedded_.keys()
        assert np.abs(plain["patches"]).sum() > 0
        for name in plain:
            np.testing.assert_array_equal(plain[name], embedded_[name], err_msg=name)


def test_bytes_that_are_no_utf8_are_a_bad_row(tmp_path):
    titles = pyarrow.array([b"good", b"\xff\xfe", b"last"]).view(pyarrow.string())
    table = pyarrow.table({"image": [png(1)] * 3, "item_ID": ["1", "2", "3"], "title": titles})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet:2: row: a text is not UTF-8"):
        read(tmp_path, "marqo", triplets=False)
    dataset = read(tmp_path, "marqo", triplets=False, on_error="skip", max_skipped_share=0.5)
    assert {p.id: p.title for p in dataset.products.values()} == {"1": "good", "3": "last"}
    assert dataset.report["skipped"] == 1


def test_a_damaged_row_group_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    some = [{"image": b"x", "item_ID": str(n), "title": f"title {n}" * 50} for n in range(8)]
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(some), path, row_group_size=4, compression="snappy", use_dictionary=False
    )
    with pyarrow.parquet.ParquetFile(path) as file:
        column = file.metadata.row_group(1).column(2)
    content = bytearray(path.read_bytes())
    start = column.data_page_offset
    content[start : start + 40] = b"\xff" * 40
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.parquet: row group 1 cannot be read"):
        read(tmp_path, "marqo", triplets=False)
