"""Queries with several right answers, ranked by hand."""

import numpy as np

from moon_jax.config import Config, EvalConfig
from moon_jax.data.records import Dataset, Product, Query, Triplet
from moon_jax.evaluation import tasks


def test_every_relevant_listing_is_a_hit():
    products = {name: Product(name, title=f"listing {name}", part="p") for name in "abcd"}
    asked = {  # query -> (positive, relevant), and where its vector points
        "one": ("a", frozenset("ab"), "b"),
        "two": ("a", frozenset(), "b"),
        "three": ("a", frozenset("ab"), "c"),
        "four": ("d", frozenset("d"), "d"),
    }
    unseen = tuple(
        Triplet(name, Query(name, None), products[positive], None, "p", relevant)
        for name, (positive, relevant, _) in asked.items()
    )
    dataset = Dataset((), (), unseen, products, "", {})
    points = {f"listing {name}": i for i, name in enumerate("abcd")}
    points |= {name: points[f"listing {target}"] for name, (_, _, target) in asked.items()}

    def embed(documents):
        return np.eye(4, dtype=np.float32)[[points[document.segments[0].text] for document in documents]]

    results = tasks.evaluate(dataset, embed, Config(eval=EvalConfig(ks=(1, 4))))
    # "one" finds b, which is relevant; "two" finds b, which is not; "three" finds c; "four" finds d.
    assert results["metrics"]["p/unseen/text/R@1"] == 2 / 4
    assert results["metrics"]["p/unseen/text/R@4"] == 1.0
