"""Each collective of the dense model by itself: values and gradients, and how often it is called."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from meshes import EIGHT, ONE, assert_close, mesh_of, name_of

from moon_jax.parallel.collectives import enter_tensor, gather_param, gather_weight, gather_weights, leave_tensor
from moon_jax.parallel.mesh import AXES, BATCH_AXES, BATCH_SPEC, partition_spec


def place(mesh, spec, x):
    return jax.device_put(np.asarray(x), NamedSharding(mesh, spec))


def spread(spec):
    """Returns the mesh axes of a PartitionSpec's entries, as tuples."""
    return [entry if isinstance(entry, tuple) else (entry,) if entry else () for entry in spec]


@pytest.mark.parametrize("shape", [ONE, *EIGHT], ids=name_of)
@pytest.mark.parametrize(
    ("axes", "size"),
    [
        (("embed", "ffn"), (8, 6)), (("ffn", "embed"), (6, 8)), (("kv", "group", "head_dim", "embed"), (2, 3, 2, 8)),
        (("norm",), (8,)), (("embed", "routes"), (8, 5)), (("embed", "ffn"), (8, 5)),
        (("experts", "embed", "ffn"), (4, 8, 6)), (("split_experts", "split_ffn", "embed"), (3, 8, 8)),
    ],
    ids=str,
)  # fmt: skip
def test_gather_weight_gives_the_whole_weight_and_sums_gradients(shape, axes, size):
    """Batch shard g uses the weight with the factor g + 1: the gradient is the sum of the factors that used it."""
    mesh = mesh_of(shape)
    spec = partition_spec(axes, size, mesh)
    weight = np.random.default_rng(0).normal(size=size).astype(np.float32)
    cotangent = np.random.default_rng(1).normal(size=size).astype(np.float32)
    inner = P(*(tuple(axis for axis in entry if axis != "fsdp") or None for entry in spread(spec)))
    split = {axis for entry in spread(inner) for axis in entry}

    def local(shard, cotangent):
        whole = gather_weight(shard, axes, jnp.float32)
        factor = jax.lax.axis_index(BATCH_AXES) + 1
        return jax.lax.psum((whole * cotangent).sum() * factor, tuple({*BATCH_AXES, *split}))

    fn = jax.shard_map(local, mesh=mesh, in_specs=(spec, inner), out_specs=P())
    with jax.set_mesh(mesh):
        value, gradient = jax.jit(jax.value_and_grad(fn))(place(mesh, spec, weight), place(mesh, inner, cotangent))
    factors = 1.0 + np.arange(math.prod(shape[:3])).reshape(shape[:3])
    expected = cotangent * factors.sum()
    if "expert" in split:  # each part of the weight is used by the batch shards of its expert shard alone
        dimension = next(i for i, entry in enumerate(spread(inner)) if "expert" in entry)
        of_parts = np.repeat(factors.sum((0, 1)), size[dimension] // shape[2])
        expected = cotangent * np.expand_dims(of_parts, [i for i in range(len(size)) if i != dimension])
    assert float(value) == pytest.approx(float((weight.astype(np.float64) * expected).sum()), rel=1e-4, abs=1e-4)
    assert_close(gradient, expected, 1e-6)


@pytest.mark.parametrize("shape", [(8, 1, 1, 1), (1, 4, 2, 1)], ids=name_of)
def test_gradients_of_many_devices_add_up_in_float32(shape):
    """256 + 7 * 1 is 263; bfloat16, which has 8 bits, would stay at 256."""
    mesh = mesh_of(shape)
    spec = partition_spec(("embed", "ffn"), (8, 2), mesh)

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
    specs = {
        name: partition_spec(p.get_metadata("axes"), p[...].shape, mesh) for (name,), p in nnx.to_flat_state(state)
    }
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


def tensor_block(x, a, b, c):
    h = enter_tensor(x, a)
    return leave_tensor((jnp.tanh(h @ a) * (h @ b)) @ c) + x


@pytest.mark.parametrize(("width", "sums"), [(8, 2), (6, 0)])
def test_a_tensor_block_costs_one_sum_forward_and_one_backward(width, sums):
    """And none where its width does not divide: every device computes all of it."""
    mesh = mesh_of((1, 1, 1, 4))
    r = np.random.default_rng(0)
    x, a, b, c = (r.normal(size=s).astype(np.float32) for s in ((3, 5), (5, width), (5, width), (width, 5)))
    split = "tensor" if width % 4 == 0 else None
    specs = (P(), P(None, split), P(None, split), P(split, None))
    fn = jax.shard_map(tensor_block, mesh=mesh, in_specs=specs, out_specs=P())
    args = [place(mesh, spec, value) for spec, value in zip(specs, (x, a, b, c), strict=True)]
    gradient = jax.jit(jax.grad(lambda *args: (fn(*args) ** 2).sum(), argnums=(0, 1, 2, 3)))
    with jax.set_mesh(mesh):
        got = gradient(*args)
        text = gradient.lower(*args).as_text()
    want = jax.grad(lambda x, a, b, c: (((jnp.tanh(x @ a) * (x @ b)) @ c + x) ** 2).sum(), argnums=(0, 1, 2, 3))
    for g, w in zip(got, want(x, a, b, c), strict=True):
        assert_close(g, w, 1e-5)
    assert text.count("stablehlo.all_reduce") == sums
