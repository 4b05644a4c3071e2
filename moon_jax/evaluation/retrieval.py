"""Exact nearest neighbours: blockwise matmul and top-k, never the full score matrix.

As fast as a flat faiss index on a CPU, and the same code on an accelerator. Block shapes depend on nothing but the
arguments, and one device does the work, so the ranks do not depend on how many devices there are.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from jaxtyping import Array, Float, Float32, Int32

_SMALLEST_BLOCK = 64


def top_k(
    queries: Float[np.ndarray, "q d"],
    gallery: Float[np.ndarray, "n width"],  # width = d is checked below, in words
    k: int,
    block: tuple[int, int] = (1024, 8192),
) -> tuple[Float32[np.ndarray, "q k"], Int32[np.ndarray, "q k"]]:
    """Returns the k highest dot products of every query with the gallery and their gallery indices, best first.

    Equal scores rank by gallery index. Products are computed in float32 at the highest precision, on the first local
    device.

    Args:
        queries: one row per query.
        gallery: one row per candidate.
        k: how many to return, at most the size of the gallery.
        block: queries and gallery rows scored at once; memory is their product, times 4 bytes.

    Raises:
        ValueError: k does not fit the gallery, the widths differ, or an embedding is not finite.
    """
    if queries.shape[1] != gallery.shape[1]:
        raise ValueError(f"queries have {queries.shape[1]} dimensions, the gallery has {gallery.shape[1]}")
    if not 1 <= k <= len(gallery):
        raise ValueError(f"k is {k}; it must lie in 1..{len(gallery)}, the size of the gallery")
    if min(block) < 1:
        raise ValueError(f"block must hold at least one row of each, got {block}")
    for name, rows in (("query", queries), ("gallery", gallery)):
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if len(bad):
            raise ValueError(f"{len(bad)} {name} embeddings are not finite, the first is row {bad[0]}")

    query_rows = min(block[0], _round_up(len(queries)))
    gallery_rows = min(block[1], _round_up(len(gallery)))
    # Index n is past the gallery: these places lose against every real row, and all are filled, as k <= n.
    empty = (np.full((query_rows, k), -np.inf, np.float32), np.full((query_rows, k), len(gallery), np.int32))
    scores = np.empty((len(queries), k), np.float32)
    indices = np.empty((len(queries), k), np.int32)
    # A mesh of one device, or jit would spread these arrays over the mesh that the caller may have set.
    with jax.set_mesh(jax.make_mesh((1,), ("all",), axis_types=(AxisType.Auto,), devices=jax.local_devices()[:1])):
        for q in range(0, len(queries), query_rows):
            rows, best = jnp.asarray(_block(queries, q, query_rows)), empty
            for g in range(0, len(gallery), gallery_rows):
                best = _merge_block(best, rows, _block(gallery, g, gallery_rows), np.int32(g), np.int32(len(gallery)))
            here = slice(q, q + query_rows)
            scores[here], indices[here] = (np.asarray(x)[: len(scores[here])] for x in best)
    return scores, indices


@jax.jit
def _merge_block(
    best: tuple[Float32[Array, "b k"], Int32[Array, "b k"]],
    queries: Float32[Array, "b d"],
    gallery: Float32[Array, "c d"],
    first: Int32[Array, ""],
    size: Int32[Array, ""],
) -> tuple[Float32[Array, "b k"], Int32[Array, "b k"]]:
    """Returns the best k of `best` and one more gallery block, whose first row has the gallery index `first`."""
    scores = jnp.einsum(
        "bd,cd->bc", queries, gallery, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32
    )
    scores = jnp.where(scores == 0, 0.0, scores)  # -0.0 would rank below 0.0
    index = first + jnp.arange(gallery.shape[0], dtype=jnp.int32)
    scores = jnp.where(index < size, scores, -jnp.inf)
    # top_k puts the lower index first among equals, and the two-key sort keeps that across blocks.
    top, at = jax.lax.top_k(scores, min(best[0].shape[1], gallery.shape[0]))
    keys = (-jnp.concatenate([best[0], top], axis=1), jnp.concatenate([best[1], index[at]], axis=1))
    scores, indices = jax.lax.sort(keys, dimension=1, num_keys=2)
    k = best[0].shape[1]
    return -scores[:, :k], indices[:, :k]


def _block(rows: Float[np.ndarray, "n d"], start: int, size: int) -> Float32[np.ndarray, "size d"]:
    """Returns rows start..start+size in float32; zero rows fill what lies past the end."""
    block = np.zeros((size, rows.shape[1]), np.float32)
    part = rows[start : start + size]
    block[: len(part)] = part
    return block


def _round_up(n: int) -> int:
    """Returns the power of two that holds n rows: few distinct shapes, so few compilations."""
    return max(_SMALLEST_BLOCK, 1 << (max(n, 1) - 1).bit_length())
