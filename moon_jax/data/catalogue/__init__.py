"""The built-in drawn catalogue: products with pictures, boxes, texts, categories and attributes, of any size.

It stands in for a shop's data in the demo, the documentation and the tests: nothing is downloaded and nothing has
another's licence. Reads from front to back: `words` and `tree` (vocabulary) -> `products` (invented) -> `texts` and
`sketch`, `shapes_*`, `paint`, `sprite`, `scene`, `clutter` (said and drawn) -> `writer` (the folder).
"""

from moon_jax.data.catalogue.writer import VERSION, stamp, write

__all__ = ["VERSION", "stamp", "write"]
