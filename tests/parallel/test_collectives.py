"""What crosses between devices: gradients through the collectives, and all of the compiled train step's by name."""

import functools
import itertools
import math
import re
from collections import Counter
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fake_batch import fake_batch, tiny_config
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from meshes import EIGHT, ONE, assert_close, leaves, mesh_of, name_of, step_on

from moon_jax.models import moon
from moon_jax.parallel.collectives import enter_tensor, gather_param, gather_weight, gather_weights, leave_tensor
from moon_jax.parallel.mesh import AXES, BATCH_AXES, BATCH_SPEC, partition_spec


def place(mesh, spec, x):
    return jax.device_put(np.asarray(x), NamedSharding(mesh, spec))


@pytest.mark.parametrize("shape", [ONE, *EIGHT], ids=name_of)
@pytest.mark.parametrize(
    ("axes", "size"),
    [(("embed", "ffn"), (8, 6)), (("ffn", "embed"), (6, 8)), (("kv", "group", "head_dim", "embed"), (2, 3, 2, 8)),
     (("norm",), (8,)), (("embed", "routes"), (8, 5))],
)  # fmt: skip
def test_gather_weight_gives_the_whole_weight_and_sums_gradients(shape, axes, size):
    """Batch shard g uses the weight with the factor g + 1: the gradient is the factors' sum, on every shard."""
    mesh = mesh_of(shape)
    spec = partition_spec(axes, len(size))
    weight = np.random.default_rng(0).normal(size=size).astype(np.float32)
    cotangent = np.random.default_rng(1).normal(size=size).astype(np.float32)
    inner = P(*(axis if axis == "tensor" else None for axis in spec))

    def local(shard, cotangent):
        whole = gather_weight(shard, axes, jnp.float32)
        factor = jax.lax.axis_index(BATCH_AXES) + 1
        return jax.lax.psum(
            (whole * cotangent).sum() * factor, (*BATCH_AXES, "tensor") if "tensor" in spec else BATCH_AXES
        )

    fn = jax.shard_map(local, mesh=mesh, in_specs=(spec, inner), out_specs=P())
    with jax.set_mesh(mesh):
        value, gradient = jax.jit(jax.value_and_grad(fn))(place(mesh, spec, weight), place(mesh, inner, cotangent))
    shards = math.prod(shape[:3])
    factors = shards * (shards + 1) / 2
    assert float(value) == pytest.approx(
        factors * float((weight.astype(np.float64) * cotangent).sum()), rel=1e-4, abs=1e-4
    )
    assert_close(gradient, factors * cotangent, 1e-6)


@pytest.mark.parametrize("shape", [(8, 1, 1, 1), (1, 4, 2, 1)], ids=name_of)
def test_gradients_of_many_devices_add_up_in_float32(shape):
    """256 + 7 * 1 is 263; bfloat16, which has 8 bits, would stay at 256."""
    mesh = mesh_of(shape)
    spec = partition_spec(("embed", "ffn"), 2)

    def local(shard, factor):
        whole = gather_weight(shard, ("embed", "ffn"), jnp.bfloat16)
        assert whole.dtype == jnp.bfloat16
        return jax.lax.psum((whole * factor[0].astype(jnp.bfloat16)).astype(jnp.float32).sum(), AXES[:3])

    fn = jax.shard_map(
        lambda shard, factor: jax.lax.pmean(local(shard, factor), "tensor"),
        mesh=mesh, in_specs=(spec, BATCH_SPEC), out_specs=P(),
    )  # fmt: skip
    factor = np.ones(8, np.float32)
    factor[0] = 256
    with jax.set_mesh(mesh):
        weight = place(mesh, spec, np.ones((8, 2), np.float32))
        gradient = jax.jit(jax.grad(fn))(weight, place(mesh, BATCH_SPEC, factor))
    assert gradient.dtype == jnp.float32
    np.testing.assert_array_equal(gradient, np.full((8, 2), 263.0))


