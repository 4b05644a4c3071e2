"""Any slice of a source by itself, experts that start as the dense model, shards read once and only at home."""

import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from meshes import EIGHT, ONE, QUICK, mesh_of, name_of

from moon_jax.config import ModelConfig, MoEConfig, Role, TextConfig, VisionConfig
from moon_jax.models import moon
from moon_jax.models.layers import gathered
from moon_jax.moe.layer import GuidedMoE
from moon_jax.parallel.mesh import BATCH_SPEC, partition_spec
from moon_jax.weights import source as weights
from moon_jax.weights.source import LM_HEAD, Leaf, Upcycled, WeightsError, fingerprint, named, nested, place

L, R, S, D, F = 2, 8, 6, 16, 24
FFN = {"gate": (L, D, F), "up": (L, D, F), "down": (L, F, D)}


class Arrays:
    """A source over arrays in memory that notes what is read of it."""

    def __init__(self, arrays):
        self.arrays, self.read_bytes, self.largest = arrays, {}, 0
        self.leaves = {name: Leaf(array.shape, array.dtype) for name, array in arrays.items()}

    def read(self, name, index=()):
        assert all(isinstance(cut, slice) and cut.step in (None, 1) for cut in index), index
        out = np.array(self.arrays[name][tuple(index)])
        self.read_bytes[name] = self.read_bytes.get(name, 0) + out.nbytes
        self.largest = max(self.largest, out.nbytes)
        return out


def dense_ffn(seed=0, dtype=np.float32, shapes=FFN):
    r = np.random.default_rng(seed)
    return {f"text/layers/ffn/{name}": (0.25 * r.normal(size=shape)).astype(dtype) for name, shape in shapes.items()}


def upcycled(config, **settings):
    return Upcycled(Arrays(dense_ffn()), config, **settings)


# Experts out of a dense model ---------------------------------------------------------------------------------------


def inputs():
    r = np.random.default_rng(1)
    return r.normal(size=(R, S, D)).astype(np.float32), r.integers(0, len(Role), (R, S)).astype(np.int32)


def dense_out(layer, x):
    gate, up, down = (dense_ffn()[f"text/layers/ffn/{name}"][layer].astype(np.float64) for name in FFN)
    a = x.astype(np.float64) @ gate
    return (a / (1 + np.exp(-a)) * (x @ up)) @ down


def moe_out(source, layer, config, x, roles):
    mesh = mesh_of((2, 2, 2, 1))
    graphdef, state = nnx.split(GuidedMoE(D, F, 1, config, nnx.Rngs(params=0)))
    specs = {path[0]: partition_spec(p.get_metadata("axes"), p[...].ndim) for path, p in nnx.to_flat_state(state)}
    fn = jax.shard_map(
        lambda params, x, roles: gathered(nnx.merge(graphdef, params), x.dtype)(x, roles)[0],
        mesh=mesh, in_specs=(specs, BATCH_SPEC, BATCH_SPEC), out_specs=BATCH_SPEC,
    )  # fmt: skip
    put = lambda leaf, spec: jax.device_put(np.asarray(leaf), NamedSharding(mesh, spec))  # noqa: E731
    read = lambda name: source.read(f"text/layers/moe/{name}", (slice(layer, layer + 1),))[0]  # noqa: E731
    params = {name: put(read(name), spec) for name, spec in specs.items()}
    return np.asarray(jax.jit(fn, compiler_options=QUICK)(params, put(x, BATCH_SPEC), put(roles, BATCH_SPEC)))


@pytest.mark.parametrize("guided", ["add", "exclusive"])
@pytest.mark.parametrize("experts", [4, 8])
def test_experts_equal_the_dense_ffn(guided, experts):
    config = MoEConfig(experts=experts, guided=guided)
    x, roles = inputs()
    for layer in range(L):
        out = moe_out(upcycled(config), layer, config, x, roles)
        expected = dense_out(layer, x) * (roles != Role.PADDING)[..., None]
        np.testing.assert_allclose(out, expected, rtol=0, atol=1e-6 * max(1, np.abs(expected).max()))


def test_softmax_all_keeps_only_a_share():
    """What the warning of softmax_all says: three of eight nearly equal gates are about 0.4 of the dense output."""
    config = MoEConfig(gate="softmax_all")
    x, roles = inputs()
    roles[:] = Role.CATEGORY
    out, dense = moe_out(upcycled(config), 0, config, x, roles), dense_out(0, x)
    assert 0.35 < (out * dense).sum() / (dense**2).sum() < 0.45


