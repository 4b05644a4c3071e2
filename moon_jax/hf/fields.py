"""Checks of the fields of a config.json."""

from collections.abc import Mapping
from typing import Any


def check_act(act: Any, part: str, problems: list[str], computed: str = "silu") -> None:
    """Adds a problem where the activation of a part is not the one that we compute."""
    if act != computed:
        problems.append(f"{part} hidden_act is {act!r}; only {computed!r} is computed")


def check_positive(values: Mapping[str, Any], part: str, problems: list[str]) -> bool:
    """Returns whether all values are positive integers; adds a problem for each that is not."""
    wrong = [f"{part} {n} must be a positive integer, got {v!r}" for n, v in values.items() if not is_int(v) or v < 1]
    problems += wrong
    return not wrong


def is_int(value: Any) -> bool:
    """Returns whether a value of JSON is an integer (true and false are none)."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_list_of_ints(value: Any) -> bool:
    """Returns whether a value of JSON is a list of integers."""
    return isinstance(value, (list, tuple)) and all(map(is_int, value))
