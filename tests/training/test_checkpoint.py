"""Checkpoints: bit-identical across meshes, damage found, killed saves ignored, wrong states refused by leaf name."""

import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from moon_jax.training.checkpoint import CheckpointError, Checkpoints

AXES = ("data", "fsdp", "expert", "tensor")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    step: Any
    params: Any
    opt_state: Any
    ring: Any


def mesh_of(*shape):
    devices = jax.devices()[: int(np.prod(shape))]
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Explicit,) * 4, devices=devices)


def specs(state):
    """Places the matrices over fsdp and tensor, the ring over data, everything else everywhere."""

    def spec(path, leaf):
        if "ring" in jax.tree_util.keystr(path) and leaf.ndim == 4:
            return P(None, None, "data")
        return P("fsdp", "tensor") if leaf.ndim == 2 else P()

    return jax.tree_util.tree_map_with_path(spec, state)


def make_state(seed=0, ring=True):
    rng = np.random.default_rng(seed)
    text = {"embed": rng.normal(size=(16, 8)), "norm": rng.normal(size=8), "layers": {"q": rng.normal(size=(8, 4))}}
    params = {"text": jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), text)}
    params["vision"] = {"half": jnp.asarray(rng.normal(size=(8, 8)), jnp.bfloat16)}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.cosine_decay_schedule(1e-3, 10)))
    opt_state = optimizer.init(params)
    gradients = jax.tree.map(lambda x: x * 0.5, params)
    _, opt_state = optimizer.update(gradients, opt_state, params)
    entries = (
        {"embeddings": jnp.asarray(rng.normal(size=(2, 2, 8, 4)), jnp.float32), "valid": jnp.array([True, False])}
        if ring
        else None
    )
    return State(jnp.int32(seed), params, opt_state, entries)


def place(state, mesh):
    return jax.device_put(state, jax.tree.map(lambda s: NamedSharding(mesh, s), specs(state), is_leaf=is_spec))


def is_spec(x):
    return isinstance(x, P)


def abstract(state, mesh):
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, s)), state, specs(state)
    )


def assert_identical(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), jax.tree_util.keystr(path)


def save_steps(folder, *steps, keep=10, **kwargs):
    with Checkpoints(folder, keep=keep, **kwargs) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step), {"metrics": {}, "name": f"run {step}"})


def largest_file(folder):
    return max(
        (p for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json"), key=lambda p: p.stat().st_size
    )


def flip_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("from_shape", "to_shape"),
    [((2, 2, 1, 2), (1, 1, 1, 1)), ((1, 1, 1, 1), (1, 4, 1, 2)), ((1, 8, 1, 1), (2, 1, 2, 2))],
)
def test_restore_on_another_mesh_is_bit_identical(tmp_path, from_shape, to_shape):
    state = make_state(3)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, place(state, mesh_of(*from_shape)), {"config": {"parts": ("a", "b")}})
    with Checkpoints(tmp_path) as checkpoints:
        target = abstract(state, mesh_of(*to_shape))
        restored, meta = checkpoints.restore(target)
    assert_identical(restored, state)
    assert meta == {"config": {"parts": ["a", "b"]}}
    placed = jax.tree.map(lambda x, t: x.sharding.is_equivalent_to(t.sharding, x.ndim), restored, target)
    assert all(jax.tree.leaves(placed))


def test_state_without_ring(tmp_path):
    state = make_state(1, ring=False)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        restored, _ = checkpoints.restore(abstract(state, mesh_of(1, 1, 1, 1)))
    assert restored.ring is None
    assert_identical(restored, state)


def test_subset_restores_the_parameters_alone(tmp_path):
    save_steps(tmp_path, 1)
    state = make_state(1)
    target = dataclasses.replace(abstract(state, mesh_of(1, 2, 1, 1)), opt_state=None, ring=None)
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(CheckpointError, match="ring/valid: in the checkpoint, not wanted"):
            checkpoints.restore(target)
        restored, _ = checkpoints.restore(target, subset=True)
    assert_identical(restored, dataclasses.replace(state, opt_state=None, ring=None))


