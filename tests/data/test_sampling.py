"""Quotas by hand, modalities of incomplete queries, and aspect texts that do not give the positive away."""

import collections
import dataclasses

import numpy as np
import pytest

from moon_jax.config import DataConfig
from moon_jax.data import sampling
from moon_jax.data.documents import has_modality
from moon_jax.data.records import DataError, Dataset, ImageRef, Product, Query, Triplet

PICTURE = ImageRef("/nowhere.png")


def product(number, **changes):
    known = {
        "title": f"thing {number}",
        "category": ("all", f"group {number % 3}"),
        "attributes": (("n", (str(number),)),),
    }
    return Product(**{"id": f"p{number:03}", **known, **changes})


def dataset(triplets):
    products = {p.id: p for t in triplets for p in (t.positive, t.negative) if p is not None}
    return Dataset(tuple(triplets), (), (), dict(sorted(products.items())), "", {})


def triplets(count, negative=True):
    both = Query("some words", PICTURE)
    return [
        Triplet(f"t{i}", both, product(2 * i), product(2 * i + 1) if negative else None, "part") for i in range(count)
    ]


@pytest.mark.parametrize(
    ("batch_size", "mix", "expected"),
    [
        (17, (12, 3, 2), (12, 3, 2)),
        (32, (12, 3, 2), (22, 6, 4)),  # 22.59, 5.65, 3.76: the last two have the largest remainders
        (8, (12, 3, 2), (6, 1, 1)),  # 5.65, 1.41, 0.94
        (1, (12, 3, 2), (1, 0, 0)),
        (4, (1, 1, 1), (2, 1, 1)),  # equal remainders: the first
        (10, (0, 1, 0), (0, 10, 0)),
    ],
)
def test_quotas_by_hand(batch_size, mix, expected):
    assert sampling.quotas(batch_size, mix) == expected


@pytest.mark.parametrize("step", range(5))
def test_every_batch_keeps_the_quotas_exactly(step):
    sampler = sampling.Sampler(dataset(triplets(50)), DataConfig(), 3, 32)
    rows, info = sampler.rows(step)
    assert collections.Counter(row.modality for row in rows) == {"image": 22, "text": 6, "both": 4}
    assert info["swapped_modalities"] == info["missed_modalities"] == 0


def test_queries_that_lack_a_modality_swap():
    """17 queries of which 12 have a picture and a text, 3 only a text, 2 only a picture: the quotas can be met."""
    kinds = [Query("words", PICTURE)] * 12 + [Query("words", None)] * 3 + [Query("", PICTURE)] * 2
    swapped = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        queries = [kinds[i] for i in rng.permutation(17)]
        modalities, info = sampling.assign_modalities(queries, (12, 3, 2), rng)
        assert all(has_modality(q, m) for q, m in zip(queries, modalities, strict=True))
        assert collections.Counter(modalities) == {"image": 12, "text": 3, "both": 2}
        assert info["missed_modalities"] == 0
        swapped += info["swapped_modalities"]
    assert swapped > 30


def test_impossible_modalities_are_counted():
    modalities, info = sampling.assign_modalities([Query("words", None)] * 17, (12, 3, 2), np.random.default_rng(0))
    assert modalities == ["text"] * 17
    assert info == {"swapped_modalities": 0, "missed_modalities": 14}


def test_every_lap_draws_every_triplet_once_in_another_order():
    sampler = sampling.Sampler(dataset(triplets(24)), DataConfig(), 0, 8)
    laps = [[row.triplet.id for step in range(3 * lap, 3 * lap + 3) for row in sampler.rows(step)[0]] for lap in (0, 1)]
    assert sorted(laps[0]) == sorted(laps[1]) == sorted(t.id for t in triplets(24))
    assert laps[0] != laps[1]
    other_seed = dataclasses.replace(sampler, seed=1)
    assert [row.triplet.id for row in other_seed.rows(0)[0]] != laps[0][:8]
    assert sampler.rows(2) == dataclasses.replace(sampler).rows(2)


def presence(rows):
    """Per row (category, attributes) present in the positive and in the negative, as in their documents."""
    return [
        [
            (row.form.aspects and bool(p.category), row.form.aspects and bool(p.attributes))
            for p in (row.triplet.positive, row.negative)
        ]
        for row in rows
    ]


