import hashlib
import json
import pathlib
import random
import re

import numpy as np
import pytest
from PIL import Image

from moon_jax.data import catalogue
from moon_jax.data.catalogue import paint, scene, sprite, texts, words, writer
from moon_jax.data.catalogue.products import invent
from moon_jax.data.catalogue.tree import LEAVES
from moon_jax.evaluation.baselines.color_histogram import embed_pictures

PRODUCTS = 600


def _lines(folder, name):
    return [json.loads(line) for line in (pathlib.Path(folder) / f"{name}.jsonl").read_text("utf-8").splitlines()]


def _files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("catalogue") / "drawn"
    catalogue.write(folder, PRODUCTS, processes=2)
    return folder


def test_content_does_not_depend_on_the_processes(tmp_path):
    one = catalogue.write(tmp_path / "one", 70, seed=3, size_px=48, processes=1)
    two = catalogue.write(tmp_path / "two", 70, seed=3, size_px=48, processes=2)
    other = catalogue.write(tmp_path / "other", 70, seed=4, size_px=48, processes=1)
    assert one == two
    assert _files(tmp_path / "one") == _files(tmp_path / "two")
    assert other["sha256"] != one["sha256"]


def test_hash_covers_every_picture_and_record(drawn):
    digest, pictures = hashlib.sha256(), 0
    for i, item in enumerate(_lines(drawn, "items")):
        paths = item["images"] + sorted(f"images/{p.name}" for p in (drawn / "images").glob(f"{i:06d}_q*.jpg"))
        pictures += len(paths)
        for path in paths:
            digest.update(hashlib.sha256((drawn / path).read_bytes()).hexdigest().encode())
    for name in ("train", "test", "items"):
        digest.update((drawn / f"{name}.jsonl").read_bytes())
    summary = json.loads((drawn / "catalogue.json").read_text())
    assert summary["sha256"] == digest.hexdigest()
    assert summary["version"] == catalogue.VERSION
    assert summary["counts"]["pictures"] == pictures == len(list((drawn / "images").iterdir()))


def test_an_up_to_date_folder_is_left_alone_and_another_one_replaced(tmp_path, monkeypatch):
    folder = tmp_path / "shop"
    summary = catalogue.write(folder, 4, size_px=48)
    made = (folder / "items.jsonl").stat().st_mtime_ns
    assert catalogue.write(folder, 4, size_px=48) == summary
    assert (folder / "items.jsonl").stat().st_mtime_ns == made
    assert catalogue.write(folder, 6, size_px=48)["counts"]["items"] == len(_lines(folder, "items")) == 6
    monkeypatch.setattr(writer, "VERSION", catalogue.VERSION + 1)
    assert catalogue.write(folder, 6, size_px=48)["version"] == catalogue.VERSION + 1
    assert [p.name for p in tmp_path.iterdir()] == ["shop"]


def test_foreign_folders_and_impossible_arguments_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not a drawn catalogue"):
        catalogue.write(tmp_path, 4)
    with pytest.raises(ValueError, match="at least 2 products"):
        catalogue.write(tmp_path / "new", 1)
    with pytest.raises(ValueError, match="size_px is 8"):
        catalogue.write(tmp_path / "new", 4, size_px=8)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_a_failure_leaves_the_old_catalogue(tmp_path, monkeypatch):
    catalogue.write(tmp_path / "shop", 4, size_px=48)
    before = _files(tmp_path / "shop")

    def fail(*args):
        raise RuntimeError("the pencil broke")

    monkeypatch.setattr(scene, "take", fail)
    with pytest.raises(RuntimeError, match="pencil"):
        catalogue.write(tmp_path / "shop", 5, size_px=48)
    assert _files(tmp_path / "shop") == before
    assert [p.name for p in tmp_path.iterdir()] == ["shop"]


