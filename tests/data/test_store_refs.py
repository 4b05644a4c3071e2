"""Data sets that read their pictures from a store: the same batches as from files, and boxes that still fit."""

import dataclasses
import itertools
import json
import pathlib

import numpy as np
import pytest
from image_kinds import noise
from PIL import Image

from moon_jax import pack_images
from moon_jax.config import Config, DataConfig, ModelConfig, TrainConfig, VisionConfig
from moon_jax.data import catalogue, images, picture_files, sources, store_refs, tokenizer, views
from moon_jax.data.documents import Document
from moon_jax.data.pipeline import TrainBatches, stream
from moon_jax.data.records import DataError, ImageRef, training_texts
from moon_jax.data.sources import files
from moon_jax.data.store import PackedImage, Store
from moon_jax.data.store_encode import StoreSettings
from moon_jax.data.store_pack import pack
from moon_jax.data.store_writer import Part

VISION = VisionConfig(patch_size=4, window_size=16)
SMALL = {"min_pixels": 64, "max_pixels": 40 * 64}


def pack_all(config, folder, **settings):
    dataset = sources.read(config)
    pictures = store_refs.pictures_of(dataset, files.image_root(config))
    pack(pictures, folder, StoreSettings(**settings), part=Part(), shard_pictures=16)
    return dataset, dataclasses.replace(config, image_store=str(folder))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """(config of files, config of the store) for a drawn catalogue."""
    folder = tmp_path_factory.mktemp("drawn")
    catalogue.write(str(folder / "catalogue"), 12, seed=3)
    config = DataConfig(path=str(folder / "catalogue"), format="catalogue", **SMALL)
    return config, pack_all(config, folder / "store")[1]


def test_training_batches_are_the_same_as_from_files(drawn, tmp_path):
    plain, stored = drawn
    words = tokenizer.train_bpe(training_texts(sources.read(plain)), tmp_path, 500)
    got = []
    for data, workers in ((plain, 0), (stored, 0), (stored, 1)):
        data = dataclasses.replace(data, augment=True, workers=workers)
        config = Config(
            model=ModelConfig(vision=VISION), data=data, train=TrainConfig(batch_size=4, steps=3), moe=Config().moe
        )
        dataset = sources.read(data)
        images.check(dataset, data)
        batches = TrainBatches(dataset, words, config, 2, range(2))
        got.append([batch.arrays for _, batch in stream(batches, 0, 3, workers, 2)])
    for a, *others in zip(*got, strict=True):
        for b in others:
            assert a.keys() == b.keys()
            for name in a:
                np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_the_data_set_is_another_one_but_for_its_pictures(drawn):
    plain, stored = (sources.read(config) for config in drawn)
    assert plain.fingerprint != stored.fingerprint
    assert stored.report["pictures_not_in_store"] == 0
    refs = list(store_refs._refs(stored))
    assert len(refs) > 30
    assert all(isinstance(ref.path, PackedImage) for ref in refs)
    assert [ref.box for ref in refs] == [ref.box for ref in store_refs._refs(plain)]
    for triplet in (*stored.train, *stored.seen, *stored.unseen):
        assert triplet.positive is stored.products[triplet.positive.id]
    assert [t.id for t in plain.train] == [t.id for t in stored.train]
    store = Store(drawn[1].image_store)
    assert stored.report["pictures_in_store"] == len(store)
    assert len({ref.path.row for ref in refs}) == len(store)


def test_a_missing_store_is_said(drawn, tmp_path):
    with pytest.raises(DataError, match=r"image store .*nowhere: is none"):
        sources.read(dataclasses.replace(drawn[0], image_store=str(tmp_path / "nowhere")))