def test_leaves_and_copies():
    dense = Arrays(dense_ffn(dtype=ml_dtypes.bfloat16) | {"text/norm": np.ones(D, np.float16)})
    source = Upcycled(dense, MoEConfig())
    bf16, f32 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32)
    assert source.leaves == {
        "text/layers/moe/router": Leaf((L, D, 8), f32),
        "text/layers/moe/gate": Leaf((L, 8, D, F), bf16),
        "text/layers/moe/up": Leaf((L, 8, D, F), bf16),
        "text/layers/moe/down": Leaf((L, 8, F, D), bf16),
        "text/norm": Leaf((D,), np.dtype(np.float16)),
    }
    for name in FFN:
        copies, weight = source.read(f"text/layers/moe/{name}"), dense.arrays[f"text/layers/ffn/{name}"]
        assert copies.dtype == bf16
        np.testing.assert_array_equal(copies, np.broadcast_to(weight[:, None], copies.shape))
        copies[:] = 0  # its memory is its own
    np.testing.assert_array_equal(source.read("text/norm"), np.ones(D))
    assert dense.arrays["text/layers/ffn/gate"].astype(f32).any()
    router = source.read("text/layers/moe/router")
    assert router.dtype == f32
    assert np.std(router) == pytest.approx(0.02, rel=0.3), "small and random: no expert wins by the index"
    assert np.abs(router - upcycled(MoEConfig(), seed=1).read("text/layers/moe/router")).max() > 0.01
    assert np.abs(np.corrcoef(router.reshape(L, -1)))[0, 1] < 0.3, "every layer has a router of its own"


def test_noise_lets_the_copies_part():
    source = upcycled(MoEConfig(), noise=0.01)
    for name in FFN:
        weight = dense_ffn()[f"text/layers/ffn/{name}"]
        noise = source.read(f"text/layers/moe/{name}") - weight[:, None]
        for layer in range(L):
            assert np.std(noise[layer]) == pytest.approx(0.01 * np.std(weight[layer]), rel=0.05)
        correlation = np.corrcoef(noise.reshape(L * 8, -1)) - np.eye(L * 8)
        assert np.abs(correlation).max() < 0.3, f"{name}: two experts have the same noise"
    other = upcycled(MoEConfig(), noise=0.01, seed=1)
    assert (source.read("text/layers/moe/up") != other.read("text/layers/moe/up")).mean() > 0.99
    gate, up = (
        source.read(f"text/layers/moe/{n}") - dense_ffn()[f"text/layers/ffn/{n}"][:, None] for n in FFN if n != "down"
    )
    assert np.abs(np.corrcoef(gate.ravel(), up.ravel())[0, 1]) < 0.05, "the noise of gate and up is not the same"


def test_noise_is_relative_to_each_layer():
    ffn = dense_ffn()
    ffn["text/layers/ffn/up"][1] *= 100
    noise = (
        Upcycled(Arrays(ffn), MoEConfig(), noise=0.1).read("text/layers/moe/up") - ffn["text/layers/ffn/up"][:, None]
    )
    assert noise[1].std() / noise[0].std() == pytest.approx(100, rel=0.1)


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_a_slice_is_the_same_however_it_is_cut(noise, monkeypatch):
    """So that it does not depend on the mesh; also across the tiles in which the random numbers are drawn."""
    monkeypatch.setattr(weights, "_TILE", 7)
    source = upcycled(MoEConfig(experts=4), noise=noise, seed=3)
    r = np.random.default_rng(0)
    for name, leaf in source.leaves.items():
        whole = source.read(name)
        assert whole.shape == leaf.shape
        assert whole.dtype == leaf.dtype
        for _ in range(20):
            cuts = [sorted(r.choice(n + 1, 2, replace=False)) for n in leaf.shape]
            index = tuple(slice(*map(int, cut)) for cut in cuts)[: r.integers(0, len(cuts) + 1)]
            np.testing.assert_array_equal(source.read(name, index), whole[index], err_msg=f"{name} {index}")


def test_a_slice_reads_only_its_own_layers_and_places():
    dense = Arrays(dense_ffn())
    source = Upcycled(dense, MoEConfig())
    source.read("text/layers/moe/gate", (slice(1, 2), slice(2, 6), slice(4, 8)))
    assert dense.read_bytes == {"text/layers/ffn/gate": 4 * F * 4}, "four experts are copies of one reading"
    source.read("text/layers/moe/router")
    assert dense.read_bytes.keys() == {"text/layers/ffn/gate"}


def test_what_cannot_be_upcycled():
    with pytest.raises(WeightsError, match="have experts already"):
        Upcycled(upcycled(MoEConfig()), MoEConfig())
    ffn = dense_ffn()
    del ffn["text/layers/ffn/up"], ffn["text/layers/ffn/down"]
    with pytest.raises(WeightsError, match=r"no dense FFN .* text/layers/ffn/up, text/layers/ffn/down missing"):
        Upcycled(Arrays(ffn), MoEConfig())
    with pytest.raises(ValueError, match="experts is 0"):
        upcycled(MoEConfig(experts=0))