def test_gather_weights_leaves_experts_and_keeps_routers_float32():
    class Block(nnx.Module):
        def __init__(self):
            self.wide = nnx.Param(jnp.ones((8, 4)), axes=("embed", "ffn"))
            self.router = nnx.Param(jnp.ones((8, 4)), axes=("embed", "routes"))
            self.expert = nnx.Param(jnp.ones((2, 8, 4)), axes=("experts", "embed", "ffn"))

    mesh = mesh_of((1, 2, 1, 1))
    graphdef, state = nnx.split(Block())
    specs = {name: partition_spec(p.get_metadata("axes"), p[...].ndim) for (name,), p in nnx.to_flat_state(state)}
    seen = {}

    def local(params):
        block = nnx.merge(graphdef, params)
        whole = gather_weights(nnx.state(block), jnp.bfloat16)
        for (name,), p in nnx.to_flat_state(whole):
            seen[name] = (p[...].shape, p[...].dtype)
        assert gather_param(block.wide, jnp.float32).shape == (8, 4)
        return jax.lax.psum(sum(p[...].astype(jnp.float32).sum() for _, p in nnx.to_flat_state(whole)), AXES)

    params = {name: place(mesh, specs[name], p) for name, p in nnx.to_pure_dict(state).items()}
    jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(specs,), out_specs=P())).lower(params)
    assert seen == {
        "wide": ((8, 4), jnp.bfloat16), "router": ((8, 4), jnp.float32), "expert": ((2, 4, 4), jnp.float32),
    }  # fmt: skip


def test_a_tensor_block_costs_one_sum_forward_and_one_backward():
    mesh = mesh_of((1, 1, 1, 4))
    r = np.random.default_rng(0)
    x, a, b, c = (r.normal(size=s).astype(np.float32) for s in ((3, 5), (5, 8), (5, 8), (8, 5)))

    def local(x, a, b, c):
        h = enter_tensor(x)
        return leave_tensor((jnp.tanh(h @ a) * (h @ b)) @ c) + x

    specs = (P(), P(None, "tensor"), P(None, "tensor"), P("tensor", None))
    fn = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P())
    args = [place(mesh, spec, value) for spec, value in zip(specs, (x, a, b, c), strict=True)]
    gradient = jax.jit(jax.grad(lambda *args: (fn(*args) ** 2).sum(), argnums=(0, 1, 2, 3)))
    with jax.set_mesh(mesh):
        got = gradient(*args)
        text = gradient.lower(*args).as_text()
    want = jax.grad(lambda x, a, b, c: (((jnp.tanh(x @ a) * (x @ b)) @ c + x) ** 2).sum(), argnums=(0, 1, 2, 3))
    for g, w in zip(got, want(x, a, b, c), strict=True):
        assert_close(g, w, 1e-5)
    assert text.count("stablehlo.all_reduce") == 2


# The compiled train step -------------------------------------------------------------------------------------------


class Collective(NamedTuple):
    """One array that one collective of the compiled program gives out (the compiler may combine several in one)."""

    op: str
    axes: tuple[str, ...] | None  # mesh axes that its groups span; None: written by the partitioner, not by us
    shape: tuple[int, ...]
    bytes: int


OPS = ("all-reduce", "reduce-scatter", "all-gather", "all-to-all", "collective-permute", "collective-broadcast")
WIDTH = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "f64": 8}


def collectives_of(text, mesh):
    """Returns the arrays of all collectives in a program's HLO text, without those of groups of one device."""
    numbers = np.vectorize(lambda d: d.id)(mesh.devices)
    spans = {}
    for count in range(1, len(AXES) + 1):
        for axes in itertools.combinations(range(len(AXES)), count):
            rest = [i for i in range(len(AXES)) if i not in axes]
            size = math.prod(mesh.devices.shape[i] for i in axes)
            groups = np.transpose(numbers, (*rest, *axes)).reshape(-1, size)
            # axes of size 1 come in for nothing: the smallest set names the group
            spans.setdefault(frozenset(frozenset(map(int, g)) for g in groups), tuple(AXES[i] for i in axes))
    found = []
    pattern = re.compile(rf"= (\(.*?\)|\S+) ({'|'.join(OPS)})(-start)?\((.*)")
    for line in text.splitlines():
        match = pattern.search(line)
        if not match:
            assert not re.search(rf"\b({'|'.join(OPS)})(-start)?\(", line), f"cannot read: {line}"
            continue
        result, op, _, rest = match.groups()
        explicit = re.search(r"replica_groups=\{(\{[\d,{} ]*\})\}", rest)
        axes = None
        if explicit:
            groups = [[int(n) for n in g.split(",")] for g in re.findall(r"\{([\d, ]+)\}", explicit.group(1))]
            if max(map(len, groups)) == 1:
                continue
            axes = spans[frozenset(frozenset(g) for g in groups)]
        arrays = re.findall(r"(\w+)\[([\d,]*)\]", re.sub(r"/\*.*?\*/", "", result))
        assert arrays, f"cannot read: {line}"
        for dtype, dims in arrays:
            shape = tuple(int(n) for n in dims.split(",") if n)
            found.append(Collective(op, axes, shape, WIDTH[dtype] * math.prod(shape)))
    return found


