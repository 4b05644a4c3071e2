"""Any slice of a file is that of the whole, little beyond it is read, and what a stranger may forge is refused."""

import json
import os
import pathlib
import resource

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from moon_jax.weights import tensors as tensors_module
from moon_jax.weights.source import WeightsError
from moon_jax.weights.tensors import Tensors, regular_file

BF16 = np.dtype(ml_dtypes.bfloat16)


def random(shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def open_folder(folder):
    with Tensors(folder):
        pass


# Reading ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seek", [1, 64, 1 << 18])
@pytest.mark.parametrize("buffer", [1, 100, 1 << 23])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, BF16])
def test_any_slice_is_that_of_the_whole(tmp_path, monkeypatch, seek, buffer, dtype):
    monkeypatch.setattr(tensors_module, "_SEEK_BYTES", seek)
    monkeypatch.setattr(tensors_module, "_BUFFER_BYTES", buffer)
    stored = {
        "a": random((3, 4, 5, 6), dtype), "b": random((7,), dtype), "scalar": random((), dtype),
        "none": random((0, 3), dtype),
    }  # fmt: skip
    save_file(stored, tmp_path / "model.safetensors")
    rng = np.random.default_rng(seek + buffer)
    with Tensors(tmp_path) as tensors:
        assert tensors.shapes == {name: x.shape for name, x in stored.items()}
        for name, x in stored.items():
            for length in [*range(x.ndim + 1)] * 4:
                bounds = [sorted(rng.integers(-n - 2, n + 3, 2)) for n in x.shape[:length]]
                index = tuple(slice(int(low), int(high)) for low, high in bounds)
                got = tensors.read(name, index)
                assert got.dtype == dtype
                assert got.flags.c_contiguous
                assert got.flags.owndata
                np.testing.assert_array_equal(got, x[index], err_msg=f"{name} {index}")
        folded = tensors.read("a", (slice(2, 9), slice(1, 3)), shape=(12, 5, 6))
        np.testing.assert_array_equal(folded, stored["a"].reshape(12, 5, 6)[2:9, 1:3])


def test_what_is_no_slice_of_it(tmp_path):
    save_file({"a": random((4, 6))}, tmp_path / "model.safetensors")
    with Tensors(tmp_path) as tensors:
        for index, shape in (
            ((slice(0, 4, 2),), None), ((slice(None),) * 3, None), ((), (5, 5)), ((slice(None, None, -1),), None),
        ):  # fmt: skip
            with pytest.raises(ValueError, match="a"):
                tensors.read("a", index, shape)
        with pytest.raises(KeyError):
            tensors.read("b")


def count_reads(monkeypatch):
    """The (length, offset) of every read, on top of the real one."""
    calls, real = [], os.preadv

    def preadv(fd, buffers, offset):
        calls.append((sum(map(len, buffers)), offset))
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    return calls


def test_only_the_slice_is_read(tmp_path, monkeypatch):
    x = random((4, 1024, 512))  # a row of the last axis has 2 KiB, of the one before 2 MiB
    save_file({"x": x}, tmp_path / "model.safetensors")
    with Tensors(tmp_path) as tensors:
        calls = count_reads(monkeypatch)
        for index, reads, size in (
            ((slice(1, 3),), 1, 4 << 20),
            ((slice(1, 3), slice(0, 512)), 2, 2 << 20),  # a stretch in either layer
            ((slice(3, 4), slice(7, 9)), 1, 4 << 10),
            ((slice(0, 4), slice(7, 9)), 4, 16 << 10),
            ((slice(0, 2), slice(0, 1024), slice(0, 8)), 1, 4 << 20),  # short pieces: with what lies between them
        ):
            calls.clear()
            np.testing.assert_array_equal(tensors.read("x", index), x[index])
            assert (len(calls), sum(n for n, _ in calls)) == (reads, size), index


def test_reading_maps_no_file_into_memory(tmp_path):
    """Pages of mapped files count as memory of the process, "RssFile"."""
    save_file({"x": np.zeros((64, 1 << 18), np.float32)}, tmp_path / "model.safetensors")

    def mapped_kib():
        lines = pathlib.Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssFile"))

    before = mapped_kib()
    with Tensors(tmp_path) as tensors:
        for i in range(64):
            tensors.read("x", (slice(i, i + 1),))
        assert mapped_kib() - before < 8 << 10  # of 64 MiB


def test_short_reads_and_signals_are_gone_on_with(tmp_path, monkeypatch):
    x, real = random((100, 100)), os.preadv
    save_file({"x": x}, tmp_path / "model.safetensors")
    with Tensors(tmp_path) as tensors:
        monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: real(fd, [buffers[0][:333]], offset))
        np.testing.assert_array_equal(tensors.read("x"), x)


def test_a_file_that_became_shorter_after_it_was_opened(tmp_path):
    save_file({"x": random((100, 100))}, tmp_path / "model.safetensors")
    with Tensors(tmp_path) as tensors:
        os.truncate(tmp_path / "model.safetensors", 20_000)
        with pytest.raises(WeightsError, match=r"x cannot be read from .*too early"):
            tensors.read("x")