# Onto the mesh ------------------------------------------------------------------------------------------------------

TEXT = TextConfig(64, 32, 48, 2, 4, 2, 8, mrope_section=(1, 1, 2))
MODEL = ModelConfig(vision=VisionConfig(2, 32, 48, 2, 3, 4, 2, 2, 16, (1,)), text=TEXT)


def dense_model(dtype=np.float32):
    """Sizes by the table of the model, numbers that say where they stand: distinct all over a parameter."""
    _, shapes, _ = moon.abstract(MODEL, MoEConfig(experts=0))
    r = np.random.default_rng(5)
    return {name: r.normal(size=s.shape).astype(dtype) for name, s in named(shapes).items()}


@pytest.mark.parametrize("shape", [ONE, *EIGHT], ids=name_of)
def test_every_number_is_at_its_place_and_every_byte_is_read_once(shape):
    mesh, arrays = mesh_of(shape), dense_model(ml_dtypes.bfloat16)
    _, shapes, specs = moon.abstract(MODEL, MoEConfig(experts=4))
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
    _, shapes, specs = moon.abstract(MODEL, MoEConfig(experts=4))
    upcycled = Upcycled(Arrays(arrays), MoEConfig(experts=4), seed=2, noise=0.1)
    first, second = (named(place(upcycled, shapes, specs, mesh_of(s))) for s in ((1, 1, 1, 1), (1, 2, 2, 2)))
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
    _, shapes, specs = moon.abstract(MODEL, MoEConfig(experts=0))
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
from test_source import MODEL, Arrays, dense_model
from moon_jax.config import MeshConfig, MoEConfig
from moon_jax.models import moon
from moon_jax.parallel.mesh import make_mesh
from moon_jax.weights.source import Upcycled, named, place

mesh = make_mesh(MeshConfig(1, 2, 2, 2))
_, shapes, specs = moon.abstract(MODEL, MoEConfig(experts=4))
arrays = dense_model()
source = Arrays(arrays)
right = True
for name, leaf in named(place(Upcycled(source, MoEConfig(experts=4)), shapes, specs, mesh)).items():
    if "router" not in name:
        whole = arrays[name.replace("/moe/", "/ffn/")]
        whole = np.broadcast_to(whole[:, None], leaf.shape) if "/moe/" in name else whole
        right &= all(np.array_equal(shard.data, whole[shard.index]) for shard in leaf.addressable_shards)
print(json.dumps({"right": bool(right), "read": source.read_bytes}))
"""


def test_each_of_two_processes_reads_its_half():
    """Two processes of four devices; fsdp = 2 runs across them: what lies over fsdp is read by half, the rest whole."""
    import socket

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
    _, _, specs = moon.abstract(MODEL, MoEConfig(experts=0))
    halves = {name: 2 if "fsdp" in spec else 1 for name, spec in named(specs).items()}
    assert set(halves.values()) == {1, 2}
    for out, _ in outputs:
        report = json.loads(out.splitlines()[-1])
        assert report["right"]
        assert report["read"] == {name: array.nbytes // halves[name] for name, array in dense_model().items()}


# Small things -------------------------------------------------------------------------------------------------------


def test_the_fingerprint_tells_weights_apart():
    arrays = {"norm": np.ones(8, np.float32), "large": np.zeros((1024, 300), np.float32)}
    first = fingerprint(Arrays(arrays))
    assert fingerprint(Arrays(dict(reversed(arrays.items())))) == first, "the order of the names means nothing"
    source = Arrays(arrays)
    fingerprint(source)
    assert source.read_bytes == {"norm": 32}, "large parameters are not read"
    changed = [
        arrays | {"norm": np.ones(8, np.float32) * np.float32(1 + 1e-7)},
        arrays | {"norm": np.ones(8, ml_dtypes.bfloat16)},
        arrays | {"large": np.zeros((300, 1024), np.float32)},
        {"norms" if name == "norm" else name: array for name, array in arrays.items()},
        {"large": arrays["large"]},
    ]
    assert len({first, *(fingerprint(Arrays(c)) for c in changed)}) == 6


def test_named_and_nested():
    tree = {"text": {"layers": {"q": 1, "moe": {"gate": 2}}, "norm": 3}, "vision": {"blocks": {"qkv": 4}}}
    flat = {"text/layers/q": 1, "text/layers/moe/gate": 2, "text/norm": 3, "vision/blocks/qkv": 4}
    assert named(tree) == flat
    assert nested(flat) == tree