def test_the_reader_reads():
    """Otherwise a new spelling would make every check below pass."""
    text = """
      %a = f32[16,48]{1,0} reduce-scatter(%x), channel_id=1, replica_groups={{0,2},{1,3},{4,6},{5,7}}, dimensions={0}
      %b = (f32[3]{0}, /*index=1*/bf16[2,2]{1,0}) all-reduce(%x, %y), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%r
      %c = f32[9]{0} all-reduce(%x), replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}, to_apply=%r
      %d = f32[] all-reduce(%x), replica_groups=mesh['a'=2,'b'=4] {'b'}, to_apply=%r
      %e = f32[4]{0} add(%all-reduce, %x)
    """
    assert collectives_of(text, mesh_of((2, 2, 2, 1))) == [
        Collective("reduce-scatter", ("fsdp",), (16, 48), 16 * 48 * 4),
        Collective("all-reduce", BATCH_AXES, (3,), 12),
        Collective("all-reduce", BATCH_AXES, (2, 2), 8),
        Collective("all-reduce", None, (), 4),
    ]
    with pytest.raises(AssertionError, match="cannot read"):
        collectives_of("%a = weird all-to-all(%x)", mesh_of((2, 2, 2, 1)))


BATCH, RING = 8, 2
SPLIT = ((2, 2, 2, 1), (1, 2, 2, 2))


