"""A file is the old one or the new one, whatever happens to its writer."""

import io
import os
import signal
import subprocess
import sys

import pytest

from moon_jax.data import whole_file

KILLED = """
import os, signal, sys
from moon_jax.data import whole_file

with whole_file.writing(sys.argv[1]) as file:
    file.write(b"much that is new")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def path(tmp_path):
    out = tmp_path / "numbers.json"
    out.write_bytes(b"old")
    return out


def names(path):
    return sorted(file.name for file in path.parent.iterdir())


def test_what_is_written_is_what_is_read(tmp_path):
    whole_file.write_bytes(tmp_path / "bytes", bytes(range(256)))
    whole_file.write_text(str(tmp_path / "text"), "月亮\r\nmoon\n")
    whole_file.write_json(tmp_path / "json", {"名": [1, None, "é"]})
    assert (tmp_path / "bytes").read_bytes() == bytes(range(256))
    assert (tmp_path / "text").read_bytes() == "月亮\r\nmoon\n".encode()
    assert (tmp_path / "json").read_bytes() == '{\n "名": [\n  1,\n  null,\n  "é"\n ]\n}\n'.encode()
    assert names(tmp_path / "any") == ["bytes", "json", "text"]


def test_a_program_killed_before_the_end_leaves_the_old_file_and_the_next_one_cleans_up(path):
    ended = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    assert names(path) == ["numbers.json", "numbers.json.unfinished"]
    whole_file.write_text(path, "new")
    assert path.read_bytes() == b"new", "shorter than what the killed one left"
    assert names(path) == ["numbers.json"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_the_old_file_alone(path, error):
    def write():
        with whole_file.writing(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_bytes() == b"old"
    assert names(path) == ["numbers.json"]


@pytest.mark.parametrize("step", ["fsync", "rename"])
def test_a_disk_that_fails_leaves_the_old_file_alone(path, step, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((os, "fsync", fail) if step == "fsync" else (type(path), "replace", fail)))
    with pytest.raises(OSError, match="No space left"):
        whole_file.write_text(path, "new")
    assert path.read_bytes() == b"old"
    assert names(path) == ["numbers.json"]


def test_the_content_is_on_the_disk_before_the_name_and_the_name_before_the_end(path, monkeypatch):
    synced, real = [], os.fsync

    def fsync(descriptor):
        there = {file.stat().st_ino: file for file in (*path.parent.iterdir(), path.parent)}
        stat = os.fstat(descriptor)
        synced.append((there[stat.st_ino].name, stat.st_size if there[stat.st_ino].is_file() else 0, path.read_bytes()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    whole_file.write_text(path, "new one")
    assert synced == [("numbers.json.unfinished", 7, b"old"), (path.parent.name, 0, b"new one")]


def test_what_is_no_json_is_refused_before_a_file_is_made(path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        whole_file.write_json(path, {"loss": float("nan")})
    with pytest.raises(TypeError, match="not JSON serializable"):
        whole_file.write_json(path, {"stream": io.BytesIO()})
    assert path.read_bytes() == b"old"
    assert names(path) == ["numbers.json"]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    (tmp_path / "file").write_text("text")
    for folder in ("missing", "file"):
        with pytest.raises(FileNotFoundError, match=f"numbers.json cannot be written: no such folder.*{folder}'"):
            whole_file.write_json(tmp_path / folder / "numbers.json", {})
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_folder_of_that_name_is_left_alone(tmp_path):
    (tmp_path / "numbers.json").mkdir()
    with pytest.raises(IsADirectoryError):
        whole_file.write_json(tmp_path / "numbers.json", {})
    assert [file.name for file in tmp_path.iterdir()] == ["numbers.json"]
    assert not list((tmp_path / "numbers.json").iterdir())