def write_rows(folder, pictures):
    rows = [
        {
            "id": str(i),
            "query": {"text": f"q{i}", "image": name, "bbox": box},
            "positive": {"item_id": f"p{i}", "title": f"t{i}"},
        }
        for i, (name, box) in enumerate(pictures)
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataConfig(path=str(folder), unseen_share=0.0)


def test_boxes_follow_pictures_that_were_scaled_down(tmp_path):
    """A red rectangle on white: the box of the file, carried over, still holds the rectangle and nothing else."""
    pixels = np.full((600, 900, 3), 255, np.uint8)
    pixels[120:420, 300:780] = (200, 0, 0)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    config = write_rows(tmp_path, [("a.png", [300, 120, 780, 420])])
    before, stored = pack_all(config, tmp_path / "store", max_pixels=60_000, quality=95)
    ref = sources.read(stored).train[0].query.image
    np.testing.assert_allclose(ref.box, [100, 40, 260, 140])  # a third
    core = np.asarray(views.crop(picture_files.load(ref.path), ref.box, 0.0), float)
    assert core.shape == (100, 160, 3)
    assert np.abs(core - (200, 0, 0)).mean() < 5
    assert before.train[0].query.image.box == (300.0, 120.0, 780.0, 420.0)


def test_keys_are_relative_so_that_a_data_set_can_move(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "sub").mkdir(parents=True)
    outside = tmp_path / "outside.png"
    for path in (here / "sub/a.png", outside):
        Image.fromarray(noise(30, 30)).save(path)
    config = write_rows(here, [("sub/../sub/a.png", None), (str(outside), None), ("https://shop/x.jpg", None)])
    dataset = sources.read(config)
    assert set(store_refs.pictures_of(dataset, here)) == {"sub/a.png", str(outside)}
    _, stored = pack_all(config, tmp_path / "store")
    here.rename(there)
    moved = sources.read(dataclasses.replace(stored, path=str(there)))
    paths = [t.query.image.path for t in moved.train]
    assert [isinstance(path, PackedImage) for path in paths] == [True, True, False]
    assert (moved.report["pictures_in_store"], moved.report["pictures_not_in_store"]) == (2, 1)
    with pytest.raises(picture_files.ImageError, match=r"https://shop/x\.jpg: no such picture.*moon_jax\.download"):
        picture_files.load(paths[2])
    with pytest.raises(picture_files.ImageError, match="1 of 3 pictures cannot be used"):
        images.check(moved, stored)


def test_pictures_inside_other_files_are_packed(moon_data, tmp_path):
    config = DataConfig(path=str(moon_data / "formats/muge"), format="muge", unseen_share=0.0)
    dataset, stored = pack_all(config, tmp_path / "store")
    plain, now = list(store_refs._refs(dataset)), list(store_refs._refs(sources.read(stored)))
    assert len(plain) == len(now) > 0
    for a, b in zip(plain, now, strict=True):
        assert not isinstance(a.path, (str, PackedImage))
        assert b.path.read() == a.path.read()
        assert not b.path.key.startswith("/")


def test_tokens_and_grids_come_from_the_index(tmp_path):
    sizes = [(30, 30), (200, 40), (61, 300), (1, 1), (10, 700), (500, 500)]
    for number, (high, wide) in enumerate(sizes):
        Image.fromarray(noise(high, wide)).save(tmp_path / f"{number}.png")
    config = write_rows(tmp_path, [(f"{number}.png", None) for number in range(len(sizes))])
    config = dataclasses.replace(config, **SMALL)
    _, stored = pack_all(config, tmp_path / "store", max_pixels=1500)  # less than the settings allow
    store = Store(tmp_path / "store")
    counts = store_refs.tokens(store, config, VISION)
    for triplet in sources.read(stored).train:
        document = Document((ImageRef(triplet.query.image.path),))
        (picture,) = images.pictures(document, config, VISION)
        row = triplet.query.image.path.row
        assert len(picture.patches) == counts[row] * VISION.spatial_merge_size**2
        for shard in (tmp_path / "store").glob("*.array_record"):
            shard.rename(shard.with_suffix(".away"))  # without the pictures themselves
        assert images.grids(document, config, VISION) == [(picture.grid, picture.role)]
        for shard in (tmp_path / "store").glob("*.away"):
            shard.rename(shard.with_suffix(".array_record"))


def test_the_command(tmp_path, capsys, monkeypatch):
    for name in ("a", "b"):
        Image.fromarray(noise(30, 30)).save(tmp_path / f"{name}.png")
    (tmp_path / "b.png").write_bytes(b"<html>")
    write_rows(tmp_path, [("a.png", None), ("b.png", None)])

    def command(**given):
        pack_images.FLAGS.parse(input=tmp_path, output=tmp_path / "store", **given)
        pack_images.main(["pack_images"])

    with pytest.raises(SystemExit, match=r"picture b\.png: .*cannot be read.*--on_error=skip"):
        command(on_error="raise")
    command(on_error="skip", max_skipped_share=0.5)
    assert "1 pictures stored, 0 were there, 1 skipped; now 1 in 1 shards" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="quality was 90, is 50"):
        command(quality=50, on_error="skip", max_skipped_share=0.5)
    command(quality=90, on_error="skip", max_skipped_share=0.5)
    assert "0 pictures stored, 1 were there" in capsys.readouterr().out


def test_real_photos_keep_their_pixels(moon_data, tmp_path):
    config = DataConfig(path=str(moon_data), parts=("luma",), unseen_share=0.0)
    pictures = dict(itertools.islice(store_refs.pictures_of(sources.read(config), moon_data).items(), 60))
    assert len(pictures) == 60
    pack(pictures, tmp_path / "store", StoreSettings(), part=Part())
    store = Store(tmp_path / "store")
    for row, path in zip(store.find(list(pictures)), pictures.values(), strict=True):
        assert store.read(row) == pathlib.Path(path).read_bytes()
