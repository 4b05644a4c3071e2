"""Two runs of `detect` at once on the same output: one of them is told, and no line is lost."""

import json

import pytest

from moon_jax.data.box_file import BoxFile
from moon_jax.data.records import DataError

IDENTITY = {"model": "a"}
LINES = [{"image": f"{number}.jpg", "box": None} for number in range(6)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "boxes.jsonl"


def write(output, lines, *, finish):
    output.begin()
    output.write(lines)
    if finish:
        output.finish({})
    output.close()


def said(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_goes_on_behind_the_last_whole_line(path):
    write(BoxFile(path, IDENTITY), LINES[:4], finish=False)
    with path.with_name("boxes.jsonl.unfinished").open("a") as cut:
        cut.write('{"image": "4.j')
    later = BoxFile(path, IDENTITY)
    assert (later.lines, later.done) == (4, False)
    write(later, LINES[4:], finish=True)
    assert said(path) == LINES
    assert BoxFile(path, IDENTITY).done


@pytest.mark.parametrize("there", [0, 2])
def test_a_file_that_was_finished_meanwhile_is_left_alone(path, there):
    if there:
        write(BoxFile(path, IDENTITY), LINES[:there], finish=False)
    first, second = BoxFile(path, IDENTITY), BoxFile(path, IDENTITY)
    write(first, LINES[there:], finish=True)
    with pytest.raises(DataError, match=r"another process has written .*the same command goes on"):
        second.begin()
    second.close()
    assert said(path) == LINES
    assert sorted(one.name for one in path.parent.iterdir()) == ["boxes.jsonl", "boxes.settings.json"]
    assert BoxFile(path, IDENTITY).done


def test_lines_that_another_run_has_added_are_kept(path):
    first, second = BoxFile(path, IDENTITY), BoxFile(path, IDENTITY)
    write(first, LINES[:3], finish=False)
    with pytest.raises(DataError, match="another process has written"):
        second.begin()
    second.close()
    third = BoxFile(path, IDENTITY)
    assert third.lines == 3
    write(third, LINES[3:], finish=True)
    assert said(path) == LINES


def test_a_run_that_became_another_one_meanwhile_is_refused(path):
    """As many lines as were counted, of another model."""
    write(BoxFile(path, IDENTITY), LINES[:3], finish=False)
    counted = BoxFile(path, IDENTITY)
    path.with_name("boxes.jsonl.unfinished").unlink()
    write(BoxFile(path, {"model": "b"}), LINES[:3], finish=False)
    with pytest.raises(DataError, match="model was 'b', is 'a'"):
        counted.begin()
    counted.close()
    assert said(path.with_name("boxes.jsonl.unfinished")) == LINES[:3]


def test_one_writer_at_a_time(path):
    first, second = BoxFile(path, IDENTITY), BoxFile(path, IDENTITY)
    first.begin()
    with pytest.raises(DataError, match="another process is writing"):
        second.begin()
    second.close()
    first.close()