def test_donating_the_state_right_after_save_does_not_change_what_is_saved(tmp_path):
    values = np.random.default_rng(0).normal(size=(2048, 512)).astype(np.float32)
    state = {"w": jax.device_put(values, NamedSharding(mesh_of(1, 8, 1, 1), P("fsdp")))}
    step = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 1, s), donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        for _ in range(3):
            state = step(state)
        jax.block_until_ready(state)
    with Checkpoints(tmp_path) as checkpoints:
        target = {
            "w": jax.ShapeDtypeStruct(values.shape, values.dtype, sharding=NamedSharding(mesh_of(1, 1, 1, 1), P()))
        }
        restored, _ = checkpoints.restore(target)
    np.testing.assert_array_equal(restored["w"], values)


def test_one_flipped_bit_falls_back_to_the_previous_step(tmp_path, caplog):
    save_steps(tmp_path, 1, 2)
    flip_bit(largest_file(tmp_path / "00000002"))
    target = abstract(make_state(0), mesh_of(1, 1, 1, 1))
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 1
        state, meta = checkpoints.restore(target)
        assert_identical(state, make_state(1))
        assert meta["name"] == "run 1"
        assert sum("00000002 is damaged" in r.message for r in caplog.records) == 1
        with pytest.raises(CheckpointError, match="changed since"):
            checkpoints.restore(target, step=2)
        with pytest.raises(CheckpointError, match=r"not there; there are steps \[1, 2\]"):
            checkpoints.restore(target, step=7)
        # The damaged step makes way, so that it neither counts among the kept ones nor stops a later resume.
        checkpoints.save(3, make_state(3), {})
        checkpoints.wait()
        assert checkpoints.steps() == [1, 3]


