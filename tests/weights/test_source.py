"""Weights come to the devices that hold them, each byte is read once and only where it is needed."""

import json
import pathlib
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from arrays import Arrays
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from meshes import EIGHT, ONE, mesh_of, name_of

from moon_jax.config import ModelConfig, MoEConfig, TextConfig, VisionConfig
from moon_jax.models import moon
from moon_jax.weights import source as weights
from moon_jax.weights.source import LM_HEAD, Upcycled, WeightsError, fingerprint, named, nested, place

TEXT = TextConfig(64, 32, 48, 2, 4, 2, 8, mrope_section=(1, 1, 2))
MODEL = ModelConfig(vision=VisionConfig(2, 32, 48, 2, 3, 4, 2, 2, 16, (1,)), text=TEXT)


def dense_model(dtype=np.float32):
    """Sizes by the table of the model, numbers that say where they stand: distinct all over a parameter."""
    shapes = moon.abstract_params(MODEL, MoEConfig(experts=0))
    r = np.random.default_rng(5)
    return {name: r.normal(size=s.shape).astype(dtype) for name, s in named(shapes).items()}


@pytest.mark.parametrize("shape", [ONE, *EIGHT], ids=name_of)
def test_every_number_is_at_its_place_and_every_byte_is_read_once(shape):
    mesh, arrays = mesh_of(shape), dense_model(ml_dtypes.bfloat16)
    _, shapes, specs = moon.abstract(MODEL, MoEConfig(experts=4), mesh)
    dense = Arrays(arrays | {LM_HEAD: np.zeros((64, 32), np.float32)})
    params = place(Upcycled(dense, MoEConfig(experts=4)), shapes, specs, mesh)
    assert jax.tree.structure(params) == jax.tree.structure(shapes)
    for name, leaf in named(params).items():
        assert leaf.dtype == jnp.float32, name
        assert leaf.sharding.is_equivalent_to(NamedSharding(mesh, named(specs)[name]), leaf.ndim), name
        if "router" in name:
            continue
        expected = arrays[name.replace("/moe/", "/ffn/")]
        expected = np.broadcast_to(expected[:, None], leaf.shape) if "/moe/" in name else expected
        np.testing.assert_array_equal(leaf, expected.astype(np.float32), err_msg=name)
    assert dense.read_bytes == {name: array.nbytes for name, array in arrays.items()}, "the head is left where it is"


def test_the_random_numbers_do_not_depend_on_the_mesh():
    arrays = dense_model()
    meshes = mesh_of((1, 1, 1, 1)), mesh_of((1, 2, 2, 2))
    upcycled = Upcycled(Arrays(arrays), MoEConfig(experts=4), seed=2, noise=0.1)
    first, second = (named(place(upcycled, *moon.abstract(MODEL, MoEConfig(experts=4), m)[1:], m)) for m in meshes)
    for name, leaf in first.items():
        np.testing.assert_array_equal(leaf, second[name], err_msg=name)
        np.testing.assert_array_equal(leaf, upcycled.read(name), err_msg=name)


def test_dtypes_pieces_and_order(monkeypatch):
    """Shapes and specs are matched by name, whatever order they are written in; large leaves come in pieces."""
    monkeypatch.setattr(weights, "_PIECE", 128)
    mesh = mesh_of((1, 2, 2, 2))
    arrays = {"a/x": np.arange(240, dtype=np.float32).reshape(12, 4, 5), "b": np.arange(64, dtype=np.float16)}
    source = Arrays(arrays)
    shapes = {"b": jax.ShapeDtypeStruct((64,), np.float32), "a": {"x": jax.ShapeDtypeStruct((12, 4, 5), np.float32)}}
    specs = {"a": {"x": P("expert", "fsdp")}, "b": P("tensor")}
    params = place(source, shapes, specs, mesh, "bfloat16")
    assert params["b"].dtype == params["a"]["x"].dtype == jnp.bfloat16
    assert params["b"].sharding.spec == P("tensor")
    for name, leaf in named(params).items():
        np.testing.assert_array_equal(leaf, arrays[name].astype(ml_dtypes.bfloat16))
    assert source.largest <= 128, "at most a piece at a time"
    assert source.read_bytes == {name: array.nbytes for name, array in arrays.items()}


def test_donating_the_placed_parameters_leaves_the_source_alone():
    """On CPU jax may take over the memory of a numpy array instead of copying it."""
    mesh, array = mesh_of((8, 1, 1, 1)), np.arange(1 << 16, dtype=np.float32)
    shapes = {"a": jax.ShapeDtypeStruct(array.shape, np.float32)}
    params = place(Arrays({"a": array}), shapes, {"a": P()}, mesh)
    shards = [np.asarray(s.data) for s in params["a"].addressable_shards]
    before = [s.copy() for s in shards]
    doubled = jax.jit(lambda p: jax.tree.map(lambda x: 2 * x, p), donate_argnums=0)(params)
    for shard, old in zip(doubled["a"].addressable_shards, before, strict=True):
        np.testing.assert_array_equal(shard.data, 2 * old)
    np.testing.assert_array_equal(array, np.arange(1 << 16))