def test_records_have_the_layout_of_the_jsonl_sets(drawn):
    items = {item["item_id"]: item for item in _lines(drawn, "items")}
    assert len(items) == PRODUCTS
    for item in items.values():
        assert 2 <= len(item["images"]) == len(item["image_bboxes"]) <= 4
        assert (item["image"], item["image_bbox"]) == (item["images"][0], item["image_bboxes"][0])
        assert list(item["category"]) == ["industry", "cate1", "cate2", "cate3", "cate4"]
        assert all(item["category"].values())
    with_train = set()
    for split in ("train", "test"):
        records = _lines(drawn, split)
        assert len({r["id"] for r in records}) == len(records)
        assert {r["query"]["kind"] for r in records} == {"user_photo", "alt_view"}
        for r in records:
            positive, negative = items[r["positive"]["item_id"]], items[r["negative"]["item_id"]]
            assert (r["dataset"], r["split"], r["negative"]["shares"]) == ("catalogue", split, "cate4")
            assert list(r["query"]) == ["image", "text", "text_source", "kind", "bbox"]
            assert r["positive"] == {k: positive[k] for k in ("item_id", "images", "title", "description")}
            assert r["negative"]["images"] == negative["images"]
            assert r["negative"]["title"] == negative["title"]
            assert (r["category"], r["attributes"]) == (positive["category"], positive["attributes"])
            x1, y1, x2, y2 = r["query"]["bbox"]
            with Image.open(drawn / r["query"]["image"]) as picture:
                assert picture.size == (112, 112)
            assert 0 <= x1 < x2 <= 112
            assert 0 <= y1 < y2 <= 112
            assert max(x2 - x1, y2 - y1) > 0.3 * 112
        if split == "train":
            with_train = {r["positive"]["item_id"] for r in records}
    assert with_train == set(items)


def test_hard_negatives_differ_in_exactly_one_visible_attribute():
    products = invent(2500, 0)
    assert {p.leaf.path for p in products} == {leaf.path for leaf in LEAVES}
    differing = set()
    for p in products:
        other = products[p.negative]
        ours, theirs = p.attributes, other.attributes
        changed = [k for k in ours if ours[k] != theirs[k]]
        assert p.number != other.number
        assert (p.leaf, list(ours)) == (other.leaf, list(theirs))
        assert len(changed) == 1
        differing.update(changed)
    assert differing == {"color", "brand", "style_elements", "material", "size_specification", "fashion_style"}
    keys = [set(p.attributes) for p in products]
    assert set.union(*keys) == {*words.VALUES, "category"}
    assert set.intersection(*keys) == {"category"}  # every other attribute is empty somewhere
    assert [invent(n, 5)[-1].number for n in range(2, 12)] == list(range(1, 11))


def test_the_sibling_looks_different():
    products = invent(120, 1)
    for p in products:
        ours, theirs = (
            np.asarray(sprite.cut_out(q, 64).resize((64, 64)), np.float32) for q in (p, products[p.negative])
        )
        assert np.abs(ours - theirs).max() > 25, (p.look, products[p.negative].look)


@pytest.mark.parametrize("kind", ["main", "sku", "alt_view"])
def test_the_box_is_where_the_product_is(kind):
    magenta = Image.new("RGBA", (70, 50), (255, 0, 255, 255))  # nothing else in the scenes has so little green
    checked = 0
    for i in range(60):
        plain = scene.SHOTS[kind]
        picture, box = scene.take(magenta, kind, 112, random.Random(i))
        r, g, b = np.moveaxis(np.asarray(picture, np.int64), -1, 0)
        ys, xs = np.nonzero((4 * g < np.minimum(r, b)) & (r > 60))
        seen = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        error = np.abs(np.subtract(seen, box)).max()
        checked += error <= 2
        assert error <= 2 or plain.occluded
    assert checked >= 48


