"""Pictures out of a packed store against their files, damage of every kind, and work that was interrupted."""

import concurrent.futures
import dataclasses
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from image_kinds import KINDS, file, noise
from PIL import Image

from moon_jax.data import picture_files, store, store_encode, store_writer
from moon_jax.data.records import DataError
from moon_jax.data.store import PackedImage, Store
from moon_jax.data.store_encode import StoreSettings
from moon_jax.data.store_pack import pack
from moon_jax.data.store_writer import Part


@pytest.fixture
def photos(tmp_path):
    """Key -> path of 23 small JPEG files."""
    out = {}
    (tmp_path / "photos").mkdir()
    for number in range(23):
        path = tmp_path / "photos" / f"{number}.jpg"
        path.write_bytes(file(Image.fromarray(noise(20 + number, 30, seed=number)), "JPEG"))
        out[f"photos/{number}.jpg"] = str(path)
    return out


def put(pictures, folder, **changes):
    options = {"settings": StoreSettings(), "part": Part(), "shard_pictures": 5} | changes
    return pack(pictures, folder, options.pop("settings"), **options)


def packed(folder, key):
    row = int(Store(folder).find([key])[0])
    assert row >= 0, key
    return PackedImage(str(folder), row, key)


def contents(folder):
    opened = Store(folder)
    return sorted(opened.read(row) for row in range(len(opened)))


def files_of(photos):
    out = []
    for path in photos.values():
        with open(path, "rb") as opened:
            out.append(opened.read())
    return sorted(out)


def test_every_kind_of_picture_gives_the_pixels_of_its_file(tmp_path):
    pictures, shown = {}, {}
    for name, make in KINDS.items():
        content, shown[name] = make()
        (tmp_path / name).write_bytes(content)
        pictures[name] = str(tmp_path / name)
    done = put(pictures, tmp_path / "store", shard_pictures=7)
    assert (done.stored, done.skipped) == (len(KINDS), 0)
    for name, pixels in shown.items():
        there = pickle.loads(pickle.dumps(packed(tmp_path / "store", name)))
        np.testing.assert_array_equal(np.asarray(picture_files.load(there)), pixels, err_msg=name)
        assert there.size == pixels.shape[1::-1] == picture_files.upright_size(there), name


def test_a_file_larger_than_its_pixels_becomes_a_png(tmp_path):
    content = file(Image.fromarray(noise(40, 50)), "JPEG", comment=b"x" * 60_000, exif=b"Exif\0\0" + b"y" * 60_000)
    assert len(content) > 3 * 40 * 50 + store_encode.NOTES_BYTES
    stored = store_encode.encode(content, StoreSettings())
    assert len(stored.content) < 10_000
    np.testing.assert_array_equal(picture_files.load(stored.content), picture_files.load(content))


def test_keep_jpeg_turns_other_files_into_jpeg_and_leaves_jpeg_alone(tmp_path):
    settings = StoreSettings(keep="jpeg", quality=95)
    y, x = np.mgrid[:120, :90]
    pixels = Image.fromarray(np.stack([x * 2, y * 2, 255 - x - y], -1).astype(np.uint8))  # smooth, in all colours
    jpeg, png = file(pixels, "JPEG", quality=60), file(pixels, "PNG")
    assert store_encode.encode(jpeg, settings).content == jpeg
    stored = store_encode.encode(png, settings).content
    assert stored.startswith(b"\xff\xd8\xff")
    error = np.asarray(picture_files.load(stored), float) - np.asarray(pixels, float)
    assert 0 < np.abs(error).max() <= 4


