"""Which files of a folder are its tensors: shards and their index, links, what a stranger may forge of them."""

import json
import os
import pathlib

import numpy as np
import pytest
from safetensors.numpy import save_file

from moon_jax.weights.source import WeightsError
from moon_jax.weights.tensors import Tensors, regular_file


def random(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def open_folder(folder):
    with Tensors(folder):
        pass


# Shards -------------------------------------------------------------------------------------------------------------


def write_index(folder, weight_map):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def write_shards(folder):
    folder.mkdir(exist_ok=True)
    save_file({"a": random((2, 3)), "b": random((4,))}, folder / "one.safetensors")
    save_file({"c": random((5,))}, folder / "two.safetensors")
    index = {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"}
    write_index(folder, index)
    return index


def test_shards_are_one_folder_of_tensors(tmp_path):
    write_shards(tmp_path)
    with Tensors(tmp_path) as tensors:
        assert tensors.shapes == {"a": (2, 3), "b": (4,), "c": (5,)}
        np.testing.assert_array_equal(tensors.read("c", (slice(1, 3),)), random((5,))[1:3])


def test_the_files_are_closed(tmp_path):
    write_shards(tmp_path)
    count = lambda: len(os.listdir("/proc/self/fd"))  # noqa: E731
    before = count()
    with Tensors(tmp_path):
        assert count() == before + 2
    assert count() == before
    tensors = Tensors(tmp_path)
    del tensors
    assert count() == before
    (tmp_path / "two.safetensors").write_bytes(b"")
    with pytest.raises(WeightsError):
        Tensors(tmp_path)
    assert count() == before


def test_everything_that_is_wrong_with_shards_is_named_at_once(tmp_path):
    index = write_shards(tmp_path)
    save_file({"d": random((5,))}, tmp_path / "three.safetensors")
    (tmp_path / "three.safetensors").write_bytes((tmp_path / "three.safetensors").read_bytes()[:-1])
    (tmp_path / "out.safetensors").symlink_to("/dev/null")
    os.mkfifo(tmp_path / "pipe.safetensors")  # opening one waits for a writer
    more = {"d": "three.safetensors", "e": "four.safetensors", "f": "out.safetensors", "g": "pipe.safetensors"}
    write_index(tmp_path, index | more)
    with pytest.raises(WeightsError) as error:
        open_folder(tmp_path)
    lines = str(error.value).splitlines()
    assert len(lines) == 5
    assert "  - three.safetensors is broken or cut short: the header describes 20 bytes, the file has 19" in lines
    assert "  - four.safetensors is not there" in lines
    assert "  - pipe.safetensors is not a regular file" in lines
    assert "out.safetensors is a link that leads out of the folder, to /dev/null" in str(error.value)


def test_shards_that_disagree_with_their_index(tmp_path):
    index = write_shards(tmp_path)
    write_index(tmp_path, index | {"a": "two.safetensors", "x": "one.safetensors"})
    with pytest.raises(WeightsError) as error:
        open_folder(tmp_path)
    assert "a is not in two.safetensors, where the index has it" in str(error.value)
    assert "x is not in one.safetensors, where the index has it" in str(error.value)
    write_index(tmp_path, {n: s for n, s in index.items() if n != "b"})
    with pytest.raises(WeightsError, match=r"b is in one\.safetensors, but not in the index"):
        open_folder(tmp_path)


def test_a_tensor_in_two_shards(tmp_path):
    write_shards(tmp_path)
    save_file({"c": random((5,)), "b": random((4,), seed=1)}, tmp_path / "two.safetensors")
    with pytest.raises(WeightsError, match=r"b is in several shards: one\.safetensors, two\.safetensors"):
        open_folder(tmp_path)


def test_an_index_with_one_name_twice(tmp_path):
    """A JSON reader keeps the last one; the file says two things."""
    write_shards(tmp_path)
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(path.read_text().replace('"c":', '"b": "two.safetensors", "c":'))
    with pytest.raises(WeightsError, match="named twice: b"):
        open_folder(tmp_path)


@pytest.mark.parametrize(
    "shard",
    ["../one.safetensors", "/etc/one.safetensors", "sub/one.safetensors", "..\\m.safetensors", "C:m.safetensors",
     "m.bin", "one.safetensors\0", "", 3, None, ["one.safetensors"]],
)  # fmt: skip
def test_a_shard_lies_in_the_folder_and_is_safetensors(tmp_path, shard):
    index = write_shards(tmp_path / "a")
    write_shards(tmp_path)
    write_index(tmp_path / "a", index | {"c": shard})
    with pytest.raises(WeightsError, match=r"the plain name of a \.safetensors file|is no index") as error:
        open_folder(tmp_path / "a")
    assert repr(shard) in str(error.value) or isinstance(shard, list)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "3", '{"weight_map": 3}', '{"metadata": {}}', '{"weight_map": {"a": {}}}', "[" * 100_000, "\xff"],
)
def test_an_index_that_is_none(tmp_path, text):
    write_shards(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(text, encoding="latin-1")
    with pytest.raises(WeightsError, match="is no index of shards"):
        open_folder(tmp_path)


# Folders ------------------------------------------------------------------------------------------------------------


def test_a_folder_without_anything_to_read(tmp_path):
    save_file({"a": random((2,))}, tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(WeightsError, match=r"has model-00001-of-00002.safetensors, but neither"):
        open_folder(tmp_path)
    (tmp_path / "model-00001-of-00002.safetensors").rename(tmp_path / "pytorch_model.bin")
    (tmp_path / "consolidated.00.pth").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"only pickle files \(consolidated.00.pth, pytorch_model.bin\)"):
        open_folder(tmp_path)
    for name in ("pytorch_model.bin", "consolidated.00.pth"):
        (tmp_path / name).unlink()
    with pytest.raises(WeightsError, match="neither"):
        open_folder(tmp_path)
    with pytest.raises(WeightsError, match="is not a folder"):
        open_folder(tmp_path / "nowhere")


def test_two_models_in_one_folder(tmp_path):
    write_shards(tmp_path)
    save_file({"a": random((2,))}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="which may be two models"):
        open_folder(tmp_path)


# Links --------------------------------------------------------------------------------------------------------------


def download_cache(tmp_path):
    """A snapshot folder as a Hugging Face download makes it, and the cache."""
    cache = tmp_path / "models--x--y"
    (cache / "blobs").mkdir(parents=True)
    snapshot = cache / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    save_file({"a": random((2, 3))}, cache / "blobs" / "f00d")
    (snapshot / "model.safetensors").symlink_to(pathlib.Path("../../blobs/f00d"))
    return snapshot, cache


def test_links_of_a_download_cache_are_followed(tmp_path):
    snapshot, _ = download_cache(tmp_path)
    with Tensors(snapshot) as tensors:
        np.testing.assert_array_equal(tensors.read("a"), random((2, 3)))
    (tmp_path / "model").symlink_to(snapshot)  # the folder itself may be a link
    open_folder(tmp_path / "model")


def test_links_within_the_folder_are_followed(tmp_path):
    save_file({"a": random((2, 3))}, tmp_path / "weights")
    (tmp_path / "model.safetensors").symlink_to("weights")
    open_folder(tmp_path)


@pytest.mark.parametrize(
    "target", ["../secret", "{cache}/secret", "../../secret", "../0123abcd/secret", "../../refs/secret"]
)
def test_links_out_of_the_folder_are_refused(tmp_path, target):
    snapshot, cache = download_cache(tmp_path)
    for place in (snapshot.parent, cache, snapshot.parent / "0123abcd", cache / "refs"):
        place.mkdir(exist_ok=True)
        save_file({"a": random((2, 3))}, place / "secret")
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(target.format(cache=cache))
    with pytest.raises(WeightsError, match=r"model\.safetensors is a link that leads out of the folder, to .*secret"):
        open_folder(snapshot)


def test_a_link_through_blobs_and_out_again_is_refused(tmp_path):
    snapshot, cache = download_cache(tmp_path)
    (cache / "blobs" / "evil").symlink_to("/etc/passwd")
    (snapshot / "x").symlink_to("../../blobs/evil")
    with pytest.raises(WeightsError, match="to /etc/passwd"):
        regular_file(snapshot, "x")


def test_links_that_lead_nowhere(tmp_path):
    (tmp_path / "model.safetensors").symlink_to("absent")
    with pytest.raises(WeightsError, match=r"model\.safetensors is not there"):
        open_folder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").symlink_to("model.safetensors")
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        open_folder(tmp_path)
    write_shards(tmp_path / "shards")
    os.rename(tmp_path / "shards" / "model.safetensors.index.json", tmp_path / "index")
    (tmp_path / "shards" / "model.safetensors.index.json").symlink_to(tmp_path / "index")
    with pytest.raises(WeightsError, match=r"model\.safetensors\.index\.json is a link that leads out"):
        open_folder(tmp_path / "shards")
