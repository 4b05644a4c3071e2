"""Pictures of records from an image store: the same vectors as from the files, which need not be there any more."""

import json
import logging

import jax
import numpy as np
import pytest
import tiny_hf
from PIL import Image

import moon_jax
from moon_jax import embed
from moon_jax.config import MeshConfig
from moon_jax.data.records import DataError
from moon_jax.data.store import Store, open_store
from moon_jax.data.store_encode import StoreSettings
from moon_jax.data.store_pack import pack
from moon_jax.data.store_writer import Part
from moon_jax.parallel.mesh import make_mesh

URL = "https://shop.example/c.png"

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_hf.write(tmp_path_factory.mktemp("hf") / "model", max_pixels=30 * 30)


@pytest.fixture(scope="module")
def encoder(model):
    return moon_jax.load(model, make_mesh(MeshConfig(data=1), jax.devices()[:1]), "float32")


@pytest.fixture
def shop(tmp_path):
    """A folder of three pictures."""
    folder = tmp_path / "shop"
    (folder / "img").mkdir(parents=True)
    for number, name in enumerate("abc"):
        pixels = np.random.default_rng(number).integers(0, 255, (40 + 9 * number, 60, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "img" / f"{name}.png")
    return folder


def packed(shop, **settings):
    """A store with a.png and b.png by their paths and c.png by a URL."""
    pictures = {f"img/{name}.png": str(shop / "img" / f"{name}.png") for name in "ab"}
    pack(pictures | {URL: str(shop / "img/c.png")}, shop.parent / "store", StoreSettings(**settings), part=Part())
    return shop.parent / "store"


RECORDS = [
    {"id": 1, "text": "two", "images": ["img/a.png", "./img/../img/b.png"], "boxes": [None, [3, 4, 40, 30]]},
    {"id": 2, "text": "none"},
    {"id": 3, "images": URL},
]


def test_the_command_and_encode_need_no_files(model, encoder, shop, monkeypatch, capsys):
    store = packed(shop)
    monkeypatch.chdir(shop)
    as_files = [*RECORDS[:2], {"images": "img/c.png"}]
    expected = encoder.encode(as_files)
    away = shop.parent / "away"
    (shop / "img").rename(away)
    np.testing.assert_array_equal(encoder.encode(RECORDS, image_store=store), expected)

    def command(folder, output, **settings):
        path = shop.parent / folder / "records.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
        given = {"model": model, "input": path, "output": shop.parent / output, "dtype": "float32", "mesh": "data=8"}
        embed.FLAGS.parse(**given, **settings)
        embed.main([])

    for folder, output, where in (("shop", "out", {}), ("elsewhere", "out2", {"image_folder": shop})):
        command(folder, output, image_store=store, **where)
        np.testing.assert_allclose(np.load(shop.parent / output / "embeddings.npy"), expected, atol=1e-6)
    assert "3 of 3 pictures are in the image store" in capsys.readouterr().err
    settings = json.loads((shop.parent / "out/settings.json").read_text())
    assert settings["identity"]["image_store"] == Store(store).digest
    for wrong, message in (
        ({"image_store": shop}, "image store .*is none"),
        ({"image_folder": shop / "lost"}, "--image_folder: there is no folder"),
        ({}, "is a URL .*or name an image store"),
    ):
        with pytest.raises(SystemExit, match=message):
            command("shop", "out3", **wrong)
    pack({"more": str(away / "a.png")}, store, StoreSettings(), part=Part())
    open_store.cache_clear()  # the next command is another process
    with pytest.raises(SystemExit, match="image_store was"):
        command("shop", "out", image_store=store)


def test_boxes_are_in_pixels_of_the_picture_that_was_packed(encoder, shop, monkeypatch):
    """A picture of 40 x 60 is stored at half its sides: the box halves with it."""
    store = packed(shop, max_pixels=20 * 30, quality=95)
    monkeypatch.chdir(shop)
    opened = Store(store)
    content = opened.read(opened.find_one("img/a.png"))
    small = {"images": [content], "boxes": [[5, 5, 20, 15]]}
    given = {"images": ["img/a.png"], "boxes": [[10, 10, 40, 30]]}
    np.testing.assert_array_equal(encoder.encode([given], image_store=store), encoder.encode([small]))
    assert np.abs(encoder.encode([given]) - encoder.encode([small])).max() > 1e-4  # the file itself


def test_what_the_store_lacks_is_read_from_its_file_and_counted_or_named(encoder, shop, monkeypatch, caplog):
    store = packed(shop)
    monkeypatch.chdir(shop)
    record = {"images": ["img/a.png", "img/c.png"]}  # c is there by its URL only
    with caplog.at_level(logging.WARNING):
        vectors = encoder.encode([record], image_store=store)
    assert "1 pictures are not in the image store" in caplog.text
    np.testing.assert_array_equal(vectors, encoder.encode([record]))
    with pytest.raises(DataError, match=r"images\[0\]: the image store .*store does not hold 'https://x/y\.png'"):
        encoder.encode([{"images": ["https://x/y.png"]}], image_store=store)
    with pytest.raises(DataError, match=r"record 0: images\[0\]: is a URL"):
        encoder.encode([{"images": [URL]}])
    with pytest.raises(DataError, match=r"image store .*lost: is none"):
        encoder.encode([record], image_store=shop / "lost")


def test_one_key_is_found_as_many_are(tmp_path, shop):
    opened = Store(packed(shop))
    keys = [URL, "img/a.png", "img/b.png", "img/c.png", "", "img/a.png "]
    assert [opened.find_one(key) for key in keys] == opened.find(keys).tolist()
    pack({}, tmp_path / "empty", StoreSettings(), part=Part())
    assert Store(tmp_path / "empty").find_one("a") == -1
