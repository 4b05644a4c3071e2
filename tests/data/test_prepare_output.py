"""What `prepare` replaces, keeps and removes: nobody's folder is lost, and killed runs leave nothing for long."""

import json
import signal
import subprocess
import sys
import time

import pytest
from test_prepare import LINES, run, small

from moon_jax.config import ConfigError
from moon_jax.data.benchmark import output as folders


@pytest.mark.parametrize("theirs", ["train.py", "notes", None])
def test_a_strangers_folder_with_a_report_is_not_replaced(tmp_path, theirs):
    given = small(tmp_path, "query,item_id,time", *LINES)
    given["output"].mkdir()
    given["output"].joinpath("report.json").write_text('{"rows": 3}' if theirs is None else json.dumps(folders.STAMP))
    if theirs:
        given["output"].joinpath(theirs).write_text("precious")
    before = sorted(path.name for path in given["output"].iterdir())
    with pytest.raises(ConfigError, match=f"holds something that is not .*{theirs or ''}"):
        run(**given)
    assert sorted(path.name for path in given["output"].iterdir()) == before


def test_what_came_into_the_folder_meanwhile_is_kept(tmp_path):
    def write():
        with folders.fresh(tmp_path / "bench"):
            (tmp_path / "bench").mkdir()
            (tmp_path / "bench" / "boxes.jsonl").write_text("precious")

    with pytest.raises(ConfigError, match=r"boxes\.jsonl"):
        write()
    assert [path.name for path in tmp_path.iterdir()] == ["bench"]
    assert (tmp_path / "bench" / "boxes.jsonl").read_text() == "precious"


def test_a_run_killed_while_it_replaces_loses_nothing(tmp_path):
    def write(text):
        with folders.fresh(tmp_path / "bench") as folder:
            (folder / "report.json").write_text(json.dumps(folders.STAMP | {"text": text}))

    write("old")
    code = (  # the process ends at the second rename: the old folder is aside, the new one not in place yet
        "import os, pathlib, sys\n"
        "from moon_jax.data.benchmark import output\n"
        "rename, seen = pathlib.Path.rename, []\n"
        "pathlib.Path.rename = lambda *a: os._exit(9) if seen else (seen.append(1), rename(*a))\n"
        "with output.fresh(pathlib.Path(sys.argv[1])) as folder:\n"
        "    (folder / 'train.jsonl').write_text('new')\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, tmp_path / "bench"], timeout=100)
    assert killed.returncode == 9
    assert not (tmp_path / "bench").exists()
    with pytest.raises(KeyError), folders.fresh(tmp_path / "bench"):
        raise KeyError
    assert json.loads((tmp_path / "bench" / "report.json").read_text())["text"] == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["bench"]
    write("new")
    assert json.loads((tmp_path / "bench" / "report.json").read_text())["text"] == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["bench"]


def test_a_second_run_with_the_same_output_is_refused(tmp_path):
    with folders.fresh(tmp_path / "bench") as first, folders.fresh(tmp_path / "bench.2"):
        with pytest.raises(ConfigError, match="another run"), folders.fresh(tmp_path / "bench"):
            pass
        assert first.is_dir()
    (tmp_path / ".bench.notes.12345678").mkdir()  # not of this host: perhaps in use
    with folders.fresh(tmp_path / "bench"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".bench.notes.12345678", "bench", "bench.2"]


@pytest.mark.parametrize("kill", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_run_leaves_nothing_for_long(tmp_path, kill):
    given = small(tmp_path, "query,item_id,time", *LINES)
    log = given["log"]
    code = (
        "import sys, time\n"
        "from moon_jax import prepare\n"
        "prepare.build = lambda *a: time.sleep(100)\n"
        "prepare.FLAGS.parse(catalogue=sys.argv[1], log=sys.argv[2], output=sys.argv[3])\n"
        "prepare.main(['prepare'])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, given["catalogue"], log, given["output"]])
    there = lambda: [path.name for path in tmp_path.iterdir() if path.name.startswith((".bench.", ".prepare."))]  # noqa: E731
    until = time.monotonic() + 100
    while len(there()) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    assert len(there()) == 2
    process.send_signal(kill)
    code = process.wait(100)
    if kill == signal.SIGTERM:
        assert code == 128 + signal.SIGTERM
    else:
        assert len(there()) == 2
        run(**given)
        assert given["output"].is_dir()
    assert there() == []


def test_a_model_that_cannot_be_read_is_a_plain_error(tmp_path):
    given = small(tmp_path, "query,item_id,time", *LINES)
    (tmp_path / "empty").mkdir()
    for miner in ("/none", tmp_path / "empty"):
        with pytest.raises(ConfigError, match="--miner="):
            run(**given, miner=miner)