@pytest.mark.parametrize("damage", ["missing file", "manifest bit", "manifest cut", "all"])
def test_other_damage(tmp_path, damage):
    save_steps(tmp_path, 1, 2)
    folder = tmp_path / "00000002"
    if damage == "missing file":
        largest_file(folder).unlink()
    elif damage == "manifest bit":
        text = (folder / "manifest.json").read_text()
        (folder / "manifest.json").write_text(text.replace("run 2", "run 3"))
    elif damage == "manifest cut":
        text = (folder / "manifest.json").read_text()
        (folder / "manifest.json").write_text(text[: len(text) // 2])
    else:
        for step in ("00000001", "00000002"):
            flip_bit(largest_file(tmp_path / step))
    with Checkpoints(tmp_path) as checkpoints:
        if damage == "all":
            with pytest.raises(CheckpointError, match="every checkpoint"):
                checkpoints.latest()
        else:
            assert checkpoints.latest() == 1


def test_killed_save_leaves_the_previous_step(tmp_path):
    save_steps(tmp_path, 1, 2)
    (tmp_path / "00000002" / "manifest.json").unlink()  # committed by Orbax, killed before the seal
    shutil.copytree(tmp_path / "00000001", tmp_path / "00000003.orbax-checkpoint-tmp")  # killed while writing
    (tmp_path / "00000004").mkdir()  # empty
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [1]
        state, _ = checkpoints.restore(abstract(make_state(0), mesh_of(1, 1, 1, 1)))
        assert_identical(state, make_state(1))
        assert (tmp_path / "00000003.orbax-checkpoint-tmp").exists()  # a reader removes nothing
        checkpoints.save(2, make_state(2), {})
        checkpoints.wait()
        assert sorted(p.name for p in tmp_path.iterdir()) == ["00000001", "00000002"]


def test_process_killed_during_a_save(tmp_path):
    save_steps(tmp_path, 1)
    code = f"""
import os, jax, jax.numpy as jnp
from moon_jax.training.checkpoint import Checkpoints
checkpoints = Checkpoints({str(tmp_path)!r})
checkpoints.save(2, {{"w": jnp.ones((2048, 4096))}}, {{}})
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == -9
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 1


def test_keeps_the_latest_and_the_best(tmp_path):
    scores = {1: 0.1, 2: 0.7, 3: 0.3, 4: float("nan"), 5: 0.2}
    with Checkpoints(tmp_path, keep=2, best_metric="unseen/R@1") as checkpoints:
        for step, score in scores.items():
            checkpoints.save(step, make_state(step), {"metrics": {"unseen/R@1": score}})
        checkpoints.wait()
        assert checkpoints.steps() == [2, 4, 5]
        assert checkpoints.best() == 2
        assert checkpoints.meta(5) == {"metrics": {"unseen/R@1": 0.2}}
        state, _ = checkpoints.restore(abstract(make_state(0), mesh_of(1, 1, 1, 1)), step=2)
        assert_identical(state, make_state(2))


def test_saving_a_step_again_replaces_it(tmp_path):
    save_steps(tmp_path, 1)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(9), {"name": "again"})
        state, meta = checkpoints.restore(abstract(make_state(0), mesh_of(1, 1, 1, 1)))
    assert meta == {"name": "again"}
    assert_identical(state, make_state(9))


def test_wrong_state_is_refused_with_every_leaf_named(tmp_path):
    save_steps(tmp_path, 1)
    target = abstract(make_state(0), mesh_of(1, 1, 1, 1))
    sharding = target.params["text"]["norm"].sharding
    target.params["text"]["norm"] = jax.ShapeDtypeStruct((8,), jnp.bfloat16, sharding=sharding)
    target.params["text"]["embed"] = jax.ShapeDtypeStruct((32, 8), jnp.float32, sharding=sharding)
    target.params["text"]["extra"] = jax.ShapeDtypeStruct((2,), jnp.float32, sharding=sharding)
    target.params["vision"]["half"] = jax.ShapeDtypeStruct((8, 8), jnp.bfloat16)
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(CheckpointError) as error:
        checkpoints.restore(target)
    message = str(error.value)
    assert "params/text/norm: saved float32[8], wanted bfloat16[8]" in message
    assert "params/text/embed: saved float32[16, 8], wanted float32[32, 8]" in message
    assert "params/text/extra: not in the checkpoint" in message
    assert "params/vision/half: no sharding" in message


def test_what_cannot_be_saved(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(CheckpointError, match=r"ring/embeddings: shape \(0, 2\) has no elements"):
            checkpoints.save(1, {"ring": {"embeddings": jnp.zeros((0, 2))}}, {})
        with pytest.raises(CheckpointError, match="step: it is a int"):
            checkpoints.save(1, {"step": 3}, {})
        with pytest.raises(CheckpointError, match="must not contain '/'"):
            checkpoints.save(1, {"a/b": jnp.ones(2)}, {})
        with pytest.raises(TypeError):
            checkpoints.save(1, {"a": jnp.ones(2)}, {"x": object()})
        assert checkpoints.latest() is None
        with pytest.raises(CheckpointError, match="there is no checkpoint"):
            checkpoints.restore({"a": jnp.ones(2)})


def test_a_failed_write_is_raised_by_wait(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, make_state(1), {})
    checkpoints.wait()
    checkpoints._path = lambda step: tmp_path / "manifest.json" / "below a file"
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(Exception, match=r"Not a directory|manifest\.json"):  # noqa: PT012
        checkpoints.save(2, make_state(2), {})
        checkpoints.wait()


def test_stored_tree_reads_without_our_types(tmp_path):
    save_steps(tmp_path, 1)
    manifest = json.loads((tmp_path / "00000001" / "manifest.json").read_text())["body"]
    assert manifest["leaves"]["params/text/embed"] == {"shape": [16, 8], "dtype": "float32"}
    assert any(name.startswith("opt_state/") and name.endswith("mu/text/embed") for name in manifest["leaves"])


def test_assets_are_sealed_with_the_step(tmp_path):
    assets = {"moon.json": b"{}", "tokenizer.json": bytes(range(256))}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(1), {}, assets)
        checkpoints.save(2, make_state(2), {}, assets | {"README.md": "卡".encode()})
    assert {name: (tmp_path / "00000001" / name).read_bytes() for name in assets} == assets
    assert (tmp_path / "00000002" / "README.md").read_text() == "卡"
    assert not (tmp_path / "00000001" / "README.md").exists()
    files = json.loads((tmp_path / "00000001" / "manifest.json").read_text())["body"]["files"]
    assert files["tokenizer.json"] == hashlib.sha256(assets["tokenizer.json"]).hexdigest()
    flip_bit(tmp_path / "00000002" / "tokenizer.json")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 1
        state, _ = checkpoints.restore(abstract(make_state(0), mesh_of(1, 1, 1, 1)))
    assert_identical(state, make_state(1))


@pytest.mark.parametrize("name", ["manifest.json", "a/b", "../up", "manifest.json.unfinished"])
def test_names_that_no_asset_may_have(tmp_path, name):
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(CheckpointError, match="plain file names"):
            checkpoints.save(1, make_state(1), {}, {name: b""})
        assert checkpoints.latest() is None


def test_an_asset_must_not_replace_a_file_of_the_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, make_state(1), {}, {"_METADATA": b""})
    with pytest.raises(CheckpointError, match=r"would replace files .*_METADATA"):
        checkpoints.wait()
    assert checkpoints.steps() == []
    checkpoints.close()
