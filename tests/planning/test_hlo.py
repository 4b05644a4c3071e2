"""The reader of compiled programs: spellings of every compiler, and programs whose collectives are known by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from meshes import mesh_of

from moon_jax.parallel.mesh import BATCH_SPEC
from moon_jax.planning.hlo import HLOError, collectives_of, wire_bytes

MESH = {"data": 2, "fsdp": 2, "expert": 2, "tensor": 1}
REDUCER = "%add (a: f32[], b: f32[]) -> f32[] {\n  ROOT %s = f32[] add(%a, %b)\n}\n"


def program(body: str, *others: str) -> str:
    return "HloModule m\n" + REDUCER + "".join(others) + "ENTRY %main (x: f32[8]) -> f32[8] {\n" + body + "\n}\n"


def read(body: str, *others: str, mesh=MESH):
    return [
        (c.kind, c.axes, c.group, c.dtype, c.shape, c.bytes, c.count)
        for c in collectives_of(program(body, *others), mesh)
    ]


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("{{0,4},{1,5},{2,6},{3,7}}", ("data",)),
        ("{{0,2},{1,3},{4,6},{5,7}}", ("fsdp",)),
        ("{{0,1},{2,3},{4,5},{6,7}}", ("expert",)),
        ("{{0,1,2,3},{4,5,6,7}}", ("fsdp", "expert")),
        ("{{0,1,2,3,4,5,6,7}}", ("data", "fsdp", "expert")),
        ("{}", ("data", "fsdp", "expert")),
        ("[4,2]<=[8]", ("expert",)),
        ("[4,2]<=[2,4]T(1,0)", ("data",)),
        ("[4,2]<=[2,2,2]T(0,2,1)", ("fsdp",)),
        ("[1,8]<=[8]", ("data", "fsdp", "expert")),
        ("mesh['a'=2,'b'=4] {'b'}", ("fsdp", "expert")),
        ("mesh['a'=1,'b'=2,'c'=4], device_ids=([2,2,2]T(2,1,0)) {'b'}", ("expert",)),
        ("mesh['a'=8] {'a':(2)2}", ("fsdp",)),
        ("mesh['a'=8] {'a':(1)4}", ("data", "fsdp")),
        ("{{0,3},{1,2},{4,7},{5,6}}", None),
    ],
)  # fmt: skip
def test_groups_of_devices_are_named_by_mesh_axes(groups, axes):
    line = f"  %r = f32[16,48]{{1,0}} all-reduce(%x), channel_id=1, replica_groups={groups}, to_apply=%add"
    (found,) = read(line)
    size = {None: 2}.get(axes) or 2 ** len(axes)
    assert found == ("all-reduce", axes, size, "f32", (16, 48), 3072, 1)


@pytest.mark.parametrize(
    ("line", "kind", "dtype", "shape", "size"),
    [
        ("bf16[1,2,8]{2,0,1:T(8,128)(2,1)} all-gather(%x)", "all-gather", "bf16", (1, 2, 8), 32),
        ("(f32[4]{0}, f32[8]{0}) all-gather-start(%x)", "all-gather", "f32", (8,), 32),
        ("((f32[4]{0:T(8)}), f32[2]{0:T(8)}, u32[]{:S(2)}) reduce-scatter-start(%x)", "reduce-scatter", "f32", (2,), 8),
        ("f32[4]{0} all-reduce-start(%x)", "all-reduce", "f32", (4,), 16),
        ("s4[6]{0} all-to-all(%x)", "all-to-all", "s4", (6,), 3),
        ("pred[]{:T(512)} all-reduce(%x)", "all-reduce", "pred", (), 1),
        ("f8e4m3fn[5]{0} ragged-all-to-all(%x)", "ragged-all-to-all", "f8e4m3fn", (5,), 5),
    ],
)  # fmt: skip
def test_what_a_collective_gives_out(line, kind, dtype, shape, size):
    (found,) = read(f"  ROOT %c.1 = {line}, replica_groups={{{{0,1}},{{2,3}},{{4,5}},{{6,7}}}}")
    assert found == (kind, ("expert",), 2, dtype, shape, size, 1)


def test_combined_arrays_are_told_apart_and_comments_are_no_arrays():
    body = "  %b = (f32[3]{0}, /*index=1*/bf16[2,2]{1,0}) all-reduce(%x, %y), replica_groups={}, to_apply=%add"
    assert [f[3:6] for f in read(body)] == [("f32", (3,), 12), ("bf16", (2, 2), 8)]


def test_a_permutation_crosses_the_axes_along_which_devices_differ():
    pairs = "source_target_pairs={{0,2},{2,0},{1,3},{3,1}}"
    body = f"  %p = (f32[6]{{0}}, f32[6]{{0}}, u32[]) collective-permute-start(%x), {pairs}"
    assert read(body) == [("collective-permute", ("fsdp",), 2, "f32", (6,), 24, 1)]
    assert collectives_of(program(body), MESH)[0].overlaps


def test_groups_of_one_device_send_nothing_and_reducers_do_not_count():
    body = """  %c = f32[9]{0} all-reduce(%x), replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}, to_apply=%add
  %e = f32[4]{0} add(%all-reduce, %x)"""
    assert read(body) == []


LINE = "  %r{n} = f32[4]{{0}} all-reduce(%x), replica_groups={{{{0,1,2,3,4,5,6,7}}}}, to_apply=%add"


def computation(name: str, body: str) -> str:
    return f"%{name} (p: f32[4]) -> f32[4] {{\n{body}\n}}\n"


def counts(body: str, *others: str) -> dict[str, int]:
    return {c.name: c.count for c in collectives_of(program(body, *others), MESH)}


def test_loops_in_loops_calls_fusions_and_branches_multiply():
    inner = computation("inner", LINE.format(n=1))
    condition = computation("limit", "  %c = s32[] constant(5)\n  ROOT %l = pred[] compare(%p, %c), direction=LT")
    outer = computation(
        "outer",
        '  %w = (f32[4]{0}) while(%t), condition=%known, body=%inner, backend_config={"known_trip_count":{"n":"3"}}\n'
        "  %f = f32[4]{0} fusion(%x), kind=kLoop, calls=%fused\n" + LINE.format(n=2),
    )
    named = {"fused": 3, "left": 4, "right": 5, "unused": 6}
    others = [computation(name, LINE.format(n=n)) for name, n in named.items()]
    others += [inner, condition, outer, computation("known", "  %z = pred[] parameter(0)")]
    body = """  %w = (f32[4]{0}) while(%t), condition=%limit, body=%outer
  %k = f32[4]{0} conditional(%p, %a, %b), branch_computations={%left, %right}
  %c = f32[4]{0} call(%a), to_apply=%left
  %s = ((f32[4]{0}), f32[4]{0}) async-start(%a), calls=%right
  %d = f32[4]{0} async-done(%s), calls=%right"""
    assert counts(body, *others) == {"r1": 15, "r2": 5, "r3": 5, "r4": 2, "r5": 2}
    overlaps = {c.name: c.overlaps for c in collectives_of(program(body, *others), MESH)}
    assert overlaps["r5"]
    assert not overlaps["r4"]


def test_the_reduce_scatter_kernel_of_tpus_is_no_all_reduce():
    """It is written as a fusion of an all-reduce of everything (padded) and the slice that stays on a device."""
    kernel = """%all-reduce-scatter.1.clone (input: f32[30,64]) -> f32[4,64] {
  %pad = f32[32,64]{1,0:T(8,128)} pad(%input, %zero), padding=0_2x0_0
  %all-reduce.5 = f32[32,64]{1,0:T(8,128)} all-reduce(%pad), replica_groups={}, to_apply=%add
  ROOT %slice = f32[4,64]{1,0:T(8,128)S(1)} dynamic-slice(%all-reduce.5, %i, %j), dynamic_slice_sizes={4,64}
}
"""
    body = "  %f = f32[4,64]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1.clone"
    axes = ("data", "fsdp", "expert")
    assert read(body, kernel) == [("reduce-scatter", axes, 8, "f32", (4, 64), 1024, 1)]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("  %a = weird all-to-all(%x)", "which"),
        ("  %a = f32[4]{0} all-reduce(%x), to_apply=%add", "which devices"),
        ("  %a = f32[4]{0} all-reduce(%x), replica_groups=new['a'=8]", "which devices"),
        ("  %w = f32[4]{0} while(%t), condition=%none, body=%add", "how often"),
        ("  %a = odd[4]{0} all-reduce(%x), replica_groups={}", "how wide"),
        ("  %a = (f32[4]{0} all-reduce(%x), replica_groups={}", "bracket"),
    ],
)
def test_an_unknown_spelling_is_an_error_and_not_nothing(body, message):
    with pytest.raises(HLOError, match=message):
        read(body)


def test_text_without_a_program_is_an_error():
    with pytest.raises(HLOError, match="no ENTRY"):
        collectives_of("nothing", MESH)


def test_a_compiled_program_with_scans():
    """Three trips of five: an all-gather of 32 f32 and a psum_scatter each; then a psum over all."""
    mesh = mesh_of((2, 2, 2, 1))

    def local(x):
        def inner(x, _):
            whole = lax.all_gather(x * 2, "fsdp", tiled=True)
            return lax.psum_scatter(jnp.sin(whole), "fsdp", tiled=True), None

        def outer(x, _):
            return lax.scan(inner, x + 1, None, length=5)[0], None

        x = lax.scan(outer, x, None, length=3)[0]
        return lax.psum(x, ("data", "fsdp", "expert"))

    fn = jax.shard_map(local, mesh=mesh, in_specs=BATCH_SPEC, out_specs=P())
    with jax.set_mesh(mesh):
        text = (
            jax.jit(fn)
            .lower(jax.ShapeDtypeStruct((128,), jnp.float32, sharding=NamedSharding(mesh, BATCH_SPEC)))
            .compile()
            .as_text()
        )
    found = {(c.kind, c.axes, c.shape, c.bytes, c.count) for c in collectives_of(text, mesh.shape)}
    assert found == {
        ("all-gather", ("fsdp",), (32,), 128, 15),
        ("reduce-scatter", ("fsdp",), (16,), 64, 15),
        ("all-reduce", ("data", "fsdp", "expert"), (16,), 64, 1),
    }


@pytest.mark.parametrize(
    ("kind", "sent"),
    [("all-gather", 96), ("reduce-scatter", 384), ("all-reduce", 192), ("all-to-all", 96), ("collective-permute", 128)],
)
def test_bytes_sent_by_a_ring_of_four(kind, sent):
    """A gathered array of 128 bytes has 32 on each device, which passes on three such parts; and so on."""
    assert wire_bytes(kind, 128, 4) == sent