def test_other_dtypes_open_but_are_not_read(tmp_path):
    save_file({"x": np.ones(3), "y": np.ones(3, np.float32), "n": np.arange(4)}, tmp_path / "model.safetensors")
    with Tensors(tmp_path) as tensors:
        assert tensors.dtypes == {"x": "F64", "y": "F32", "n": "I64"}
        with pytest.raises(WeightsError, match=r"x in .* is stored as F64"):
            tensors.read("x")
        assert tensors.read("y").tolist() == [1, 1, 1]


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


# Forged files -------------------------------------------------------------------------------------------------------


def write_raw(folder, header, data=b"", length=None, name="model.safetensors"):
    """A safetensors file of a header that nobody checked."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / name).write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)


def entry(start, end, shape=None, dtype="F32"):
    return {"dtype": dtype, "shape": [(end - start) // 4] if shape is None else shape, "data_offsets": [start, end]}


def test_the_hand_made_file_is_read(tmp_path):
    """So that the forged ones below are refused for what is forged in them."""
    data = np.arange(4, dtype=np.float32).tobytes()
    write_raw(tmp_path, {"__metadata__": {"a": "b"}, "x": entry(0, 8), "y": entry(8, 16)}, data)
    with Tensors(tmp_path) as tensors:
        assert tensors.shapes.keys() == {"x", "y"}
        assert tensors.read("y").tolist() == [2, 3]


DEFECTS = {
    "empty": (b"", b"", 0, "is not JSON|Expecting value|cannot hold"),
    "longer than the file": ({"x": entry(0, 8)}, bytes(8), 1 << 20, "cannot hold its header"),
    "no length at all": ({"x": entry(0, 8)}, bytes(8), (1 << 63) + 5, "cannot hold its header"),
    "no JSON": (b'{"x": ', b"", None, "Expecting value"),
    "no UTF-8": (b'{"\xff": 1}', b"", None, "decode"),
    "no object": ([1, 2], b"", None, "not a JSON object"),
    "nested": (b"[" * 200_000, b"", None, "nested too deeply"),
    "named twice": (b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"x":{"dtype":"F32","shape":[1],'
                    b'"data_offsets":[0,4]}}', bytes(4), None, "named twice: x"),
    "shape named twice": (b'{"x":{"dtype":"F32","shape":[1],"shape":[1],"data_offsets":[0,4]}}', bytes(4), None,
                          "named twice: shape"),
    "no entry": ({"x": 3}, b"", None, "x has no dtype, shape and data_offsets"),
    "three offsets": ({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}, bytes(4), None, "x has no"),
    "a shape of words": ({"x": {"dtype": "F32", "shape": ["1"], "data_offsets": [0, 4]}}, bytes(4), None, "cannot be"),
    "a shape of fractions": ({"x": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}, bytes(4), None, "cannot"),
    "a negative shape": ({"x": entry(0, 4, [-1, -1])}, bytes(4), None, "cannot be"),
    "a dtype that is none": ({"x": entry(0, 4, dtype="F31")}, bytes(4), None, "F31|dtype"),
    "bytes that overlap": ({"x": entry(0, 8), "y": entry(4, 12)}, bytes(12), None, "the bytes of y overlap"),
    "the same bytes": ({"x": entry(0, 8), "y": entry(0, 8)}, bytes(8), None, "the bytes of y overlap"),
    "a gap": ({"x": entry(0, 8), "y": entry(12, 16)}, bytes(16), None, "the bytes of y .* gap"),
    "end before start": ({"x": entry(8, 0, [2])}, bytes(8), None, "x has -8 bytes, which is not F32"),
    "too few bytes for the shape": ({"x": entry(0, 8, [3])}, bytes(8), None, "x has 8 bytes, which is not F32 \\[3\\]"),
    "a shape beyond all memory": ({"x": entry(0, 8, [1 << 62, 4])}, bytes(8), None, "x has 8 bytes"),
    "more bytes than described": ({"x": entry(0, 8)}, bytes(9), None, "describes 8 bytes, the file has 9"),
    "fewer bytes than described": ({"x": entry(0, 8)}, bytes(7), None, "describes 8 bytes, the file has 7"),
}  # fmt: skip


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_forged_header_is_refused(tmp_path, defect):
    header, data, length, message = DEFECTS[defect]
    write_raw(tmp_path, header, data, length)
    with pytest.raises(WeightsError, match=f"model.safetensors is broken or cut short: .*({message})"):
        open_folder(tmp_path)


def test_a_huge_header_is_not_read(tmp_path):
    """A sparse file of a header of 1 GiB: refused by its length."""
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.write((1 << 30).to_bytes(8, "little") + b"{")
        file.truncate((1 << 30) + 8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(WeightsError, match=r"a header of 1073741824 bytes; at most \d+ are read"):
        open_folder(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


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
