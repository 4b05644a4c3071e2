"""JSON from strangers: an object that says two things under one key says nothing that can be trusted."""

import collections
import json
from typing import Any


def unique_json(text: str | bytes) -> Any:
    """Returns the value of a JSON text; ValueError if it is none or if an object has one key twice."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _object(items: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(items)
    if len(found) < len(items):
        counts = collections.Counter(key for key, _ in items)
        raise ValueError(f"named twice: {', '.join(key for key, count in counts.items() if count > 1)}")
    return found
