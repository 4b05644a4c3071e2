"""Rows over trials of many and of few classes, and of classes of which few have a vector; by hand."""

import numpy as np
import pytest

from moon_jax.config import EvalConfig
from moon_jax.evaluation.benchmark import Asked, Candidates, Trial
from moon_jax.evaluation.choices import CLASSIFICATION, DEEPEST
from moon_jax.evaluation.ranked import rank
from moon_jax.evaluation.rows import Pool, rows_of

CONFIG = EvalConfig(bootstrap_samples=0)
ABOUT = ("level", DEEPEST)


def ranked(part, classes, truth, with_vector=None):
    """A question that is closest to class 0, then 1, 2, ..."""
    candidates = Candidates(np.arange(1, classes + 1), tuple(map(str, range(classes))))
    asked = (Asked(0, (truth,), "t", 0),)
    trial = Trial(CLASSIFICATION, "seen", part, "item", "positive", ABOUT, asked, candidates, 0)
    vectors = np.stack([np.ones(classes), *np.diag(1 / np.arange(1, classes + 1))]).astype(np.float32)
    has_vector = np.ones(classes + 1, bool)
    if with_vector is not None:
        has_vector[1 + with_vector :] = False
    return rank(trial, has_vector, lambda numbers: vectors[numbers], 10)


def row(part, *members):
    (found,) = rows_of([Pool(CLASSIFICATION, "seen", part, "item", "positive", None, members)], "m", CONFIG)
    return found["measures"], found["chance"]


def test_a_small_part_counts_by_its_first_choice_among_all():
    many, few = ranked("p", 120, truth=3), ranked("q", 5, truth=3)
    measures, chance = row(None, many, few)
    assert (measures["accuracy"], measures["accuracy@10"]) == (0, 0.5)  # that of 120 is among the first ten
    assert chance["accuracy@10"] == pytest.approx((10 / 120 + 1 / 5) / 2)
    alone, chance = row("q", few)
    assert "accuracy@10" not in alone
    assert "accuracy@10" not in chance


def test_fewer_than_ten_classes_with_a_vector():
    assert row("p", ranked("p", 120, truth=3, with_vector=6))[0]["accuracy@10"] == 1
    assert row("p", ranked("p", 120, truth=7, with_vector=6))[0]["accuracy@10"] == 0
