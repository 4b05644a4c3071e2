"""Multiplications and collectives counted in traced programs, against counts by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from meshes import mesh_of

from moon_jax.parallel.mesh import BATCH_SPEC
from moon_jax.planning.trace import Transfer, work_of


def flops(function, *shapes):
    structs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return work_of(jax.make_jaxpr(function)(*structs), {"data": 1}).flops


@pytest.mark.parametrize(
    ("function", "shapes", "expected"),
    [
        (lambda x, w: x @ w, [(3, 5), (5, 7)], 2 * 3 * 5 * 7),
        (lambda x, w: jnp.einsum("bij,bjk->bik", x, w), [(4, 3, 5), (4, 5, 7)], 2 * 4 * 3 * 5 * 7),
        (lambda x, w: jax.jit(lambda a: a @ w)(jnp.sin(x)), [(3, 5), (5, 7)], 2 * 3 * 5 * 7),
        (lambda x, w: lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, None, length=6)[0], [(3, 5), (5, 5)], 6 * 150),
        (lambda x, w: lax.cond(x[0, 0] > 0, lambda: x @ w @ w, lambda: x @ w), [(3, 5), (5, 5)], 2 * 150),
        (lambda x, w: jax.grad(lambda w: (x @ w).sum())(w), [(3, 5), (5, 7)], 2 * 210),
        (lambda x, w: jax.grad(lambda w: jax.checkpoint(lambda w: jnp.sin(x @ w))(w).sum())(w), [(3, 5), (5, 7)], 630),
        (lambda x, w: x + w, [(3, 5), (3, 5)], 0),
    ],
    ids=["matrix", "batched", "jit", "scan", "cond", "gradient", "remat", "sum"],
)  # fmt: skip
def test_a_multiply_add_counts_two(function, shapes, expected):
    assert flops(function, *shapes) == expected


def test_ragged_products_count_every_row_once():
    sizes = jnp.array([2, 3, 1])
    forward = lambda x, w: lax.ragged_dot(x, w, sizes)  # noqa: E731
    shapes = [(6, 5), (3, 5, 7)]
    assert flops(forward, *shapes) == 2 * 6 * 5 * 7
    gradient = jax.grad(lambda x, w: forward(x, w).sum(), argnums=(0, 1))
    assert flops(gradient, *shapes) == 3 * 2 * 6 * 5 * 7


def test_collectives_of_one_device_by_kind_axes_and_bytes():
    mesh = mesh_of((2, 2, 2, 1))

    def local(x):  # 16 floats
        def body(x, _):
            return lax.psum_scatter(lax.all_gather(x, "fsdp", tiled=True), "fsdp", tiled=True), None

        x = lax.scan(body, x, None, length=3)[0]
        y = lax.all_to_all(x.reshape(2, 8), "expert", 0, 0, tiled=True)
        return lax.psum((y.sum(), lax.psum(x, "tensor")), ("data", "fsdp", "expert"))

    fn = jax.shard_map(local, mesh=mesh, in_specs=BATCH_SPEC, out_specs=P(), check_vma=False)
    x = jax.ShapeDtypeStruct((128,), jnp.float32, sharding=NamedSharding(mesh, BATCH_SPEC))
    work = work_of(jax.make_jaxpr(fn)(x), mesh.shape)
    everyone = ("data", "fsdp", "expert")
    assert dict(work.transfers) == {
        Transfer("all-gather", ("fsdp",), 128): 3,
        Transfer("reduce-scatter", ("fsdp",), 64): 3,
        Transfer("all-to-all", ("expert",), 64): 1,
        Transfer("all-reduce", everyone, 4): 1,
        Transfer("all-reduce", everyone, 64): 1,
    }
