"""Every strategy of the table against a loop over tokens and routes, in values, drops and gradients, on many meshes.

The cases come from STRATEGIES: a strategy that a plugin enters (`pytest -p MODULE`) is tested like the others.
"""

from unittest import mock

import pytest
from dispatch_cases import SHAPES, check_strategy_equals_oracle, compiled, ragged_dot_with_garbage
from jax import lax
from meshes import name_of

from moon_jax.moe.dispatch import STRATEGIES

SPLIT = [s.name for s in STRATEGIES.values() if "split" in s.placements]
DROPPING = [s.name for s in STRATEGIES.values() if s.capacity != "none"]
SPLIT_SHAPES = ((2, 2, 2, 1), (1, 2, 2, 2), (1, 1, 8, 1))
CAPACITIES = {(2, 2, 2, 1): (1.0, 0.2), (1, 2, 4, 1): (0.5, 0.0), (1, 2, 2, 2): (0.0, 0.1), (1, 1, 8, 1): (0.75, 0.1)}


def on_meshes(shapes):
    return pytest.mark.parametrize("shape", shapes, ids=name_of)


@pytest.mark.parametrize("strategy", STRATEGIES)
@on_meshes(SHAPES)
def test_dropless(strategy, shape):
    assert check_strategy_equals_oracle(strategy, shape) == 0


@pytest.mark.parametrize("strategy", STRATEGIES)
@on_meshes(SHAPES[1:])
def test_bfloat16(strategy, shape):
    """The routes of a token are added up in float32; only the experts compute in bfloat16."""
    assert check_strategy_equals_oracle(strategy, shape, dtype="bfloat16") == 0


@pytest.mark.parametrize("strategy", SPLIT)
@on_meshes(SPLIT_SHAPES)
def test_split_placement(strategy, shape):
    assert check_strategy_equals_oracle(strategy, shape, placement="split") == 0


@pytest.mark.parametrize("strategy", DROPPING)
@on_meshes(CAPACITIES)
def test_capacity_drops_the_later_tokens(strategy, shape):
    general, guided = CAPACITIES[shape]
    settings = {"capacity_factor": general, "guided_capacity": guided}
    assert check_strategy_equals_oracle(strategy, shape, **settings) > 0


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name not in DROPPING])
def test_dropless_strategies_have_room_whatever_the_capacity(strategy):
    settings = {"capacity_factor": 0.5, "guided_capacity": 0.1}
    assert check_strategy_equals_oracle(strategy, (1, 2, 2, 2), **settings) == 0


@pytest.mark.parametrize("strategy", [name for name in SPLIT if name in DROPPING])
@on_meshes(SPLIT_SHAPES)
def test_capacity_of_the_split_placement(strategy, shape):
    """Drops are counted once, though every shard of the expert group sees them."""
    general, guided = CAPACITIES[shape]
    settings = {"placement": "split", "capacity_factor": general, "guided_capacity": guided}
    assert check_strategy_equals_oracle(strategy, shape, **settings) > 0


@pytest.mark.parametrize("strategy", ["replicated", "all_gather", "all_to_all_dropless"])
def test_undefined_rows_of_ragged_products_do_not_leak(strategy):
    """On accelerators `ragged_dot` and its gradients leave anything in the rows past the last group: here NaN."""
    compiled.cache_clear()
    with mock.patch.object(lax, "ragged_dot", ragged_dot_with_garbage):
        check_strategy_equals_oracle(strategy, (1, 2, 4, 1), patterns=("padding", "none", "heavy skew"))
    compiled.cache_clear()
