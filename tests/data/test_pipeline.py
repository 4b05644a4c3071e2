"""Batches by number: the same content whatever the hosts, shards and workers, and broken pictures on the way."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from moon_jax.config import Config, ConfigError, DataConfig, EvalConfig, ModelConfig, Role, TrainConfig, VisionConfig
from moon_jax.data import packing, tokenizer
from moon_jax.data.pipeline import TrainBatches, stream
from moon_jax.data.records import DataError, Dataset, ImageRef, Product, Query, Triplet

VISION = VisionConfig(patch_size=4, window_size=16)
DATA = DataConfig(
    min_pixels=64, max_pixels=40 * 64, title_tokens=16, category_tokens=8, attribute_tokens=12, aspect_only=0.1
)
CONFIG = Config(
    model=ModelConfig(vision=VISION),
    data=DATA,
    train=TrainConfig(batch_size=8, seed=5),
    eval=EvalConfig(batch_documents=5),
)


def with_data(**changes):
    return dataclasses.replace(CONFIG, data=dataclasses.replace(DATA, **changes))


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    texts = [f"thing number {i} group {i % 4}" for i in range(99)]
    return tokenizer.train_bpe(texts, tmp_path_factory.mktemp("tokenizer"), 400)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """30 triplets of 60 products, all with pictures of their own in which a box is known for every other one."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)

    def picture(name, number):
        size = rng.integers(20, 90, 2)
        Image.fromarray(rng.integers(0, 255, (*size, 3)).astype(np.uint8)).save(folder / f"{name}.png")
        return ImageRef(str(folder / f"{name}.png"), (2.0, 3.0, 15.0, 16.0) if number % 2 else None)

    products = [
        Product(
            f"p{i:02}",
            f"thing number {i}",
            "",
            (picture(f"item{i}", i),),
            ("all", f"group {i % 4}"),
            (("n", (str(i),)),),
        )
        for i in range(60)
    ]
    triplets = [
        Triplet(f"t{i}", Query(f"thing {i}", picture(f"query{i}", i)), products[i], products[i + 30], "part")
        for i in range(30)
    ]
    return Dataset(tuple(triplets), (), (), {p.id: p for p in products}, "", {})


def make(dataset, tokens, config=CONFIG, shards=1, hosts=None):
    return TrainBatches(dataset, tokens, config, shards, hosts or range(shards))


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def documents_of(arrays, name):
    """What each row of the global batch has as its query (positive, negative): tokens, roles and pixels."""
    out = []
    for g in range(len(arrays["tokens"])):
        shard = {key: value[g] for key, value in arrays.items()}
        owner = np.take_along_axis(shard["document_of_segment"], shard["segment_ids"], axis=1)
        pixels = shard["patches"].reshape(-1, VISION.merge_unit * VISION.patch_dim)
        for document in shard[name]:
            here = owner == document
            slots = shard["image_slots"][here]
            seen = pixels[slots[slots >= 0]].tobytes()
            out.append((shard["tokens"][here].tobytes(), shard["roles"][here].tobytes(), seen))
    return out


