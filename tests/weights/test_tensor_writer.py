"""Pieces in any order give the file that the library writes, digests are those of the files, nothing half remains."""

import concurrent.futures
import hashlib
import json
import os
import random

import ml_dtypes
import numpy as np
import pytest
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

from moon_jax.weights import tensor_writer
from moon_jax.weights.source import WeightsError
from moon_jax.weights.tensor_writer import TensorWriter
from moon_jax.weights.tensors import Tensors

BF16 = np.dtype(ml_dtypes.bfloat16)


def arrays():
    rng = np.random.default_rng(0)
    return {
        "stack/w": rng.standard_normal((3, 4, 5)).astype(BF16),
        "odd": rng.standard_normal((7,)).astype(BF16),  # 14 bytes: what follows would not be aligned
        "router": rng.standard_normal((6, 2)).astype(np.float32),
        "scalar": np.array(2, np.float32),
        "none": np.zeros((0, 3), np.float32),
        "half": rng.standard_normal((8, 3)).astype(np.float16),
    }


def plan(data):
    return {name: (x.shape, x.dtype) for name, x in data.items()}


def pieces(data):
    """(name, index, array) of everything: rows, places of the stack, wholes."""
    out = [("stack/w", (i, j), data["stack/w"][i, j]) for i in range(2) for j in range(4)]
    out += [("stack/w", 2, data["stack/w"][2:])]
    out += [("odd", i, data["odd"][i : i + 2]) for i in (0, 2, 4, 6)]
    out += [("router", 0, data["router"][:4]), ("router", (4,), data["router"][4]), ("router", 5, data["router"][5:])]
    out += [("scalar", (), data["scalar"]), ("none", 0, data["none"]), ("half", (), data["half"])]
    return out


def save(folder, tensors, jobs, *settings):
    with TensorWriter(folder, tensors, *settings) as writer:
        for job in jobs:
            writer.write(*job)
    return writer


def read_back(folder):
    found = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("limit", "files"), [(1 << 30, 1), (150, 2), (1, 6)])
def test_pieces_in_any_order(tmp_path, seed, limit, files):
    data = arrays()
    jobs = pieces(data)
    random.Random(seed).shuffle(jobs)
    writer = save(tmp_path, plan(data), jobs, limit, {"format": "pt"})
    found = read_back(tmp_path)
    assert found.keys() == data.keys()
    for name, x in data.items():
        assert found[name].dtype == x.dtype
        assert found[name].tobytes() == x.tobytes(), name
    names = sorted(path.name for path in tmp_path.iterdir())
    if files == 1:
        assert names == ["model.safetensors"]
    else:
        shards = [f"model-{i + 1:05d}-of-{files:05d}.safetensors" for i in range(files)]
        assert names == [*shards, "model.safetensors.index.json"]
        index = json.loads((tmp_path / names[-1]).read_text())
        assert index["metadata"]["total_size"] == sum(x.nbytes for x in data.values())
        assert index["metadata"]["total_parameters"] == sum(x.size for x in data.values())
        assert index["weight_map"].keys() == data.keys()
    assert writer.digests() == {n: hashlib.sha256((tmp_path / n).read_bytes()).hexdigest() for n in names}
    with Tensors(tmp_path) as tensors:
        assert tensors.shapes == {name: x.shape for name, x in data.items()}


def test_every_tensor_is_aligned_and_the_metadata_is_there(tmp_path):
    """Torch cannot view bytes at an odd offset as float32."""
    data = arrays()
    save(tmp_path, plan(data), pieces(data), 1 << 30, {"format": "pt", "a": "ü"})
    raw = (tmp_path / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    assert length % 8 == 0
    assert header.pop("__metadata__") == {"format": "pt", "a": "ü"}
    for name, entry in header.items():
        assert entry["data_offsets"][0] % data[name].dtype.itemsize == 0, name


def test_shards_are_filled_in_the_given_order(tmp_path):
    sizes = {"a": 10, "b": 10, "large": 100, "c": 15, "d": 10}  # float32
    data = {name: np.zeros(n, np.float32) for name, n in sizes.items()}
    save(tmp_path, plan(data), [(name, (), x) for name, x in data.items()], 100)
    weight_map = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    shard = lambda i: f"model-0000{i}-of-00003.safetensors"  # noqa: E731
    assert weight_map == {"a": shard(1), "b": shard(1), "large": shard(2), "c": shard(3), "d": shard(3)}


def test_a_strided_piece_and_many_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_writer, "_HASH_BYTES", 1000)
    monkeypatch.setattr(tensor_writer, "_FLUSH_BYTES", 3000)
    data = np.random.default_rng(0).standard_normal((64, 40, 50)).astype(BF16)
    with (
        TensorWriter(tmp_path, {"x": (data.shape, BF16)}) as writer,
        concurrent.futures.ThreadPoolExecutor(8) as pool,
    ):
        list(pool.map(lambda i: writer.write("x", (i,), np.asfortranarray(data[i])), range(64)))
    assert load_file(tmp_path / "model.safetensors")["x"].tobytes() == data.tobytes()
    digest = hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    assert writer.digests() == {"model.safetensors": digest}


