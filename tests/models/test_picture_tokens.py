"""A picture's visual tokens do not depend on the other pictures of its document, nor on how many there are."""

import functools

import jax
import numpy as np
import pytest
from fake_batch import tiny_config
from flax import nnx
from jax.sharding import NamedSharding

from moon_jax.config import MeshConfig, Role
from moon_jax.data.documents import EncodedDocument
from moon_jax.data.packing import BatchShape, pack_shards
from moon_jax.data.patches import Picture
from moon_jax.models import moon
from moon_jax.parallel.mesh import BATCH_SPEC, make_mesh, place_batch

CONFIG = tiny_config()
VISION = CONFIG.model.vision
GRIDS = [(4, 6), (2, 2), (8, 4), (6, 6), (2, 10), (4, 4), (10, 2), (6, 4)]  # in patches; a window is 4 x 4
WHOLE = BatchShape(rows=1, row_tokens=160, image_slots=8, slot_patches=64, documents=1)


def picture(number: int, seed: int = 0) -> Picture:
    grid = GRIDS[number]
    rng = np.random.default_rng((seed, number))
    return Picture(rng.normal(size=(grid[0] * grid[1], VISION.patch_dim)).astype(np.float32), grid, Role.IMAGE)


@functools.cache
def tower(shape=(1, 1, 1, 1)):
    """A function from packed shards to their visual tokens [G, V, D]."""
    mesh = make_mesh(MeshConfig(*shape), jax.devices()[: int(np.prod(shape))])
    graphdef, _, specs = moon.abstract(CONFIG.model, CONFIG.moe, mesh)
    drawn = moon.build(CONFIG.model, CONFIG.moe, jax.random.key(0))[1]
    params = jax.tree.map(lambda p, s: jax.device_put(np.asarray(p), NamedSharding(mesh, s)), drawn, specs)

    def shard(params, batch):
        return nnx.merge(graphdef, params).visual({name: array[0] for name, array in batch.items()})[None]

    mapped = jax.jit(jax.shard_map(shard, mesh=mesh, in_specs=(specs, BATCH_SPEC), out_specs=BATCH_SPEC))

    def run(arrays):
        with jax.set_mesh(mesh):
            return np.asarray(mapped(params, place_batch(arrays, mesh)))

    return run


def visual(pictures, shape=WHOLE, mesh=(1, 1, 1, 1)) -> list[np.ndarray]:
    """The visual tokens of each picture of one document, in reading order."""
    counts = [len(p.patches) // VISION.merge_unit for p in pictures]
    tokens = np.full(sum(counts), 5, np.int32)
    document = EncodedDocument(tokens, np.full(len(tokens), int(Role.IMAGE), np.int32), tuple(pictures))
    shards = int(np.prod(mesh[:3]))
    arrays = pack_shards([[document]] + [[]] * (shards - 1), shape, VISION)
    slots = arrays["image_slots"][0][arrays["image_slots"][0] >= 0]
    return np.split(tower(mesh)(arrays)[0][slots], np.cumsum(counts)[:-1])


@pytest.mark.parametrize("place", range(8))
def test_other_pictures_of_the_same_sizes_change_no_bit(place):
    kept = [picture(n) if n == place else picture(n, seed=1) for n in range(8)]
    before, after = visual([picture(n) for n in range(8)]), visual(kept)
    np.testing.assert_array_equal(before[place], after[place])
    assert all(np.abs(a - b).max() > 1e-2 for n, (a, b) in enumerate(zip(before, after, strict=True)) if n != place)


def test_the_picture_alone_or_with_up_to_seven_others_in_any_order_and_shape():
    alone = [visual([picture(n)])[0] for n in range(8)]
    for count in range(2, 9):
        order = np.random.default_rng(count).permutation(8)[:count]
        for shape in (WHOLE, BatchShape(rows=2, row_tokens=200, image_slots=9, slot_patches=112, documents=3)):
            for number, tokens in zip(order, visual([picture(n) for n in order], shape), strict=True):
                np.testing.assert_allclose(tokens, alone[number], atol=1e-5)


def test_the_same_on_eight_devices():
    pictures = [picture(n) for n in range(8)]
    for ours, theirs in zip(visual(pictures), visual(pictures, mesh=(1, 2, 2, 2)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