def test_every_silhouette_holds_its_sign_and_brands_differ():
    for product in {p.leaf: p for p in invent(400, 2)}.values():
        cut = sprite.cut_out(product, 96)
        share = (np.asarray(cut.getchannel("A")) > 64).mean()
        assert min(cut.size) >= 12, product.leaf.path
        assert 0.1 < share <= 1, product.leaf.path
    assert set(paint.SIGNS) == set(words.BRANDS)
    assert set(paint.COLORS) == set(words.COLORS)
    assert {m for leaf in LEAVES for m in leaf.materials} <= set(words.MATERIALS)
    assert len({str(sign) for sign in paint.SIGNS.values()}) == len(words.BRANDS)


def _pieces(text):
    """English words and Chinese character pairs."""
    chinese = re.sub(r"[^\u4e00-\u9fff]", "", text)
    return set(re.findall(r"[a-z]+|\d+", text.lower())) | {chinese[i : i + 2] for i in range(len(chinese) - 1)}


def test_queries_paraphrase_the_title_and_identify_the_product():
    products = invent(500, 0)
    titles = [texts.title(p) for p in products]
    assert len(set(titles)) == len(titles)
    assert sum(t.isascii() for t in titles) > 150  # English only
    assert sum(not re.search("[a-z] [a-z]", t) for t in titles) > 60  # Chinese but for the series
    pieces = [_pieces(t) for t in titles]
    frequency = {w: sum(w in p for p in pieces) for w in set().union(*pieces)}
    first, among_ten, copied = [], [], []
    for i, product in enumerate(products):
        query = texts.query(product, random.Random(i))
        assert query.lower() not in titles[i].lower()
        asked = _pieces(query)
        scores = [sum(np.log(500 / frequency[w]) for w in asked & p) for p in pieces]
        better, equal = sum(s > scores[i] for s in scores), sum(s == scores[i] for s in scores)
        first.append(1 / equal if better == 0 else 0)  # ties broken by chance
        among_ten.append(better + equal <= 10)
        copied.append(len(asked & pieces[i]) / len(asked))
    assert np.mean(among_ten) > 0.6  # word matching finds the product (chance is 0.02) ...
    assert 0.3 < np.mean(first) < 0.7  # ... but does not solve it
    assert 0.3 < np.mean(copied) < 0.7  # most words are the title's, many are not


def test_colour_alone_finds_nothing(drawn):
    items = _lines(drawn, "items")
    number = {item["item_id"]: i for i, item in enumerate(items)}
    queries = _lines(drawn, "train") + _lines(drawn, "test")
    truth = np.array([number[q["positive"]["item_id"]] for q in queries])
    listing = embed_pictures([drawn / item["image"] for item in items])
    photo = embed_pictures([drawn / q["query"]["image"] for q in queries])
    recall = np.mean((photo @ listing.T).argmax(1) == truth)
    assert recall <= 5 / PRODUCTS, f"{recall:.4f} is {recall * PRODUCTS:.1f} times chance"


def test_shapes_tell_the_leaf_category(drawn):
    """Ridge regression on 16 x 16 grey crops: a model that can see learns something."""

    def crops(records):
        out = []
        for r in records:
            with Image.open(drawn / r["query"]["image"]) as picture:
                out.append(
                    np.asarray(picture.convert("L").crop(r["query"]["bbox"]).resize((16, 16)), np.float64).ravel()
                )
        x = np.array(out)
        return (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)

    leaves = [leaf.path[4] for leaf in LEAVES]
    train, test = _lines(drawn, "train"), _lines(drawn, "test")
    kernel, y = crops(train), np.eye(len(leaves))[[leaves.index(r["category"]["cate4"]) for r in train]]
    weights = np.linalg.solve(kernel.T @ kernel + 300 * np.eye(256), kernel.T @ y)
    right = (crops(test) @ weights).argmax(1) == [leaves.index(r["category"]["cate4"]) for r in test]
    assert right.mean() > 10 / len(leaves), right.mean()
