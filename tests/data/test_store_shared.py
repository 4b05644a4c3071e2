"""An image store that several machines write at once, that has lost a shard, or whose small files were changed."""

import json
import threading

import numpy as np
import pytest
from image_kinds import file, noise
from PIL import Image

from moon_jax import pack_images
from moon_jax.data import store, store_writer
from moon_jax.data.records import DataError
from moon_jax.data.store import Store
from moon_jax.data.store_encode import StoreSettings, encode
from moon_jax.data.store_pack import pack
from moon_jax.data.store_writer import Part, Shard


@pytest.fixture
def photos():
    """Key -> the bytes of 23 small JPEG files."""
    return {f"{i}.jpg": file(Image.fromarray(noise(20 + i, 30, seed=i)), "JPEG") for i in range(23)}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "store"


def put(pictures, folder, part=None):
    return pack(pictures, folder, StoreSettings(), part=part or Part(), shard_pictures=5)


def contents(folder):
    opened = Store(folder)
    return sorted(opened.read(row) for row in range(len(opened)))


def test_an_index_is_not_written_over_by_an_older_one(folder, photos, monkeypatch):
    """Part 0 has listed the shards when part 1 adds its own: the index at the end has both."""
    listed, go_on, names = threading.Event(), threading.Event(), store_writer.shard_names

    def slowly(where):
        found = names(where)
        if threading.current_thread() is first and len(found) > 0:
            listed.set()
            assert go_on.wait(30)
        return found

    monkeypatch.setattr(store_writer, "shard_names", slowly)
    first = threading.Thread(target=put, args=(photos, folder, Part(0, 2)))
    second = threading.Thread(target=put, args=(photos, folder, Part(1, 2)))
    first.start()
    assert listed.wait(30)
    second.start()
    second.join(1)  # long enough for all that it can do before the first goes on
    go_on.set()
    first.join(30)
    second.join(30)
    assert contents(folder) == sorted(photos.values())


def test_many_parts_at_once(folder, photos):
    threads = [threading.Thread(target=put, args=(photos, folder, Part(number, 6))) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert contents(folder) == sorted(photos.values())
    assert len(list(folder.glob("index-*.npy"))) == 1
    assert not list(folder.glob(".*unfinished*"))


def test_a_part_that_ends_while_others_are_at_work(tmp_path, folder, photos, monkeypatch, capsys):
    (tmp_path / "data").mkdir()
    rows = []
    for name, content in photos.items():
        (tmp_path / "data" / name).write_bytes(content)
        item = {"item_id": name, "title": name, "images": [name]}
        rows.append({"query": {"text": name}, "positive": item, "negative": None})
    (tmp_path / "data" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def pack_beside_another(*arguments, **options):
        done = pack(*arguments, **options)
        shard = Shard(folder, "001-000000")  # of the other part, which has not ended
        shard.add("other.jpg", encode(photos["0.jpg"], StoreSettings()))
        shard.finish()
        return done

    monkeypatch.setattr(pack_images, "pack", pack_beside_another)
    pack_images.FLAGS.parse(input=tmp_path / "data", output=folder, host="0/2")
    pack_images.main(["pack_images"])
    said = capsys.readouterr().out
    assert "pictures stored, 0 were there, 0 skipped; now" in said
    assert "in 1 shards" in said
    monkeypatch.undo()
    pack_images.FLAGS.parse(input=tmp_path / "data", output=folder)
    pack_images.main(["pack_images"])
    assert "visual tokens each" in capsys.readouterr().out
    assert len(Store(folder)) == 24


@pytest.mark.parametrize("left", [None, 0, 1, 0.5, -1])
def test_a_lost_or_cut_shard_is_named_and_can_be_stored_anew(folder, photos, left):
    put(photos, folder)
    path = folder / "000-000002.array_record"
    whole = path.read_bytes()
    path.unlink()
    if left is not None:
        path.write_bytes(whole[: int(left * len(whole)) if isinstance(left, float) else left])
    with pytest.raises(DataError, match=r"000-000002\.array_record: is damaged.*remove the two files of this shard"):
        put(photos, folder)
    for one in folder.glob("000-000002.*"):
        one.unlink()
    done = put(photos, folder)
    assert (done.stored, done.there_before) == (5, 18)
    assert contents(folder) == sorted(photos.values())


def test_a_shard_of_fewer_pictures_in_the_place_of_another(folder, photos):
    put(photos, folder)
    last, first = (folder / f"000-00000{number}.array_record" for number in (4, 0))
    first.write_bytes(last.read_bytes())  # three pictures, the lines say five
    with pytest.raises(DataError, match=r"000-000000\.array_record: is damaged"):
        put(photos, folder)


def test_a_table_that_was_changed_serves_no_picture(folder, photos):
    put(photos, folder)
    Store(folder)
    path = next(folder.glob("index-*.npy"))
    rows = np.load(path)
    keys = rows[["high", "low"]].copy()
    rows = rows[np.r_[1, 0, 2 : len(rows)]]
    rows["high"], rows["low"] = keys["high"], keys["low"]  # still in order, two pictures exchanged
    np.save(path, rows)
    with pytest.raises(DataError, match=r"index-.*\.npy: is damaged \(its checksum differs from index\.json"):
        Store(folder)
    put(photos, folder)
    assert contents(folder) == sorted(photos.values())


@pytest.mark.parametrize("lack", ["sha256", "rows", "pictures", "bytes", "shards", "format"])
@pytest.mark.parametrize("value", [None, [1.5]])
def test_an_index_that_lacks_something(folder, photos, lack, value):
    put(photos, folder)
    path = folder / store.INDEX
    index = json.loads(path.read_text())
    del index[lack]
    path.write_text(json.dumps(index | ({lack: value} if value else {})))
    with pytest.raises(DataError, match=r"index\.json: (is damaged|format)"):
        Store(folder)
    put(photos, folder)
    assert len(Store(folder)) == 23


@pytest.mark.parametrize("text", ["[]", "", "3", "{", "null", "[" * 100_000])
def test_settings_that_are_none(folder, photos, text):
    put(photos, folder)
    (folder / store.SETTINGS).write_text(text)
    with pytest.raises(DataError, match=r"settings\.json: .*another folder"):
        put(photos, folder)
    with pytest.raises(DataError, match=r"settings\.json: "):
        store_writer.seal(folder)
