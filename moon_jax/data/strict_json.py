"""JSON from strangers: an object that says two things under one key says nothing that can be trusted."""

import collections
import json
from typing import Any


def unique_json(text: str | bytes) -> Any:
    """Returns the value of a JSON text; ValueError if it is none or if an object has one key twice."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        twice = [key for key, count in collections.Counter(key for key, _ in items).items() if count > 1]
        if twice:
            raise ValueError(f"named twice: {', '.join(twice)}")
        return dict(items)

    try:
        return json.loads(text, object_pairs_hook=pairs)
    except RecursionError:
        raise ValueError("nested too deeply") from None