def test_what_was_forgotten_is_named_and_nothing_remains(tmp_path):
    data = arrays()
    jobs = [(name, index, x) for name, index, x in pieces(data) if name != "router" and index != (1, 2)]
    with pytest.raises(WeightsError, match=r"not completely written: stack/w, router$"):
        save(tmp_path, plan(data), jobs, 150)
    assert not list(tmp_path.iterdir())
    with TensorWriter(tmp_path, {}) as writer, pytest.raises(ValueError, match="when the block is left"):
        writer.digests()


def test_an_exception_inside_removes_the_files_and_is_passed_on(tmp_path):
    def jobs():
        yield pieces(arrays())[0]
        assert len(list(tmp_path.iterdir())) == 2
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, plan(arrays()), jobs(), 150)
    assert not list(tmp_path.iterdir())


def test_a_file_cannot_be_opened_before_it_is_complete(tmp_path):
    """What a killed process leaves is no checkpoint with zeros in it."""
    data = arrays()
    *jobs, last = pieces(data)
    with TensorWriter(tmp_path, plan(data)) as writer:
        for job in jobs:
            writer.write(*job)
        os.sync()
        with pytest.raises(SafetensorError), safe_open(tmp_path / "model.safetensors", framework="numpy"):
            pass
        with pytest.raises(WeightsError, match="broken or cut short"):
            Tensors(tmp_path)
        writer.write(*last)
    Tensors(tmp_path)


@pytest.mark.parametrize(
    ("index", "shape", "dtype"),
    [
        (0, (4, 5), BF16),  # a row short of an axis
        (2, (2, 4, 5), BF16),  # beyond the end
        (-1, (1, 4, 5), BF16),
        ((3,), (4, 5), BF16),
        ((0, -1), (5,), BF16),
        ((0, 0), (4, 5), BF16),
        ((0, 0, 0, 0), (), BF16),
        ((), (4, 3, 5), BF16),
        (0, (), BF16),
        (0, (1, 4, 5), np.float32),  # nothing is cast behind the caller's back
        (0, (1, 4, 5), np.float16),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, index, shape, dtype):
    with pytest.raises(ValueError, match=r"is no piece of w, bfloat16 \[3, 4, 5\]"):
        save(tmp_path, {"w": ((3, 4, 5), BF16)}, [("w", index, np.zeros(shape, dtype))])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "rows",
    [[(0, 1), (0, 1)], [(3, 5), (2, 4)], [(3, 5), (0, 5)], [(0, 2), (1, 3)], [(1, 2), (0, 3)], [(0, 5), (2, 3)]],
)
def test_nothing_is_written_twice(tmp_path, rows):
    piece = lambda start, stop: ("w", start, np.zeros((stop - start, 2), np.float32))  # noqa: E731
    with pytest.raises(ValueError, match="a part of w is written twice"):
        save(tmp_path, {"w": ((5, 2), np.dtype(np.float32))}, [piece(*r) for r in rows])


def test_what_cannot_be_stored_or_has_no_room(tmp_path):
    with pytest.raises(WeightsError, match="only float32, bfloat16 and float16 can: a float64, c int8"):
        TensorWriter(tmp_path, {"a": ((1,), np.dtype("f8")), "b": ((1,), BF16), "c": ((1,), np.dtype("i1"))})
    with pytest.raises(WeightsError, match=r"2305843009\.21 GB are to be written, .* GB are free"):
        TensorWriter(tmp_path, {"a": ((1 << 60,), BF16)})
    (tmp_path / "model.safetensors").write_text("mine")
    with pytest.raises(FileExistsError):
        TensorWriter(tmp_path, {"a": ((1,), BF16)})
    assert [p.read_text() for p in tmp_path.iterdir()] == ["mine"]


def test_a_full_disk_is_not_hidden(tmp_path, monkeypatch):
    """It may show only when the kernel writes back: errors of the threads come out of the block."""

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, {"a": ((1,), BF16)}, [("a", (), np.zeros(1, BF16))])
    assert not list(tmp_path.iterdir())