@functools.cache
def program(shape):
    """Returns (mesh, collectives of the compiled train step, {leaf: (local shape, spec)}, without the layer axis)."""
    config = tiny_config(
        train__clip_norm=1e9, train__warmup_ratio=0.0, moe__balance_loss=0.1, moe__z_loss=0.01,
    )  # fmt: skip
    step = step_on(config, shape)
    with jax.set_mesh(step.mesh):
        batch = step.place(fake_batch(8, 1, rows=2, row_tokens=32, patch_dim=48, vocab=96))
        text = step.compile(step.state(), batch).as_text()
    _, shapes, specs = moon.abstract(config.model, config.moe)
    local = {}
    for name, leaf in leaves(shapes).items():
        spec = leaves(specs)[name]
        size = [n // (step.mesh.shape[axis] if axis else 1) for n, axis in zip(leaf.shape, spec, strict=True)]
        stacked = ".layers." in name or ".blocks." in name
        local[name] = (tuple(size[stacked:]), tuple(spec)[stacked:])
    return step.mesh, collectives_of(text, step.mesh), local


def sizes(collectives):
    return Counter(math.prod(c.shape) for c in collectives)


@pytest.mark.parametrize("shape", SPLIT, ids=name_of)
def test_one_reduce_scatter_for_each_fsdp_leaf(shape):
    """A scanned leaf's once, in the body of the loop; each as large as the shard, never as the weight."""
    _, found, local = program(shape)
    shards = Counter(math.prod(size) for size, spec in local.values() if "fsdp" in spec)
    assert shards.total() == 17
    assert sizes(c for c in found if c.op == "reduce-scatter" and c.axes == ("fsdp",)) == shards


@pytest.mark.parametrize("shape", SPLIT, ids=name_of)
def test_weights_are_gathered_once_forward_and_once_backward(shape):
    """Those of the loops again inside their remat; what stands outside the loops only once."""
    mesh, found, local = program(shape)
    expected = Counter()
    for name, (size, spec) in local.items():
        if "fsdp" in spec:
            expected[math.prod(size) * mesh.shape["fsdp"]] += 2 if ".layers." in name or ".blocks." in name else 1
    assert sizes(c for c in found if c.op == "all-gather" and c.axes == ("fsdp",)) == expected


@pytest.mark.parametrize("shape", SPLIT, ids=name_of)
def test_gradients_are_summed_as_shards(shape):
    """After the reduce-scatter, over the other batch axes: expert weights over `data`, all others over `expert` too."""
    mesh, found, local = program(shape)
    of = lambda *axes: tuple(a for a in axes if mesh.shape[a] > 1)  # noqa: E731
    for expert, axes in ((True, of("data")), (False, of("data", "expert"))):
        shards = Counter(
            math.prod(size) for size, spec in local.values() if "fsdp" in spec and ("expert" in spec) == expert
        )
        sums = sizes(c for c in found if c.op == "all-reduce" and c.axes == axes and c.shape)
        if axes:
            assert sums == shards, axes


def allowed(mesh, local):
    """Returns {(op, axes): the most bytes of one array}: everything that may cross between devices."""
    of = lambda *axes: tuple(a for a in axes if mesh.shape[a] > 1)  # noqa: E731
    shards = math.prod(mesh.shape[a] for a in BATCH_AXES)
    tokens = 2 * 32 * 8 // shards
    patches = 2 * 32 * 8 // shards
    width, routes, experts = 32, 3, mesh.shape["expert"]
    shard = 4 * max(math.prod(size) for size, spec in local.values() if "fsdp" in spec)
    vector = 4 * max(math.prod(size) for size, spec in local.values() if "fsdp" not in spec)
    activations = 4 * max(tokens, patches) * width  # the merger's wide input is as large as its patches
    table = {
        ("all-gather", ("fsdp",)): shard * mesh.shape["fsdp"],
        ("reduce-scatter", ("fsdp",)): shard,
        ("all-gather", ("expert",)): 4 * tokens * experts * max(width, routes),
        ("reduce-scatter", ("expert",)): 4 * tokens * max(width, routes),
        ("all-gather", of(*BATCH_AXES)): 4 * RING * 2 * BATCH * width,
        ("reduce-scatter", of(*BATCH_AXES)): 4 * 2 * BATCH // shards * width,
        ("all-reduce", of(*BATCH_AXES)): vector,
        ("all-reduce", of("data", "expert")): shard,
        ("all-reduce", of("data")): shard,
        ("all-reduce", ("tensor",)): activations,
        ("all-reduce", None): 4,  # the squares of the gradients' norm
    }
    return {key: most for key, most in table.items() if key[1] is None or key[1]}


@pytest.mark.parametrize("shape", SPLIT, ids=name_of)
def test_nothing_else_crosses(shape):
    mesh, found, local = program(shape)
    table = allowed(mesh, local)
    for c in found:
        most = table.get((c.op, c.axes))
        assert most is not None, f"{c} is not in the list"
        assert c.bytes <= most, f"{c} is larger than {most} bytes"


@pytest.mark.parametrize("shape", SPLIT, ids=name_of)
def test_no_weight_is_all_reduced_in_full(shape):
    """An all-reduce over `fsdp` is of what has no shards there: smaller than any whole fsdp-sharded gradient."""
    mesh, found, local = program(shape)
    whole = [4 * math.prod(size) * mesh.shape["fsdp"] for size, spec in local.values() if "fsdp" in spec]
    over_fsdp = [c for c in found if c.op == "all-reduce" and (c.axes is None or "fsdp" in c.axes)]
    assert over_fsdp
    assert max(c.bytes for c in over_fsdp) < min(whole)


def test_a_layer_sums_over_tensor_as_often_as_megatron():
    """A layer: two forward (attention, ffn), two backward, attention's again in remat."""
    _, found, _ = program((1, 2, 2, 2))
    tensor = [c for c in found if c.op == "all-reduce" and c.axes == ("tensor",) and len(c.shape) > 1]
    vision, text, merger = 5, 5 + 1, 2  # the MoE's backward sums tokens and their route weights
    assert len(tensor) == vision + text + merger
