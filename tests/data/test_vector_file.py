"""The output of embed: written in any order, taken up where a killed run left it, whole or not there."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from moon_jax.data import vector_file
from moon_jax.data.vector_file import OutputError, VectorFile

IDENTITY = {"weights": "abc", "batch_size": 2, "data": {"crop": True, "prompt": ["a", "b"]}}
VALUES = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.fixture
def every_batch(monkeypatch):
    monkeypatch.setattr(vector_file, "COMMIT_SECONDS", 0.0)


def start(folder, **changes):
    output = VectorFile(folder, IDENTITY | changes, 4, 3)
    output.begin()
    return output


def write(output, rows, position, skipped=None):
    output.write(np.array(rows), VALUES[rows], skipped or {}, {"records": len(rows)}, position)


def test_rows_in_any_order_become_a_numpy_file(tmp_path, every_batch):
    output = start(tmp_path / "out")
    write(output, [3, 1], (0, 1))
    write(output, [2], (1, 1), {2: "no such picture"})
    assert not (tmp_path / "out" / "embeddings.npy").exists()
    output.finish(["a", 7, None, "蓝"], {"model": "m"}, [0])
    output.close()
    found = np.load(tmp_path / "out" / "embeddings.npy")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.where(np.arange(4)[:, None] % 2 == 0, np.nan, VALUES))
    assert json.loads((tmp_path / "out" / "ids.json").read_text()) == ["a", 7, None, "蓝"]
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings == {"model": "m", "identity": IDENTITY}
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["embeddings.npy", "ids.json", "settings.json"]
    again = VectorFile(tmp_path / "out", IDENTITY, 4, 3)
    assert again.done
    with pytest.raises(OutputError, match=r"weights was 'abc', is 'x'"):
        VectorFile(tmp_path / "out", IDENTITY | {"weights": "x"}, 4, 3)


def test_a_run_goes_on_after_the_last_batch_that_is_safe(tmp_path, every_batch):
    output = start(tmp_path)
    write(output, [0, 1], (0, 1), {1: "torn"})
    output.close()  # what a killed process leaves
    output = start(tmp_path)
    assert (output.position, output.skipped, output.counts) == ((0, 1), {1: "torn"}, {"records": 2})
    write(output, [2, 3], (0, 2))
    output.finish([], {})
    np.testing.assert_array_equal(np.load(tmp_path / "embeddings.npy")[[0, 2, 3]], VALUES[[0, 2, 3]])


@pytest.mark.parametrize("left", ["progress", "settings"])
def test_a_run_that_was_killed_while_it_finished_goes_on(tmp_path, every_batch, left):
    output = start(tmp_path)
    write(output, [0, 1, 2, 3], (0, 1))
    progress = (tmp_path / "progress.json").read_bytes()
    output.finish([1, 2, 3, 4], {"about": 1})
    output.close()
    (tmp_path / "progress.json").write_bytes(progress)  # it was not yet removed ...
    if left == "progress":
        (tmp_path / "settings.json").unlink()  # ... nor the settings written
    output = VectorFile(tmp_path, IDENTITY, 4, 3)
    assert output.done == (left == "settings")
    if not output.done:
        assert output.position == (0, 1)
        output.begin()
        output.finish([1, 2, 3, 4], {"about": 1})
        assert not (tmp_path / "progress.json").exists()
    np.testing.assert_array_equal(np.load(tmp_path / "embeddings.npy"), VALUES)


def test_another_run_is_refused_with_what_changed(tmp_path, every_batch):
    output = start(tmp_path)
    write(output, [0], (0, 1))
    with pytest.raises(OutputError, match="another process is writing"):
        start(tmp_path)
    output.close()
    with pytest.raises(OutputError, match=r"batch_size was 2, is 3(.|\n)*new was None, is 1") as caught:
        start(tmp_path, batch_size=3, new=1)
    assert "weights" not in str(caught.value)
    (tmp_path / "progress.json").write_text("{")
    with pytest.raises(OutputError, match=r"progress\.json cannot be read"):
        start(tmp_path)


def test_files_of_something_else_are_not_touched(tmp_path):
    (tmp_path / "embeddings.npy").write_text("mine")
    with pytest.raises(OutputError, match="of something else"):
        start(tmp_path)
    assert (tmp_path / "embeddings.npy").read_text() == "mine"
    (tmp_path / "b").mkdir()
    start(tmp_path / "b").close()
    (tmp_path / "b" / "embeddings.npy.unfinished").unlink()
    with pytest.raises(OutputError, match="without vectors"):
        start(tmp_path / "b")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "settings.json").write_text(json.dumps({"identity": IDENTITY}))
    with pytest.raises(OutputError, match="without embeddings"):
        start(tmp_path / "c")


def test_the_lock_ends_with_its_process(tmp_path):
    code = (
        "import os, pathlib, signal, sys\n"
        "from moon_jax.data.vector_file import VectorFile\n"
        "VectorFile(pathlib.Path(sys.argv[1]), {'weights': 1}, 4, 3).begin()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=os.environ, check=False)
    output = VectorFile(tmp_path, {"weights": 1}, 4, 3)
    output.begin()
    output.close()
