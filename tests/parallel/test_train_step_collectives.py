"""All that crosses between devices in the compiled train step: what, over which axes, how often and how many bytes."""

import functools
import math
from collections import Counter
from typing import NamedTuple

import jax
import pytest
from fake_batch import fake_batch, tiny_config
from jax.sharding import Mesh
from meshes import leaves, name_of, step_on
from odd_sizes import odd_batch, odd_config

from moon_jax.config import Role
from moon_jax.parallel.mesh import BATCH_AXES
from moon_jax.planning.hlo import Collective, collectives_of

ODD = (1, 1, 2, 4)  # this one with sizes that do not all divide over `tensor`
SHAPES = ((2, 2, 2, 1), (1, 2, 4, 1), (1, 2, 2, 2), ODD)
SPLIT = [shape for shape in SHAPES if shape[1] > 1]
WIDTH, LAYERS, EXPERTS, BATCH, RING, TOKENS = 32, 2, 8, 8, 2, 2 * 32 * 8


class Leaf(NamedTuple):
    """A parameter on one device, as the body of its scan sees it."""

    size: int  # numbers
    layers: int  # 1 outside the scans
    axes: frozenset[str]  # mesh axes that it is sharded over
    in_loop: bool


class Program(NamedTuple):
    """What is asked about a compiled train step."""

    mesh: Mesh
    found: list[Collective]
    leaves: dict[str, Leaf]

    def over(self, *axes):
        """Returns those axes that are larger than 1: how the reader names a group."""
        return tuple(axis for axis in axes if self.mesh.shape[axis] > 1)


