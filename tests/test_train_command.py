"""The command `python -m moon_jax.train`: its mistakes in one plain message, and the plan without data or devices."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def command(arguments):
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return subprocess.run(
        [sys.executable, "-m", "moon_jax.train", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--config=configs/demo.py", "--config.train.steps=3", "--config.train.stepz=3", "--workdir=w"],
            r"^FATAL Flags parsing error: --config\.train\.stepz does not exist; did you mean 'steps'\?$",
        ),
        (["--config=configs/demo.py", "--config.trian.lr=1"], r"^FATAL.* --config\.trian\.lr does not .* 'train'\?$"),
        (["--config=configs/demo.py", "--config.qqq.lr=1"], r"^FATAL.* --config\.qqq\.lr does not exist$"),
        (["--config=configs/demo.py", "--config.train.lr.x=1"], r"^FATAL.* --config\.train\.lr\.x does not exist$"),
        (["--config=configs/demo.py", "-config.trian.lr=1"], r"^FATAL.* -config\.trian\.lr does not exist"),
        (["--config=configs/demo.py", "--config.train.lr=abc"], r"^FATAL.* flag --config\.train\.lr=abc: could not "),
        (["--config=/no/such/file.py", "--workdir=w"], "No such file or directory: '/no/such/file.py'"),
        (["--config=configs/demo.py:no_corp", "--workdir=w"], "no_crop, no_moe, no_neg"),
        (["--config=configs/demo.py", "--config.moe.top_k=7", "--workdir=w"], r"config\.moe\.top_k is 7"),
        (["--config=configs/demo.py"], "--workdir is needed"),
        (["--config=configs/shop.py:luma", "--config.data.path=/no/such/folder", "--workdir=w"], "/no/such/folder"),
        (["--config=configs/moon_3b.py", "--config.model.path=/no/model", "--dry-run"], "WeightsError: .*/no/model"),
        (["--config=configs/moon_3b.py", "--config.train.freeze=visoin", "--dry-run"], "visoin is not known"),
    ],
)
def test_the_command_refuses_with_one_plain_message(arguments, message, tmp_path):
    arguments = [a.replace("workdir=w", f"workdir={tmp_path}") for a in arguments]
    done = command(arguments)
    assert done.returncode != 0
    assert re.search(message, done.stderr, re.MULTILINE), done.stderr
    assert not done.stderr.startswith("Traceback")


def test_a_mistake_in_a_config_file_keeps_its_traceback(tmp_path):
    (tmp_path / "recipe.py").write_text("def get_config():\n    return {}['MOON_DATA']\n")
    done = command([f"--config={tmp_path}/recipe.py", "--config.train.lr=1", f"--workdir={tmp_path}/w"])
    assert done.returncode != 0
    assert "return {}['MOON_DATA']" in done.stderr


def test_dry_run_prints_the_plan_of_the_full_size_without_data_or_devices():
    done = command(["--config=configs/moon_3b.py", "--dry-run"])
    assert done.returncode == 0, done.stderr
    assert "20,798,767,104" in done.stdout  # 3.09 B dense text and vision parameters, FFNs eight times, routers
    assert "data=1 x fsdp=16 x expert=4 x tensor=1 = 64 devices" in done.stdout
    assert f"{2 * 256 * 3 - 1:,}" in done.stdout
    assert re.search(r"steps +17,89\d", done.stdout)
