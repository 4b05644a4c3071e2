"""`python -m moon_jax.aot` with the real compilers of accelerators that are not here, on a small model."""

import json
import os
import subprocess
import sys

import jax
import pytest
from fake_batch import tiny_config
from recipes import CONFIGS

from moon_jax import aot
from moon_jax.config import Config, ConfigError, MoEConfig
from moon_jax.moe.dispatch import STRATEGIES
from moon_jax.parallel.mesh import make_mesh
from moon_jax.planning import analysis, largest, printing, sweep
from moon_jax.planning.chips import Target, parse_target
from moon_jax.planning.compiling import Compiled
from moon_jax.planning.cost import Cost, cost_of
from moon_jax.planning.largest import next_batch
from moon_jax.planning.network import Links

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
def test_without_machine_code_the_report_is_the_same(tmp_path):
    reports = []
    for flag in ("--code", "--nocode"):
        done = run("--topology=v5e:2x4", flag, f"--json={tmp_path}/report.json", **{"mesh.fsdp": 4, "mesh.expert": 2})
        assert done.returncode == 0, done.stderr[-3000:]
        reports.append(json.loads((tmp_path / "report.json").read_text()))
    full, quick = reports
    sums = lambda report: sorted(  # noqa: E731
        (row["kind"], tuple(row["axes"]), row["dtype"], row["count"], row["bytes"]) for row in report["collectives"]
    )
    assert sums(quick) == sums(full)
    sizes = "arguments", "temporaries", "outputs"
    assert [quick["memory"][name] for name in sizes] == [full["memory"][name] for name in sizes]
    assert 0 < full["memory"]["code"] < quick["memory"]["code"], "what is taken for granted is careful"


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


def test_mistakes_are_one_plain_message():
    done = run("--topology=h200:8", **{"moe.top_k": 9})
    assert done.returncode != 0
    assert "config.moe.top_k is 9" in done.stderr
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


def test_ways_that_drop_nothing_have_no_capacity_and_say_so():
    ways = list(sweep._ways(tiny_config(moe__capacity_factor=1.25, moe__guided_capacity=0.25), 2))
    for way in ways:
        dropless = STRATEGIES[way.moe.strategy].capacity == "none"
        assert (way.moe.capacity_factor == 0) == dropless
        assert ("--config.moe.capacity_factor=0.0 --config.moe.guided_capacity=0.0" in sweep.name(way)) == dropless


def test_only_the_contrastive_step_is_planned():
    config = tiny_config(loss__kind="next_token", loss__ring_batches=0, eval__metric="unseen/query/IoU")
    target = parse_target("h100:8")
    with pytest.raises(ConfigError, match="'next_token': only the contrastive step"):
        analysis.check(config, target, make_mesh(config.mesh, jax.devices()))


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


def rates(dtype: str, target: str) -> dict[str, float]:
    """989e12 products asked for, what an H100 does in a second of bfloat16; 2 s of arithmetic, 3 of network."""
    seconds = {"arithmetic": 2.0, "network": 3.0, "predicted": 5.0}
    config = tiny_config(train__batch_size=8, model__dtype=dtype)
    return analysis._rates(config, parse_target(target), Cost({}, {}, 989e12, {}, 2.0, 3.0), seconds)


def test_rates_against_a_worked_example():
    assert rates("bfloat16", "h100:8") == {
        "mfu_bound": pytest.approx(1 / 3),
        "mfu_predicted": 0.2,
        "triplets_per_second": 1.6,
    }


def test_float32_is_measured_by_what_the_chip_does_in_float32():
    assert rates("float32", "h100:8")["mfu_predicted"] == pytest.approx(989 / 67 / 5)
    assert rates("float32", "v5p:2x2x1")["mfu_predicted"] == pytest.approx(989 / (459 / 6) / 5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "--topology is needed"),
        ({"topology": "v9:2x2"}, "there is no chip 'v9'"),
        ({"topology": "v5p:2x2"}, "3 dimensions"),
        ({"topology": "h200:8", "largest_batch": True, "no_compile": True}, "cannot work with --no_compile"),
        ({"sweep": True, "topology": "v5e", "chips": 8, "largest_batch": True}, "cannot work with --sweep"),
        ({"sweep": True, "chips": 9}, "no chip can do it with --chips=9"),
    ],
)
def test_flags_that_cannot_work_are_refused(given, message):
    aot.FLAGS.parse(config=f"{CONFIGS}/moon_3b.py", **given)
    with pytest.raises(SystemExit, match=message):
        aot.main(["aot"])


# Sweeps, without the compilers --------------------------------------------------------------------------------------


def three_ways(config: Config, target: Target, progress: object) -> tuple[list[sweep.Candidate], dict[str, str]]:
    if target.chip.name == "v4":
        raise ConfigError("nobody has one")
    ways = list(sweep._ways(config, target.count))[:3]
    return [sweep.Candidate(way, Cost({}, {}, 1.0, {}, 1.0, 1.0), True, ()) for way in ways], {}


