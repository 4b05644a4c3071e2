"""Greedy decoding of the guided MoE on meshes against decoding without a cache: the whole text again for each token.

The dense model's tokens are compared with transformers' in tests/parity/test_greedy.py.
"""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from fake_batch import tiny_config
from flax import nnx
from jax.sharding import PartitionSpec as P
from meshes import ONE, draw, mesh_of
from PIL import Image

from moon_jax.config import ConfigError, MoEConfig, Role
from moon_jax.data.patches import patchify
from moon_jax.data.prompts import EncodedPrompt, prompt_batch, prompt_shape
from moon_jax.models import head as heads
from moon_jax.models import moon
from moon_jax.models.generate import NOTHING, Generator
from moon_jax.parallel.mesh import BATCH_AXES, BATCH_SPEC, batch_shards, place_batch, shardings

CONFIG = tiny_config(model__text__num_attention_heads=8).model  # 2 kv heads of 4 queries each
MOE = MoEConfig(experts=8, top_k=2, capacity_factor=0.25, guided_capacity=0.01)  # training would drop most routes
NEW, IMAGE = 8, 90


pytestmark = pytest.mark.usefixtures("quick_compilation")


def prompts():
    """Texts with guided roles, one picture and two; lengths 3 to 20."""
    rng = np.random.default_rng(0)
    out = []
    for text, sizes in ((5, [(16, 8)]), (9, []), (3, []), (12, [(8, 8), (8, 24)]), (7, [(24, 24)])):
        pixels = [rng.integers(0, 256, (*size, 3)).astype(np.uint8) for size in sizes]
        pictures = tuple(patchify(Image.fromarray(p), CONFIG.vision, 64, 10**6) for p in pixels)
        ids, roles = rng.integers(0, IMAGE, text), rng.choice([Role.OTHER, Role.CATEGORY, Role.ATTRIBUTE], text)
        pads = sum(len(p.patches) for p in pictures) // CONFIG.vision.merge_unit
        ids, roles = [*ids[:2], *[IMAGE] * pads, *ids[2:]], [*roles[:2], *[Role.IMAGE] * pads, *roles[2:]]
        out.append(EncodedPrompt(np.array(ids, np.int32), np.array(roles, np.int32), pictures))
    return out


def place(moe, mesh):
    _, shapes, specs = moon.abstract(CONFIG, moe, mesh)
    params = draw(shapes)
    params["text"]["embed"] *= 0.3  # a tied head must not just say its token again
    return jax.device_put(params, shardings(specs, mesh))


def run(shape, moe, side="left", new=NEW, given=None):
    mesh, given = mesh_of(shape), prompts() if given is None else given
    shards = batch_shards(mesh)
    sizes = prompt_shape(given, -(-len(given) // shards), shards, CONFIG.vision)
    batch = prompt_batch(given, sizes, CONFIG.vision, range(shards), side)
    out = Generator(CONFIG, moe, mesh)(place(moe, mesh), batch, new)
    assert out.dtype == np.int32
    assert (out[len(given) :] == NOTHING).all()
    return out[: len(given)]


@functools.cache
def without_cache(moe):
    """The same continuations by one forward pass over the whole text for each token."""
    dropless = dataclasses.replace(moe, capacity_factor=0.0, guided_capacity=0.0)
    mesh = mesh_of(ONE)
    graphdef, _, specs = moon.abstract(CONFIG, dropless, mesh)

    def shard(params, batch):
        model = nnx.merge(graphdef, params)
        hidden, _ = model.hidden({name: array[0] for name, array in batch.items()})
        return heads.logits(hidden, model.text.embed[...])[None]

    out = P(BATCH_AXES, None, None, "tensor")
    forward = jax.jit(jax.shard_map(shard, mesh=mesh, in_specs=(specs, BATCH_SPEC), out_specs=out))
    params, given = place(moe, mesh), prompts()
    longest = max(len(p.tokens) for p in given) + NEW
    sizes = dataclasses.replace(prompt_shape(given, len(given), 1, CONFIG.vision), row_tokens=longest)
    start = [len(p.tokens) for p in given]
    for _ in range(NEW):
        batch = prompt_batch(given, sizes, CONFIG.vision, range(1), "right")
        logits = np.asarray(forward(params, place_batch(batch, mesh)))[0]
        for i, prompt in enumerate(given):
            token = logits[i, len(prompt.tokens) - 1].argmax()
            given[i] = dataclasses.replace(
                prompt,
                tokens=np.append(prompt.tokens, token).astype(np.int32),
                roles=np.append(prompt.roles, np.int32(Role.OTHER)),
            )
    out = np.stack([p.tokens[n:] for p, n in zip(given, start, strict=True)])
    assert len(np.unique(out)) >= NEW
    return out


CASES = [
    ("slots", ONE, "right"),
    ("slots", (2, 2, 1, 2), "left"),
    ("dense", (1, 2, 1, 4), "right"),  # the queries of each kv head are split, keys and values are not
    ("slots", (1, 1, 8, 1), "left"),
]


@pytest.mark.parametrize(("strategy", "shape", "side"), CASES, ids=str)
def test_guided_moe_equals_decoding_without_a_cache(strategy, shape, side):
    moe = dataclasses.replace(MOE, strategy=strategy)
    np.testing.assert_array_equal(run(shape, moe, side), without_cache(moe))


def test_a_continuation_depends_on_its_prompt_alone():
    """Alone, in another order, with fewer new tokens: the same."""
    expected, given = without_cache(MOE), prompts()
    np.testing.assert_array_equal(run(ONE, MOE, new=1), expected[:, :1])
    np.testing.assert_array_equal(run(ONE, MOE, given=[given[3], given[0]]), expected[[3, 0]])


def test_what_cannot_be_generated_is_refused():
    mesh = mesh_of(ONE)
    with pytest.raises(ConfigError, match="'bidirectional' cannot generate"):
        Generator(dataclasses.replace(CONFIG, attention="bidirectional"), MOE, mesh)
    with pytest.raises(ValueError, match="max_new_tokens is 0"):
        Generator(CONFIG, MOE, mesh)({}, {}, 0)