def test_presence_of_aspect_texts_does_not_tell_positives_from_negatives():
    """A catalogue with holes, most of them in negatives: within each triplet both sides have the same form."""
    rng = np.random.default_rng(0)

    def holed(p, share):
        return dataclasses.replace(
            p,
            category=p.category if rng.random() > share else (),
            attributes=p.attributes if rng.random() > share else (),
        )

    made = [
        dataclasses.replace(t, positive=holed(t.positive, 0.1), negative=holed(t.negative, 0.5)) for t in triplets(300)
    ]
    sampler = sampling.Sampler(dataset(made), DataConfig(aspect_dropout=0.5, aspect_only=0.1), 0, 100)
    rows = [row for step in range(20) for row in sampler.rows(step)[0]]
    assert all(positive == negative for positive, negative in presence(rows))
    assert any(row.form.aspects for row in rows)
    only = [row for row in rows if not row.form.title]
    assert only
    assert all(sampling.aspects_differ(row.triplet.positive, row.negative) for row in only)


def test_aspect_dropout_is_per_triplet_and_has_its_share():
    data = DataConfig(aspect_dropout=0.5, aspect_only=0.05)
    sampler = sampling.Sampler(dataset(triplets(500)), data, 0, 500)
    rows = [row for step in range(8) for row in sampler.rows(step)[0]]
    full = np.mean([row.form == (True, True, True) for row in rows])
    assert abs(full - 0.95 * 0.5) < 0.03
    assert abs(np.mean([not row.form.title for row in rows]) - 0.05) < 0.015
    never = dataclasses.replace(sampler, data=DataConfig(aspect_dropout=0.0, aspect_only=0.0))
    assert all(row.form == (True, True, True) for row in never.rows(0)[0])


def test_missing_titles_and_the_listing_s_own_picture_have_their_shares():
    data = DataConfig(aspect_dropout=0.5, aspect_only=0.0, title_dropout=0.3, own_picture=0.4)

    def pictured(p):
        return dataclasses.replace(p, images=(ImageRef(f"/{p.id}.png"),))

    made = triplets(500)
    blind = made[0].positive  # has no picture that could stand alone or ask
    made[1:] = [dataclasses.replace(t, positive=pictured(t.positive), negative=pictured(t.negative)) for t in made[1:]]
    sampler = sampling.Sampler(dataset(made), data, 0, 500)
    rows = [row for step in range(8) for row in sampler.rows(step)[0]]
    untitled = [row for row in rows if not row.form.title]
    assert abs(len(untitled) / len(rows) - 0.3) < 0.03
    assert abs(np.mean([row.form.aspects for row in untitled]) - 0.5) < 0.05
    assert all(row.form.images for row in rows)
    own = [row for row in rows if row.query != row.triplet.query]
    by_image = [row for row in rows if row.modality == "image"]
    assert abs(len(own) / len(by_image) - 0.4) < 0.03
    assert [row.own_picture for row in rows] == [row.query != row.triplet.query for row in rows]
    assert all(row.modality == "image" and row.query.image == row.triplet.positive.images[0] for row in own)
    assert not any(row.triplet.positive is blind for row in (*untitled, *own))


def test_a_missing_negative_becomes_another_product_of_the_category():
    made = triplets(30, negative=False)
    alone = dataclasses.replace(product(99), category=("all", "group of its own"))
    made.append(Triplet("alone", Query("words", PICTURE), alone, None, "part"))
    sampler = sampling.Sampler(dataset(made), DataConfig(), 0, 31)
    rows = [row for step in range(6) for row in sampler.rows(step)[0]]
    assert all(row.negative.id != row.triplet.positive.id for row in rows)
    for row in rows:
        depth = 1 if row.triplet.id == "alone" else 2
        assert row.negative.category[:depth] == row.triplet.positive.category[:depth]
    assert len({row.negative.id for row in rows if row.triplet.id == "t0"}) > 1
    lonely = sampling.Sampler(dataset([made[-1]]), DataConfig(), 0, 1)
    with pytest.raises(DataError, match="two products"):
        lonely.rows(0)


def test_spares_have_the_modality_that_they_stand_in_for():
    made = triplets(10)
    made += [dataclasses.replace(t, id=f"only text {t.id}", query=Query("words", None)) for t in triplets(10)]
    sampler = sampling.Sampler(dataset(made), DataConfig(), 0, 4)
    spares = list(sampler.spares(2, 1, "image"))
    assert 10 < len(spares) < sampling.MAX_SPARES
    assert all(row.modality == "image" and row.triplet.query.image for row in spares)
    assert spares == list(sampler.spares(2, 1, "image")) != list(sampler.spares(2, 3, "image"))
