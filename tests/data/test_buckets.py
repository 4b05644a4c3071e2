"""Which documents share a batch: every one once, in a shape into which it fits, at no more cost than must be."""

import itertools

import numpy as np
import pytest

from moon_jax.config import ModelConfig, MoEConfig, VisionConfig
from moon_jax.data import buckets, slots
from moon_jax.data.buckets import Need

MODEL = ModelConfig(vision=VisionConfig(patch_size=4, window_size=16))  # a window is 2 x 2 tokens: 4 x 4 patches
DENSE = MoEConfig(experts=0)


def plan(needs, batch=8, shards=1):
    return buckets.plan(needs, batch, shards, MODEL, DENSE)


def random_needs(n, seed=0):
    rng = np.random.default_rng(seed)
    needs = []
    for _ in range(n):
        grids = tuple(tuple(2 * rng.integers(1, 9, 2)) for _ in range(rng.choice([0, 0, 1, 1, 3])))
        grids = tuple((int(h), int(w)) for h, w in grids)
        needs.append(Need(int(rng.integers(1, 200)) + sum(h * w // 4 for h, w in grids), grids))
    return needs


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("n", [0, 1, 5, 300])
def test_every_document_once_in_a_shape_with_room_for_it(n, shards):
    needs = random_needs(n)
    seen = []
    for bucket in plan(needs, shards=shards):
        shape = bucket.shape
        assert shape.rows == shape.documents <= 8
        for batch in bucket.batches:
            assert len(batch) == shards
            for shard in batch:
                assert len(shard) <= shape.documents
                seen += shard
                assert all(needs[i].tokens <= shape.row_tokens for i in shard)
                grids = [grid for i in shard for grid in needs[i].grids]
                chunks = shape.slot_patches // MODEL.vision.window_patches
                places = slots.place(grids, chunks, MODEL.vision)  # raises where a picture has no room
                assert max((place.slot + 1 for place in places), default=0) <= shape.image_slots
    assert sorted(seen) == list(range(n))


def test_the_order_of_equal_documents_and_the_history_change_nothing():
    needs = random_needs(100)
    assert plan(needs) == plan(needs)
    shapes = [b.shape for b in plan(needs)]
    shuffled = [needs[i] for i in np.random.default_rng(1).permutation(100)]
    assert [(s.rows, s.row_tokens, s.slot_patches) for s in shapes] == [
        (s.rows, s.row_tokens, s.slot_patches) for s in (b.shape for b in plan(shuffled))
    ]


def test_many_short_documents_do_not_pay_for_a_few_long_ones():
    needs = [Need(10, ())] * 400 + [Need(400, ())] * 16
    shapes = [bucket.shape.row_tokens for bucket in plan(needs)]
    assert shapes == [448, 16]  # 50 and 2 steps of 8, rounded up; the largest first
    few = [Need(10, ())] * 20 + [Need(400, ())] * 16  # not worth a compilation
    assert [bucket.shape.row_tokens for bucket in plan(few)] == [448]


def test_texts_never_share_a_shape_with_pictures():
    needs = [Need(10, ()), Need(14, ((4, 4),))]
    pictures, texts = plan(needs)
    assert (pictures.shape.slot_patches, pictures.batches) == (16, (((1,),),))
    assert (texts.shape.image_slots, texts.shape.slot_patches, texts.batches) == (1, 16, (((0,),),))


def test_small_pictures_share_slots():
    """A picture of 8 x 8 patches takes 4 chunks, its crop of 4 x 4 one: 5 fit into a slot of 4 and a quarter."""
    needs = [Need(30, ((8, 8), (4, 4)))] * 8
    (bucket,) = plan(needs)
    assert bucket.shape.slot_patches == 4 * 16
    assert bucket.shape.image_slots == 10


def test_long_documents_come_in_smaller_batches():
    (bucket,) = plan([Need(1500, ())] * 20)
    assert bucket.shape.documents == 2  # 8 * 512 tokens hold two of 1536
    assert len(bucket.batches) == 10
    (bucket,) = plan([Need(1500, ())] * 3, shards=4)
    assert bucket.shape.documents == 1  # the others would be empty
    (bucket,) = plan([Need(10**5, ())])
    assert bucket.shape.documents == 1
    # 512 x 256 patches: 16 heads x 2**34 pairs x 4 bytes are a tebibyte; 64 x 64 of them fit twice into 2 GiB
    (bucket,) = plan([Need(300, ((512, 256),))] * 4)
    assert bucket.shape.documents == 1
    (bucket,) = plan([Need(300, ((64, 64),))] * 4)
    assert bucket.shape.documents == 2


def test_sizes_are_rounded_up_by_at_most_a_quarter_to_few_values():
    rounded = [buckets._round_up(n) for n in range(1, 1000)]
    assert rounded[:18] == [1, 2, 3, 4, 5, 6, 7, 8, 10, 10, 12, 12, 14, 14, 16, 16, 20, 20]
    assert all(n <= r <= 1.25 * n for n, r in enumerate(rounded, 1))
    assert len(set(rounded)) == 8 + 4 * 7
    assert buckets._round_up(0) == 0


@pytest.mark.parametrize("seed", range(4))
def test_the_partition_is_the_cheapest_of_all(seed):
    """Against every way to cut the sorted sizes into runs."""
    rng = np.random.default_rng(seed)
    groups = [
        (buckets._Size(0, 0, int(tokens)), list(range(rng.integers(1, 60))))
        for tokens in np.unique(rng.integers(1, 60, 7)) * 8
    ]
    cost = buckets._Cost(MODEL, DENSE, 8, 1)
    compilation = 3 * cost.batch(groups[-1][0], 8)

    def total(runs):
        out = 0
        for run in runs:
            out += compilation + cost.bucket(run[-1][0], sum(len(numbers) for _, numbers in run))
        return out

    ways = []
    for cuts in itertools.product([False, True], repeat=len(groups) - 1):
        bounds = [0, *[i for i, cut in enumerate(cuts, 1) if cut], len(groups)]
        ways.append(total([groups[a:b] for a, b in itertools.pairwise(bounds)]))
    runs = buckets._partition(groups, cost, compilation)
    assert total(runs) == min(ways)
    assert [group for run in runs[::-1] for group in run] == groups
    assert 1 < len(runs) < len(groups) or seed > 1
