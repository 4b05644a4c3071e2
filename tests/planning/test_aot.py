"""`python -m moon_jax.aot` with the real compilers of accelerators that are not here, on a small model."""

import json
import os
import subprocess
import sys

import pytest
from fake_batch import tiny_config
from recipes import CONFIGS

from moon_jax.config import MoEConfig
from moon_jax.planning import analysis, printing, sweep
from moon_jax.planning.chips import parse_target
from moon_jax.planning.cost import Cost

SMALL = {
    "model.vision.depth": 2, "model.vision.hidden_size": 128, "model.vision.intermediate_size": 256,
    "model.vision.num_heads": 2, "model.vision.fullatt_block_indexes": "(1,)", "model.text.vocab_size": 512,
    "model.text.hidden_size": 128, "model.text.intermediate_size": 256, "model.text.num_hidden_layers": 2,
    "model.text.num_attention_heads": 4, "model.text.head_dim": 32, "model.text.mrope_section": "(4, 6, 6)",
    "data.max_pixels": 112 * 112, "data.title_tokens": 16, "data.category_tokens": 8, "data.attribute_tokens": 8,
    "train.batch_size": 8,
}  # fmt: skip


def run(*arguments: str, **settings) -> subprocess.CompletedProcess:
    flags = [f"--config.{name}={value}" for name, value in (SMALL | settings).items()]
    command = [sys.executable, "-m", "moon_jax.aot", f"--config={CONFIGS}/moon_3b.py", *arguments, *flags]
    environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "tpu"}  # ours wins: no accelerator is asked for
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)


@pytest.mark.aot
@pytest.mark.parametrize(
    ("topology", "settings"),
    [
        ("v5e:2x4", {"mesh.fsdp": 4, "mesh.expert": 2}),
        ("v5p:2x2x2", {"mesh.fsdp": 2, "mesh.expert": 2, "mesh.tensor": 2}),
        ("h200:8", {"mesh.fsdp": 2, "mesh.expert": 4}),
    ],
)
def test_the_train_step_compiles_for_an_accelerator(topology, settings, tmp_path):
    done = run(f"--topology={topology}", f"--json={tmp_path}/report.json", **settings)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["chips"] == 8
    assert report["memory"]["fits"]
    assert report["memory"]["peak"] > report["memory"]["arguments"] > 0
    kinds = {(row["kind"], tuple(row["axes"])) for row in report["collectives"]}
    assert {("all-gather", ("fsdp",)), ("reduce-scatter", ("fsdp",)), ("all-gather", ("expert",))} <= kinds
    assert 0 < report["mfu_predicted"] <= report["mfu_bound"] < 1
    for word in ("memory", "all-gather over fsdp", "arithmetic", "network", "MFU"):
        assert word in done.stdout


@pytest.mark.aot
def test_a_sweep_ranks_and_compiles_and_says_what_cannot_work(tmp_path):
    done = run("--sweep", "--topology=v5e:2x4", "--compile=1", "--show=4", f"--json={tmp_path}/sweep.json")
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((tmp_path / "sweep.json").read_text())["v5e:2x4"]
    seconds = [row["step_seconds"] for row in result["ways"] if row["fits"]]
    assert seconds == sorted(seconds)
    assert len(seconds) > 20
    assert len(result["compiled"]) == 1
    assert result["compiled"][0]["mesh"] == result["ways"][0]["mesh"]


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        ((), {}, "--topology is needed"),
        (("--topology=v9:2x2",), {}, "there is no chip 'v9'"),
        (("--topology=v5p:2x2",), {}, "3 dimensions"),
        (("--topology=h200:8",), {"moe.top_k": 9}, "config.moe.top_k is 9"),
    ],
)
def test_mistakes_are_one_plain_message(arguments, settings, message):
    done = run(*arguments, **settings)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_every_mesh_of_the_chips_is_tried_with_every_strategy_and_placement():
    ways = list(sweep._ways(tiny_config(), 8))
    meshes = {tuple(vars(way.mesh).values()) for way in ways}
    assert len(meshes) == 20  # 2^3 dealt to four axes
    assert all(a * b * c * d == 8 for a, b, c, d in meshes)
    kinds = {(way.moe.strategy, way.moe.placement) for way in ways}
    assert {("slots", "spread"), ("slots", "split"), ("all_to_all", "spread")} <= kinds
    assert len(ways) == len(meshes) * len(kinds)
    assert "--config.mesh.fsdp=" in sweep.name(ways[0])


def test_without_experts_there_is_nothing_to_dispatch():
    ways = list(sweep._ways(tiny_config(moe__experts=0), 4))
    assert len(ways) == 6  # 2^2 dealt to data, fsdp and tensor
    assert all(way.mesh.expert == 1 and way.moe == MoEConfig(experts=0) for way in ways)


def test_a_report_that_does_not_fit_says_by_how_much():
    memory = {
        "peak": 24 * 2**30,
        "capacity": 16 * 2**30,
        "fits": False,
        "temporaries": 0,
        "largest": ["3.0G jit(f)/dot"],
    }
    rows = dict(printing._memory_rows(memory))
    assert rows["DOES NOT FIT"] == "24.00 GiB of 16.00 GiB: 8.00 GiB too much"
    assert rows["  large array"] == "3.0G jit(f)/dot"


def test_rates_against_a_worked_example():
    """1e15 products asked for on a chip of 1e15 a second (H100: 989e12), 2 s of arithmetic, 3 s of network."""

    cost = Cost({}, {}, 989e12, {}, 2.0, 3.0)
    seconds = {"arithmetic": 2.0, "network": 3.0, "predicted": 5.0}
    rates = analysis._rates(tiny_config(train__batch_size=8), parse_target("h100:8"), cost, seconds)
    assert rates == {"mfu_bound": pytest.approx(1 / 3), "mfu_predicted": 0.2, "triplets_per_second": 1.6}
