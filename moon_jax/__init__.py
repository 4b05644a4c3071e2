"""MOON in JAX/Flax: multimodal product embeddings from Qwen2.5-VL with a guided mixture of experts.

>>> encoder = moon_jax.load("path/of/a/checkpoint")
>>> vectors = encoder.encode_item([{"title": "Warm coat", "images": ["coat.jpg"]}])
>>> scores = encoder.similarity(encoder.encode_query(["something warm"]), vectors)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moon_jax.encoder import Encoder, load

__all__ = ["Encoder", "load"]


def __getattr__(name: str) -> Any:
    """Imports jax and the model only when one of `__all__` is asked for: `data/` can be used without."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from moon_jax import encoder

    return getattr(encoder, name)