@pytest.mark.parametrize("size", [(2000, 1500), (5000, 3), (1, 40_000), (1024, 1025)])
def test_large_pictures_are_scaled_down(size):
    wide, high = size
    y, x = np.mgrid[:high, :wide]
    smooth = np.stack([x * 255 / wide, y * 255 / high, (x + y) * 255 / (wide + high)], -1).astype(np.uint8)
    stored = store_encode.encode(file(Image.fromarray(smooth), "PNG"), StoreSettings(max_pixels=10_000))
    image = picture_files.load(stored.content)
    assert stored.size == image.size
    assert stored.source_size == size
    assert image.width * image.height <= 10_000
    assert image.width * image.height > 9_000 or min(image.size) == 1 or max(size) / min(size) > 50
    if min(image.size) > 1:  # the same picture: a smooth one is known at every size
        v, u = np.mgrid[: image.height, : image.width]
        across, down = (u + 0.5) / image.width * wide - 0.5, (v + 0.5) / image.height * high - 0.5
        expected = np.stack([across * 255 / wide, down * 255 / high, (across + down) * 255 / (wide + high)], -1)
        assert np.abs(np.asarray(image, float) - expected).max() < 8
    assert max(store_encode.encode(Image.new("RGB", (40_000, 2)), StoreSettings()).size) <= store_encode.MAX_SIDE_PX


def test_rows_are_found_and_only_those(tmp_path, photos):
    put(photos, tmp_path / "store")
    opened = Store(tmp_path / "store")
    rows = opened.find(["nothing", *photos, "", "photos/0.jpg "])
    assert rows[0] == rows[-1] == rows[-2] == -1
    assert sorted(rows[1:-2]) == list(range(23))
    for row, path in zip(rows[1:-2], photos.values(), strict=True):
        with open(path, "rb") as source:
            assert opened.read(row) == source.read()
    empty = put({}, tmp_path / "empty")
    assert (empty.stored, len(Store(tmp_path / "empty"))) == (0, 0)
    assert Store(tmp_path / "empty").find(["a"]).tolist() == [-1]


def test_keys_that_share_half_of_their_digest(tmp_path, photos, monkeypatch):
    """Nobody can wait for such keys to occur, so the digest is made a bad one."""

    def half(keys):
        out = [(7 if key < "photos/5" else 9, int(key[7:].split(".")[0]) if key[7:8].isdigit() else 99) for key in keys]
        return np.array(out, np.uint64).reshape(-1, 2)

    for module in (store, store_writer, sys.modules[pack.__module__]):
        monkeypatch.setattr(module, "digests", half)
    put(photos, tmp_path / "store")
    opened = Store(tmp_path / "store")
    rows = opened.find([*photos, "other"])
    assert rows[-1] == -1
    for row, path in zip(rows, photos.values(), strict=False):
        with open(path, "rb") as source:
            assert opened.read(row) == source.read()


def test_threads_read_at_the_same_time(tmp_path, photos, monkeypatch):
    monkeypatch.setattr(store, "_OPEN_SHARDS", 2)  # of five: they are closed while others read
    put(photos, tmp_path / "store")
    opened = Store(tmp_path / "store")
    expected = [opened.read(row) for row in range(23)]

    def work(seed):
        rows = np.random.default_rng(seed).integers(0, 23, 400)
        return [opened.read(row) for row in rows] == [expected[row] for row in rows]

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(6)))


def test_no_flipped_bit_gives_wrong_pixels(tmp_path, photos):
    folder = tmp_path / "store"
    put(photos, folder, shard_pictures=50)
    expected = [Store(folder).read(row) for row in range(23)]
    path = folder / "000-000000.array_record"
    good, rng = path.read_bytes(), np.random.default_rng(0)
    inside = [good.index(content) + int(rng.integers(len(content))) for content in expected]
    for at in (*inside, *rng.integers(0, len(good), 60)):
        damaged = bytearray(good)
        damaged[at] ^= 1 << int(at % 8)
        path.write_bytes(damaged)
        opened, unreadable = Store(folder), []
        for row in range(23):
            try:
                assert opened.read(row) == expected[row]
            except DataError:
                unreadable.append(row)
        assert at not in inside or inside.index(at) in unreadable
    path.write_bytes(bytes(len(good)))
    there = packed(folder, "photos/3.jpg")
    with pytest.raises(picture_files.ImageError, match=r"photos/3\.jpg \(in the image store .*000-000000"):
        picture_files.load(there)


