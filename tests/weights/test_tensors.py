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
from moon_jax.weights.tensors import Tensors

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
