"""What made a file or folder, and whether a run that goes on with it is the same."""

from collections.abc import Mapping
from typing import Any


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Returns a line for each setting that is not what it was, for an error; "" where all are the same."""
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return "\n".join(f"  - {name} was {before.get(name)!r}, is {now.get(name)!r}" for name in changed)