def test_shards_that_are_cut_missing_or_exchanged(tmp_path, photos):
    folder = tmp_path / "store"
    put(photos, folder)
    first, second = (folder / f"000-00000{i}.array_record" for i in range(2))
    opened = Store(folder)
    row = int(np.flatnonzero(opened.rows["shard"] == 0)[0])
    a, b = first.read_bytes(), second.read_bytes()
    for content in (b, a[: len(a) // 2], b""):
        first.write_bytes(content)
        with pytest.raises(DataError, match=r"000-000000\.array_record, record \d+: "):
            Store(folder).read(row)
    first.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        Store(folder).read(row)


def test_an_index_that_does_not_fit_is_refused(tmp_path, photos):
    folder = tmp_path / "store"
    with pytest.raises(DataError, match="is none"):
        Store(folder)
    put(photos, folder)
    shutil.copytree(folder, tmp_path / "copy")
    (folder / "000-000002.jsonl").unlink()
    with pytest.raises(DataError, match="a shard was removed, or"):
        Store(folder)
    shutil.copytree(tmp_path / "copy", folder, dirs_exist_ok=True)
    (folder / store.INDEX).unlink()
    with pytest.raises(DataError, match="is not finished: run the command that writes it again"):
        Store(folder)
    shutil.copytree(tmp_path / "copy", folder, dirs_exist_ok=True)
    table = next(folder.glob("index-*.npy"))
    table.write_bytes(table.read_bytes()[:-30])
    with pytest.raises(DataError, match="the index of the store is damaged"):
        Store(folder)
    shutil.copytree(tmp_path / "copy", folder, dirs_exist_ok=True)
    index = json.loads((folder / store.INDEX).read_text())
    (folder / store.INDEX).write_text(json.dumps(index | {"format": 9}))
    with pytest.raises(DataError, match="format 9, this version reads 1"):
        Store(folder)
    (folder / store.INDEX).write_text("{")
    with pytest.raises(DataError, match="is damaged"):
        Store(folder)
    (folder / "000-000001.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match=r"000-000001\.jsonl:1: is damaged.*remove the two files of this shard"):
        put(photos, folder)
    for path in folder.glob("000-000001.*"):
        path.unlink()
    assert put(photos, folder).stored == 5
    assert contents(folder) == files_of(photos)


def test_broken_pictures_follow_the_policy(tmp_path, photos):
    broken = {"cut.jpg": files_of(photos)[0][:300], "page.jpg": b"<!doctype html><title>gone</title>", "empty.jpg": b""}
    bad = dict(photos)
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
        bad[name] = str(tmp_path / name)
    bad["lost.jpg"] = str(tmp_path / "lost.jpg")
    with pytest.raises(DataError, match=r"picture (cut|page|empty|lost)\.jpg: .*--on_error=skip"):
        put(bad, tmp_path / "raise")
    with pytest.raises(DataError, match=r"\d of 27 pictures cannot be used.*max_skipped_share = 0\.1"):
        put(bad, tmp_path / "share", on_error="skip", max_skipped_share=0.1)
    done = put(bad, tmp_path / "store", on_error="skip", max_skipped_share=0.15)
    assert (done.stored, done.skipped) == (23, 4)
    journal = [json.loads(line) for line in (tmp_path / "store" / "skipped-000.jsonl").read_text().splitlines()]
    assert sorted(line["key"] for line in journal) == ["cut.jpg", "empty.jpg", "lost.jpg", "page.jpg"]
    assert all(line["reason"] for line in journal)
    shutil.copy(tmp_path / "photos/0.jpg", tmp_path / "lost.jpg")  # repaired: the next run takes it up
    done = put(bad, tmp_path / "store", on_error="skip", max_skipped_share=0.15)
    assert (done.stored, done.there_before, done.skipped) == (1, 23, 3)


def test_workers_and_machines_share_the_work(tmp_path, photos):
    alone = put(photos, tmp_path / "alone")
    put(photos, tmp_path / "workers", workers=2)
    assert contents(tmp_path / "workers") == contents(tmp_path / "alone") == files_of(photos)
    counts = [put(photos, tmp_path / "parts", part=Part(number, 3)).stored for number in range(3)]
    assert sum(counts) == 23
    assert min(counts) > 0
    assert Store(tmp_path / "parts").index["bytes"] == alone.index["bytes"]
    assert contents(tmp_path / "parts") == files_of(photos)
    assert Part.parse("2/3") == Part(2, 3)
    for wrong in ("3/3", "1", "0/0", "a/b", "-1/2"):
        with pytest.raises(DataError, match="NUMBER/OF"):
            Part.parse(wrong)


def test_other_settings_other_files_and_other_writers_are_refused(tmp_path, photos):
    folder = tmp_path / "store"
    put(photos, folder)
    with pytest.raises(DataError, match="quality was 90, is 80"):
        put(photos, folder, settings=StoreSettings(quality=80))
    with (
        store_writer.writing(folder, StoreSettings(), Part()),
        pytest.raises(DataError, match="another process writes part 0"),
    ):
        put(photos, folder)
    with pytest.raises(DataError, match="holds other files"):
        put(photos, tmp_path / "photos")
    for wrong in ({"quality": 0}, {"max_pixels": 0}, {"keep": "some"}):
        with pytest.raises(DataError, match="image store: "):
            StoreSettings(**wrong)


def test_a_store_grows(tmp_path, photos):
    folder = tmp_path / "store"
    some = dict(list(photos.items())[:9])
    assert put(some, folder).stored == 9
    before = Store(folder).digest
    (folder / ".000-000077.array_record.unfinished").write_bytes(b"of a program that was killed")
    done = put(photos, folder)
    assert (done.stored, done.there_before) == (14, 9)
    assert contents(folder) == files_of(photos)
    assert Store(folder).digest != before
    assert len(list(folder.glob("index-*.npy"))) == 1
    assert not list(folder.glob(".*unfinished*"))
    same = put(photos, folder)
    assert (same.stored, same.index["sha256"]) == (0, done.index["sha256"])


SLOW = """
import sys, time
from moon_jax.data import store_encode, store_pack
def slowly(*arguments):
    time.sleep(0.05)
    return store_encode.encode(*arguments)
store_pack.encode = slowly
folder, pictures = sys.argv[1], dict(zip(sys.argv[2::2], sys.argv[3::2]))
import pathlib
store_pack.pack(pictures, pathlib.Path(folder), store_encode.StoreSettings(), part=store_pack.Part(), shard_pictures=5)
"""


@pytest.mark.parametrize("name", ["SIGKILL", "SIGINT"])
def test_a_killed_program_goes_on(tmp_path, photos, name):
    folder = tmp_path / "store"
    arguments = [word for pair in photos.items() for word in pair]
    process = subprocess.Popen([sys.executable, "-c", SLOW, str(folder), *arguments], stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while len(list(folder.glob("*.jsonl"))) < 3 and time.monotonic() < until:  # the journal and two shards
        time.sleep(0.01)
    os.kill(process.pid, getattr(signal, name))
    process.wait()
    shards = len(store.shard_names(folder))
    assert 2 <= shards < 5
    with pytest.raises(DataError, match="not finished"):
        Store(folder)
    done = put(photos, folder)
    assert (done.there_before, done.stored) == (5 * shards, 23 - 5 * shards)
    assert contents(folder) == files_of(photos)
    assert not list(folder.glob("*.unfinished*")) + list(folder.glob(".*.unfinished*"))


def test_settings_of_a_row(tmp_path):
    """The table that the index is, by its fields."""
    (tmp_path / "a.png").write_bytes(file(Image.fromarray(noise(300, 200)), "PNG"))
    put({"a.png": str(tmp_path / "a.png")}, tmp_path / "store", settings=StoreSettings(max_pixels=15_000))
    row = Store(tmp_path / "store").rows[0]
    assert (row["source_width"], row["source_height"], row["width"], row["height"]) == (200, 300, 100, 150)
    assert dataclasses.asdict(StoreSettings(max_pixels=15_000)).items() <= Store(tmp_path / "store").index.items()