def test_global_batch_is_the_same_for_every_number_of_shards(dataset, tokens):
    whole = make(dataset, tokens)[3]
    for shards in (2, 4, 8):
        parts = make(dataset, tokens, shards=shards)[3]
        assert parts.arrays["query"].shape == (shards, 8 // shards)
        for name in ("positive_product", "negative_product"):
            np.testing.assert_array_equal(parts.arrays[name].reshape(-1), whole.arrays[name][0])
        for name in ("query", "positive", "negative"):
            assert documents_of(parts.arrays, name) == documents_of(whole.arrays, name)
        assert parts.info == whole.info


def test_hosts_make_their_shards_bit_for_bit(dataset, tokens):
    whole = make(dataset, tokens, shards=4)[2]
    for hosts in ([range(4)], [range(2), range(2, 4)], [range(i, i + 1) for i in range(4)]):
        parts = [make(dataset, tokens, shards=4, hosts=host)[2].arrays for host in hosts]
        assert_same({name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, whole.arrays)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_stream_equals_random_access_with_any_number_of_workers(dataset, tokens, workers):
    batches = make(dataset, tokens, with_data(augment=True), shards=2)
    steps = []
    for step, batch in stream(batches, 4, 9, workers, prefetch=2):
        expected = batches[step]
        assert_same(batch.arrays, expected.arrays)
        assert batch.info == expected.info
        steps.append(step)
    assert steps == [4, 5, 6, 7, 8]


def test_what_a_batch_holds(dataset, tokens):
    batches = make(dataset, tokens, shards=2)
    batch = batches[0]
    rows, _ = batches.sampler.rows(0)
    for g in range(2):
        shard = {name: value[g] for name, value in batch.arrays.items()}
        owner = np.take_along_axis(shard["document_of_segment"], shard["segment_ids"], axis=1)
        for i, row in enumerate(rows[4 * g : 4 * g + 4]):
            for name, item in (("positive", row.triplet.positive), ("negative", row.negative)):
                assert list(dataset.products)[shard[f"{name}_product"][i]] == item.id
                roles = set(shard["roles"][owner == shard[name][i]].tolist())
                assert (Role.TITLE in roles) == (Role.IMAGE in roles) == row.form.title
                assert (Role.CATEGORY in roles) == (Role.ATTRIBUTE in roles) == row.form.aspects
                ids = shard["tokens"][(owner == shard[name][i]) & (shard["roles"] == Role.TITLE)]
                assert tokens.decode(ids.tolist()) == (item.title if row.form.title else "")
            roles = set(shard["roles"][owner == shard["query"][i]].tolist())
            assert (Role.TITLE in roles) == (row.modality != "image")
            assert (Role.IMAGE in roles) == (row.modality != "text")
            assert not roles & {Role.CATEGORY, Role.ATTRIBUTE}
    assert {name: a.dtype.name for name, a in batch.arrays.items() if a.dtype != np.int32} == {"patches": "float32"}
    assert {name: a.shape for name, a in batch.arrays.items()} == {
        name: a.shape for name, a in batches[7].arrays.items()
    }


def test_augmentation_changes_pictures_with_the_step_only(dataset, tokens):
    plain, moved = (make(dataset, tokens, with_data(augment=on)) for on in (False, True))
    np.testing.assert_array_equal(plain[1].arrays["positive_product"], moved[1].arrays["positive_product"])
    assert documents_of(plain[1].arrays, "positive") != documents_of(moved[1].arrays, "positive")
    assert_same(moved[1].arrays, make(dataset, tokens, with_data(augment=True))[1].arrays)


def test_only_queries_by_the_listing_s_own_picture_are_close_ups(dataset, tokens):
    settings = {"augment": True, "augment_area": 0.2, "own_picture": 0.5, "modality_mix": (1, 0, 0)}
    whole, close = (make(dataset, tokens, with_data(own_box=share, **settings)) for share in (1.0, 0.0))
    changed = []
    for step in range(3):
        rows = close.sampler.rows(step)[0]
        a, b = whole[step].arrays, close[step].arrays
        for name in ("positive", "negative"):
            assert documents_of(a, name) == documents_of(b, name)
        same = [x == y for x, y in zip(documents_of(a, "query"), documents_of(b, "query"), strict=True)]
        assert all(same[i] for i, row in enumerate(rows) if not row.own_picture or row.query.image.box is None)
        changed += [not same[i] for i, row in enumerate(rows) if row.own_picture and row.query.image.box is not None]
    assert len(changed) > 3
    assert np.mean(changed) > 0.5


def test_a_shape_too_small_names_its_setting(dataset, tokens):
    with pytest.raises(packing.PackingError, match=r"config\.data\.rows"):
        make(dataset, tokens, with_data(rows=2))[0]
    with pytest.raises(ConfigError, match=r"batch_size 8 must be a multiple of the 3"):
        make(dataset, tokens, shards=3)


def test_a_batch_that_needs_more_than_its_share_of_rows_takes_the_worst_case_shape(dataset, tokens):
    whole, tight = (make(dataset, tokens, with_data(row_share=share)) for share in (1.0, 0.01))
    assert tight.shape.rows == 1 < tight.largest.rows == whole.shape.rows
    assert_same(tight[0].arrays, whole[0].arrays)


def test_a_share_of_the_slots_and_hosts_that_need_more(dataset, tokens):
    whole = make(dataset, tokens, shards=2)
    used = int((whole[0].arrays["patch_picture"] > 0).any(axis=-1).sum(axis=-1).max())
    enough = make(dataset, tokens, with_data(slot_share=used / whole.shape.image_slots), shards=2)
    assert enough.shape.image_slots == used < whole.shape.image_slots == enough.largest.image_slots
    small = enough[0].arrays
    assert small["patches"].shape[1] == used
    assert enough.agree(small, lambda n: n) is small
    assert_same(enough.agree(small, lambda _: 1), whole[0].arrays)  # another host needs more
    tight = make(dataset, tokens, with_data(slot_share=0.01), shards=2)
    assert tight.shape.image_slots == 1
    assert_same(tight[0].arrays, whole[0].arrays)
    asked = []
    tight.agree(tight[0].arrays, lambda n: asked.append(n) or n)
    assert asked == [1]


def test_hosts_whose_batches_need_different_rows_agree_on_the_worst_case(dataset, tokens):
    """Over 24 steps some hosts are above a tight share and some are not; none knows of the other's documents."""
    whole = make(dataset, tokens, shards=2)
    needed = [[int((rows.any(axis=-1)).sum()) for rows in whole[step].arrays["segment_ids"]] for step in range(24)]
    share = (min(map(min, needed)) + max(map(max, needed))) // 2 / whole.shape.rows
    hosts = [make(dataset, tokens, with_data(row_share=share), shards=2, hosts=range(g, g + 1)) for g in range(2)]
    seen = set()
    for step in range(24):
        own = [host[step].arrays for host in hosts]
        rows = [arrays["tokens"].shape[1] for arrays in own]
        seen.add(tuple(rows))
        large = [count != host.shape.rows for count, host in zip(rows, hosts, strict=True)]
        agreed = [host.agree(arrays, lambda _, n=large: max(n)) for host, arrays in zip(hosts, own, strict=True)]
        joined = {name: np.concatenate([arrays[name] for arrays in agreed]) for name in agreed[0]}
        expected = {name: array[:, : max(rows)] for name, array in whole[step].arrays.items()}
        expected["positions"] = whole[step].arrays["positions"][:, :, : max(rows)]
        per_row = ("tokens", "segment_ids", "positions", "roles", "image_slots", "document_of_segment")
        assert_same(joined, whole[step].arrays | {name: expected[name] for name in per_row})
    assert len({rows for rows in seen if len(set(rows)) == 2}) == 2, f"the data show no difference of hosts: {seen}"


@pytest.fixture
def damaged(dataset, tmp_path):
    """The same data with the pictures of two listings missing."""
    gone = {"p04", "p35"}

    def damage(p):
        lost = ImageRef(str(tmp_path / f"{p.id}.jpg"))
        return dataclasses.replace(p, images=(lost,)) if p.id in gone else p

    train = [dataclasses.replace(t, positive=damage(t.positive), negative=damage(t.negative)) for t in dataset.train]
    return dataclasses.replace(dataset, train=tuple(train))


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_pictures_raise_with_triplet_and_file(damaged, tokens, workers):
    batches = make(damaged, tokens)
    with pytest.raises(DataError, match=r"triplet t(4|5): .*p(04|35)\.jpg: no such picture.*on_error"):
        list(stream(batches, 0, 8, workers, 2))


def test_broken_pictures_can_be_skipped_up_to_a_share(damaged, dataset, tokens, caplog):
    skip = with_data(on_error="skip", max_skipped_share=0.5)
    batches, sound = make(damaged, tokens, skip), make(dataset, tokens, skip)
    skipped = 0
    for step, batch in stream(batches, 0, 8, 0, 2):
        skipped += batch.info["skipped_triplets"]
        changed = batch.arrays["positive_product"] != sound[step].arrays["positive_product"]
        assert changed.sum() <= batch.info["skipped_triplets"] == len(batch.broken)
        gone = [damaged.numbers[name] for name in ("p04", "p35")]
        documents = dict(zip(batch.arrays["positive_product"][0], documents_of(batch.arrays, "positive"), strict=True))
        assert all(not documents[n][2] for n in gone if n in documents)  # only where it is known by its texts alone
        assert_same(batch.arrays, batches[step].arrays)
    assert skipped >= 2
    named = [record.getMessage() for record in caplog.records if "p04.jpg" in record.getMessage()]
    assert len(named) == 1
    few = make(damaged, tokens, with_data(on_error="skip", max_skipped_share=0.001))
    with pytest.raises(DataError, match="max_skipped_share"):
        list(stream(few, 0, 8, 0, 2))


def test_real_data_gives_batches(moon_data, tokens):
    from moon_jax.data import sources

    data = dataclasses.replace(DATA, path=str(moon_data), min_pixels=56 * 56, max_pixels=112 * 112)
    config = dataclasses.replace(CONFIG, data=data)
    batches = make(sources.read(data), tokens, config, shards=2)
    assert batches.balanced_share > 0.9
    for step, batch in stream(batches, 0, 2, 0, 2):
        assert batch.info["skipped_triplets"] == 0
        assert (batch.arrays["patch_picture"] > 0).any(), step
