"""A folder appears whole or not at all, and what killed programs left goes away."""

import pytest

from moon_jax.weights.source import WeightsError
from moon_jax.weights.unfinished import new_folder


def test_an_error_leaves_nothing(tmp_path):
    with pytest.raises(FileNotFoundError), new_folder(tmp_path / "a" / "model") as folder:
        (folder / "x").write_text((folder / "y").read_text())
    assert list((tmp_path / "a").iterdir()) == []


def test_a_target_that_is_there_is_left_alone(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").write_text("text")
    for target, message in (("model", "is there already"), ("link", "is there already"), ("file/x", "is not a folder")):
        with pytest.raises(WeightsError, match=message), new_folder(tmp_path / target):
            pass
    assert {p.name for p in tmp_path.iterdir()} == {"model", "link", "file"}


def test_a_target_that_comes_up_meanwhile_is_not_replaced(tmp_path):
    with pytest.raises(WeightsError, match="is there already"), new_folder(tmp_path / "model"):
        (tmp_path / "model").mkdir()
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_what_killed_programs_left_is_removed_but_not_what_is_being_written(tmp_path):
    for name in (".model.unfinished-1", ".model2.unfinished-1", ".model.unfinished"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text("x")
    with new_folder(tmp_path / "model") as folder:
        assert folder.parent == tmp_path
        assert not (tmp_path / ".model.unfinished-1").exists()
        with pytest.raises(WeightsError, match="is being written by another process"), new_folder(tmp_path / "model"):
            pass
        assert folder.exists()
    assert {p.name for p in tmp_path.iterdir()} == {"model", ".model2.unfinished-1", ".model.unfinished"}