def test_a_progress_bar_in_bytes(capsys):
    arrays = {"a": np.zeros((1000, 1000), np.float32)}
    place(
        Arrays(arrays), {"a": jax.ShapeDtypeStruct((1000, 1000), np.float32)}, {"a": P()}, mesh_of(ONE), progress=True
    )
    assert "4.00M/4.00M" in capsys.readouterr().err.split("reading weights")[-1]


def test_all_that_does_not_fit_is_named_before_anything_is_read():
    _, shapes, specs = moon.abstract(MODEL, MoEConfig(experts=0), mesh_of(ONE))
    arrays = dense_model()
    arrays["text/norms"] = arrays.pop("text/norm")
    arrays["vision/patch_embed"] = arrays["vision/patch_embed"].reshape(-1)
    source = Arrays(arrays)
    with pytest.raises(WeightsError) as error:
        place(source, shapes, specs, mesh_of(ONE))
    for line in (
        "text/norm is missing",
        "text/norms [32] is left over",
        "vision/patch_embed has the shape [3072], the config needs [2, 48, 32]",
    ):
        assert f"  - {line}" in str(error.value)
    assert str(error.value).count("\n  - ") == 3
    assert source.read_bytes == {}


HALF = """
import json, sys
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.distributed.initialize(f"localhost:{sys.argv[1]}", 2, int(sys.argv[2]))
import numpy as np
sys.path[:0] = sys.argv[3:]
from jax.sharding import PartitionSpec as P
from arrays import Arrays
from test_source import MODEL, dense_model
from moon_jax.config import MeshConfig, MoEConfig
from moon_jax.models import moon
from moon_jax.parallel.mesh import make_mesh
from moon_jax.weights.source import Upcycled, named, place

mesh = make_mesh(MeshConfig(1, 2, 2, 2))
_, shapes, specs = moon.abstract(MODEL, MoEConfig(experts=4), mesh)
arrays = dense_model()
source = Arrays(arrays)
right = True
for name, leaf in named(place(Upcycled(source, MoEConfig(experts=4)), shapes, specs, mesh)).items():
    if "router" not in name:
        whole = arrays[name.replace("/moe/", "/ffn/")]
        whole = np.broadcast_to(whole[:, None], leaf.shape) if "/moe/" in name else whole
        right &= all(np.array_equal(shard.data, whole[shard.index]) for shard in leaf.addressable_shards)
half = source.read_bytes

# each process has every second shard: not a neighbourhood that is read in one go
turns = [jax.devices()[i] for i in (0, 4, 1, 5, 2, 6, 3, 7)]
mesh = make_mesh(MeshConfig(1, 8, 1, 1), turns)
source = Arrays({"a": np.arange(64.0).reshape(16, 4)})
a = place(source, {"a": jax.ShapeDtypeStruct((16, 4), np.float32)}, {"a": P("fsdp")}, mesh)["a"]
right &= all(np.array_equal(shard.data, source.arrays["a"][shard.index]) for shard in a.addressable_shards)
print(json.dumps({"right": bool(right), "read": half, "turns": source.read_bytes["a"]}))
"""


def test_each_of_two_processes_reads_its_half():
    """Two processes of four devices; fsdp = 2 runs across them: what lies over fsdp is read by half, the rest whole."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    tests = pathlib.Path(__file__).parents[1]
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", HALF, str(port), str(number), str(tests), str(tests / "weights")],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number in range(2)
    ]  # fmt: skip
    outputs = [run.communicate(timeout=120) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    _, _, specs = moon.abstract(MODEL, MoEConfig(experts=0), mesh_of((1, 2, 2, 2)))
    halves = {name: 2 if "fsdp" in spec else 1 for name, spec in named(specs).items()}
    assert set(halves.values()) == {1, 2}
    for out, _ in outputs:
        report = json.loads(out.splitlines()[-1])
        assert report["right"]
        assert report["turns"] == 16 * 4 * 8 // 2
        assert report["read"] == {name: array.nbytes // halves[name] for name, array in dense_model().items()}


def test_the_fingerprint_tells_weights_apart():
    arrays = {"norm": np.ones(8, np.float32), "large": np.zeros((1024, 300), np.float32)}
    first = fingerprint(Arrays(arrays))
    assert fingerprint(Arrays(dict(reversed(arrays.items())))) == first, "the order of the names means nothing"
    source = Arrays(arrays)
    fingerprint(source)
    assert source.read_bytes == {"norm": 32, "large": 2 * 1200}, "of a large parameter the outer layers are read"
    outer = arrays["large"].copy()
    outer[-1, 7] = 1e-7
    changed = [
        arrays | {"norm": np.ones(8, np.float32) * np.float32(1 + 1e-7)},
        arrays | {"norm": np.ones(8, ml_dtypes.bfloat16)},
        arrays | {"large": np.zeros((300, 1024), np.float32)},
        {"norms" if name == "norm" else name: array for name, array in arrays.items()},
        {"large": arrays["large"]},
        arrays | {"large": outer},
    ]
    assert len({first, *(fingerprint(Arrays(c)) for c in changed)}) == 7


def test_named_and_nested():
    tree = {"text": {"layers": {"q": 1, "moe": {"gate": 2}}, "norm": 3}, "vision": {"blocks": {"qkv": 4}}}
    flat = {"text/layers/q": 1, "text/layers/moe/gate": 2, "text/norm": 3, "vision/blocks/qkv": 4}
    assert named(tree) == flat
    assert nested(flat) == tree
