import pytest

from moon_jax.data.strict_json import unique_json


def test_json_with_one_key_twice():
    assert unique_json('{"a": {"b": 1}, "c": [{"b": 2}, {"b": 3}]}') == {"a": {"b": 1}, "c": [{"b": 2}, {"b": 3}]}
    with pytest.raises(ValueError, match="named twice: b, é"):
        unique_json('{"a": {"b": 1, "é": 1, "x": 1, "\\u00e9": 2, "b": 2}}')