def test_a_way_that_cannot_be_compiled_does_not_take_the_sweep_with_it(monkeypatch, tmp_path, capsys):
    """The second is refused by the compiler; at the third the process ends, as when a compiler crashes."""
    out, asked = tmp_path / "sweep.json", []

    def analyse(config, target, code):
        assert not code
        asked.append(sweep.name(config))
        if len(asked) == 2:
            raise jax.errors.JaxRuntimeError("INTERNAL: Mosaic failed to compile")
        if len(asked) == 3:
            raise SystemExit(134)
        return {"flags": asked[-1]}

    monkeypatch.setattr(sweep, "rank", three_ways)
    monkeypatch.setattr(analysis, "analyse", analyse)
    monkeypatch.setattr(printing, "text", lambda report: "the report")
    aot.FLAGS.parse(config=f"{CONFIGS}/moon_3b.py", sweep=True, topology="v5e", chips=8, code=False, json=out)
    with pytest.raises(SystemExit):
        aot.main(["aot"])
    found = json.loads(out.read_text())["v5e:2x4"]
    assert len(found["ways"]) == len(asked) == 3
    assert found["compiled"] == [{"flags": asked[0]}]
    assert found["failed"] == {asked[1]: "JaxRuntimeError: INTERNAL: Mosaic failed to compile"}
    assert "could not be compiled: JaxRuntimeError: INTERNAL" in capsys.readouterr().out


def test_chips_without_slices_of_that_size_are_left_out(monkeypatch, tmp_path, capsys):
    """There are 2x2x2 chips of v4 and v5p and 2x4 of v5e and v6e; 512 chips are only a cube."""
    monkeypatch.setattr(sweep, "rank", three_ways)
    out = tmp_path / "sweep.json"
    settings = {"config": f"{CONFIGS}/moon_3b.py", "sweep": True, "no_compile": True, "json": out}
    aot.FLAGS.parse(**settings, chips=512)
    aot.main(["aot"])
    found = json.loads(out.read_text())
    assert {name for name, report in found.items() if "ways" in report} == {"v5p:8x8x8", "h100:512", "h200:512"}
    assert found["v4"] == {"left_out": "nobody has one"}
    assert "v5e with 512 chips: name the shape" in found["v5e"]["left_out"]
    assert "v6e is left out: --topology v6e with 512 chips" in capsys.readouterr().out
    aot.FLAGS.parse(**settings, topology="v5e", chips=512)
    with pytest.raises(SystemExit, match="name the shape"):
        aot.main(["aot"])


# Advice, and the largest batch --------------------------------------------------------------------------------------


def advised(monkeypatch, **mesh: int) -> set[str]:
    """Returns the settings that are advised on eight devices, with the settings of the config for the mesh."""
    settings = {f"mesh__{axis}": size for axis, size in mesh.items()}
    pictures = {"data__max_pixels": 256, "data__min_pixels": 256, "data__max_aspect": 1.0}  # small: weights are most
    config = tiny_config(**settings, **pictures, train__batch_size=16, model__text__vocab_size=2**17, moe__experts=0)
    monkeypatch.setattr(analysis, "mesh_on", lambda target, mesh: make_mesh(mesh, jax.devices()))
    target = parse_target("h100:8")
    mesh = make_mesh(config.mesh, jax.devices())
    cost = cost_of(config, analysis.check(config, target, mesh), Links(target, mesh))
    return {line.split(" (saves")[0] for line in analysis.advice(config, target, cost)}


def test_advice_is_the_same_whichever_axis_takes_what_is_left(monkeypatch):
    sizes = {"data": 2, "fsdp": 2, "expert": 1, "tensor": 2}
    expected = advised(monkeypatch, **sizes)
    assert {"--config.train.batch_size=8", "--config.mesh.data=1 --config.mesh.fsdp=4"} <= expected
    for axis in ("data", "tensor"):
        assert advised(monkeypatch, **sizes | {axis: -1}) == expected


STATE, CAPACITY = 10, 100.0


@pytest.mark.parametrize(
    ("memory", "best", "most"),
    [
        (lambda n: STATE + 9 * n, 10, 3),  # a line: where it ends, and the next one
        (lambda n: STATE + 9.2 * n, 9, 3),
        (lambda n: STATE + 100 * n, 0, 1),  # not even one triplet
        (lambda n: STATE + 0.01 * n * n, 94, 12),
        (lambda n: STATE + 8 * n**0.5, 126, 12),
        (lambda n: STATE + 0.001 * n, 90_000, 40),
        (lambda n: STATE + (1 if n < 57 else 1000), 56, 12),  # no line at all
        (lambda n: STATE + 9 * n + (30 if n == 5 else 0), 10, 6),
    ],
)
def test_the_search_for_the_largest_batch_ends_with_a_proof(memory, best, most):
    for start in (1, 4, 8):
        tried = {start: (int(memory(start)), memory(start) <= CAPACITY)}
        while (n := next_batch(tried, STATE, CAPACITY)) is not None:
            assert n not in tried
            tried[n] = (int(memory(n)), memory(n) <= CAPACITY)
            assert len(tried) <= most + 1
        fitting = max((n for n, (_, fits) in tried.items() if fits), default=0)
        assert fitting == best
        assert not tried[fitting + 1][1], "the next one was compiled and does not fit"


def test_the_largest_batch_is_compiled_in_whole_groups(monkeypatch):
    """No_neg groups of 12 triplets on 8 shards: a shard's batch grows in steps of 3."""
    config = tiny_config(train__batch_size=24, loss__group_size=12, loss__ring_batches=0, mesh__data=8)
    sizes = []

    def compile_step(trainer, capacity):
        sizes.append(trainer.config.train.batch_size)
        peak = 10**9 * trainer.config.train.batch_size
        return Compiled(1.0, 0, 0, 0, 0, peak, capacity, (), ())

    monkeypatch.setattr(largest, "compile_step", compile_step)
    monkeypatch.setattr(largest, "mesh_on", lambda target, mesh: make_mesh(mesh, jax.devices()))
    found = largest.largest_batch(config, parse_target("h100:8"), 24 * 10**9, 0, lambda line: None)
    assert found[9][1], "72 GB of 78"
    assert not found[12][1]
    assert all(size % 24 == 0 for size in sizes)