@functools.cache
def program(shape):
    if shape == ODD:
        config, batch = odd_config(), odd_batch()
    else:
        config = tiny_config(
            train__clip_norm=1e9, train__warmup_ratio=0.0, moe__balance_loss=0.1, moe__z_loss=0.01,
        )  # fmt: skip
        batch = fake_batch(8, 1, rows=2, row_tokens=32, patch_dim=48, vocab=96)
    step = step_on(config, shape)
    with jax.set_mesh(step.mesh):
        text = step.compile(step.state(), step.place(batch)).as_text()
    local, specs = {}, leaves(step.trainer.specs)
    for name, leaf in leaves(step.trainer.shapes).items():
        axes = frozenset(axis for axis in specs[name] if axis)
        in_loop = ".layers." in name or ".blocks." in name
        layers = leaf.shape[0] if in_loop else 1
        ways = math.prod(step.mesh.shape[axis] for axis in axes)
        local[name] = Leaf(math.prod(leaf.shape) // layers // ways, layers, axes, in_loop)
    return Program(step.mesh, collectives_of(text, step.mesh.shape), local)


def of_weights(p):
    """Returns the collectives of `gather_weight` and its backward pass as {(kind, axes, numbers given out): how many}.

    A shard is gathered over `fsdp`, in a scan again by its remat; its gradient is reduce-scattered there, and then
    summed as a shard over the other batch axes that the weight does not lie on.
    """
    expected = Counter()
    for leaf in p.leaves.values():
        if "fsdp" in leaf.axes and p.over("fsdp"):
            expected["all-gather", ("fsdp",), leaf.size * p.mesh.shape["fsdp"]] += 2 if leaf.in_loop else 1
            expected["reduce-scatter", ("fsdp",), leaf.size] += 1
        if others := p.over(*(axis for axis in BATCH_AXES if axis not in leaf.axes)):
            expected["all-reduce", others, leaf.size] += 1
    return expected


@pytest.mark.parametrize("shape", SHAPES, ids=name_of)
def test_weights_and_gradients_cross_as_they_should(shape):
    """One reduce-scatter for each fsdp leaf, and nothing else over the axes that only weights cross."""
    p = program(shape)
    expected = of_weights(p)
    found = Counter((c.kind, c.axes, math.prod(c.shape)) for c in p.found if c.shape)
    assert expected - found == Counter()
    scatters = sum(n for (kind, axes, _), n in expected.items() if (kind, axes) == ("reduce-scatter", ("fsdp",)))
    assert scatters == (17 if shape[1] > 1 else 0)
    only = {("all-gather", ("fsdp",)), ("reduce-scatter", ("fsdp",))}
    only |= {("all-reduce", p.over("data")), ("all-reduce", p.over("data", "expert"))}
    only -= {("all-reduce", p.over(*BATCH_AXES))}  # the loss and the router's statistics cross those too
    assert Counter({key: n for key, n in found.items() if key[:2] in only}) == Counter(
        {key: n for key, n in expected.items() if key[:2] in only}
    )


@pytest.mark.parametrize("shape", SPLIT, ids=name_of)
def test_bytes_over_fsdp(shape):
    """Of each layer: the shard of a gradient once, the whole weight once, or twice in a scan."""
    p = program(shape)
    sent = Counter()
    for c in p.found:
        if c.axes == ("fsdp",) and c.shape:
            sent[c.kind] += c.bytes * c.count
    stored = [leaf for leaf in p.leaves.values() if "fsdp" in leaf.axes]
    fsdp = p.mesh.shape["fsdp"]
    assert sent["reduce-scatter"] == sum(4 * leaf.size * leaf.layers for leaf in stored)
    assert sent["all-gather"] == sum(4 * leaf.size * fsdp * leaf.layers * (1 + leaf.in_loop) for leaf in stored)
    assert set(sent) == {"reduce-scatter", "all-gather"}


def allowed(p):
    """Returns {(kind, axes): the most bytes of one array}: everything that may cross between devices."""
    shards = math.prod(p.mesh.shape[axis] for axis in BATCH_AXES)
    tokens, routes, experts = TOKENS // shards, 3, p.mesh.shape["expert"]
    shard = 4 * max(leaf.size for leaf in p.leaves.values() if "fsdp" in leaf.axes)
    vector = 4 * max(leaf.size for leaf in p.leaves.values() if "fsdp" not in leaf.axes)
    statistics = 4 * LAYERS * (len(Role) - 1) * EXPERTS  # tokens of each role that visit each expert
    activations = 4 * tokens * WIDTH  # of patches there are as many; the merger's wide input is as large as they are
    batch = p.over(*BATCH_AXES)
    rows = [
        ("all-gather", ("fsdp",), shard * p.mesh.shape["fsdp"]),
        ("reduce-scatter", ("fsdp",), shard),
        ("all-reduce", p.over("data", "expert"), shard),
        ("all-reduce", p.over("data"), shard),
        ("all-reduce", batch, max(vector, statistics)),
        ("all-gather", ("expert",), 4 * tokens * experts * max(WIDTH, routes)),  # dispatch
        ("reduce-scatter", ("expert",), 4 * tokens * max(WIDTH, routes)),
        ("all-gather", batch, 4 * RING * 2 * BATCH * WIDTH),  # the loss
        ("reduce-scatter", batch, 4 * 2 * BATCH // shards * WIDTH),
        ("all-reduce", ("tensor",), activations),
    ]
    table = {}
    for kind, axes, most in rows:
        table[kind, axes] = max(most, table.get((kind, axes), 0))
    return table


@pytest.mark.parametrize("shape", SHAPES, ids=name_of)
def test_nothing_else_crosses(shape):
    p = program(shape)
    table = allowed(p)
    for c in p.found:
        if c.kind == "all-reduce" and not c.shape:
            continue  # a number: loss, counts, squares of the gradients' norm
        most = table.get((c.kind, c.axes))
        assert most is not None, f"{c} is not in the list"
        assert c.bytes <= most, f"{c} is larger than {most} bytes"


@pytest.mark.parametrize("shape", SPLIT, ids=name_of)
def test_no_weight_is_all_reduced_in_full(shape):
    """An all-reduce over `fsdp` is of what has no shards there: smaller than any whole fsdp-sharded gradient."""
    p = program(shape)
    whole = [4 * leaf.size * p.mesh.shape["fsdp"] for leaf in p.leaves.values() if "fsdp" in leaf.axes]
    over_fsdp = [c for c in p.found if c.kind == "all-reduce" and (c.axes is None or "fsdp" in c.axes)]
    assert over_fsdp
    assert max(c.bytes for c in over_fsdp) < min(whole)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        # forward two (attention, ffn), backward two, and attention's again in remat; the backward pass of the MoE sums
        # tokens and their route weights. Merger: forward and backward. Embedding: forward
        ((1, 2, 2, 2), 5 + 6 + 2 + 1),
        # the vision FFN and the embedding stay whole; k and v do too, and their gradients are summed
        (ODD, 3 + 6 + 2 + 2),
    ],
)
def test_a_layer_sums_over_tensor_as_often_as_megatron(shape, expected):
    tensor = [c for c in program(shape).found if c.kind == "all-reduce" and c.axes == ("tensor",) and c.shape]
    assert len(tensor) == expected
