"""What the implementations of attention multiply, which is not what the formula says.

The kernels keep no scores, so that their backward pass computes them again; they skip blocks that a causal mask leaves
empty, and compute whole blocks else, padding included. Counted in their code: jax.experimental.pallas.ops, `tpu.
splash_attention` and `gpu.attention`; for cuDNN the five products of the FlashAttention-2 backward pass (arXiv
2307.08691, algorithm 2).
"""

import dataclasses
import math

from moon_jax.models.attention_kernel import round_up


@dataclasses.dataclass(frozen=True)
class Products:
    """Multiplications of one head on one row, two for each multiply-add."""

    forward: float
    backward: float


def attention_products(impl: str, length: int, width: int, causal: bool) -> Products:
    """Returns what one head multiplies on one row.

    Args:
        impl: a key of `moon_jax.models.attention.IMPLEMENTATIONS`.
        length: tokens of the row.
        width: of the head.
        causal: whether a token sees only itself and what is before it.
    """
    # products of tokens x tokens x width: scores and mean forward; backward the gradients of v, weights, q and k, and
    # before them the scores. splash and triton have one pass for k and v and one for q, which share nothing.
    if impl == "xla":
        pairs = length**2
        return Products(2.0 * 2 * pairs * width, 4.0 * 2 * pairs * width)
    if impl == "cudnn":
        from moon_jax.models.attention_cudnn import BLOCK

        pairs = round_up(length, BLOCK) ** 2  # the causal mask is given as a mask: nothing is skipped
        return Products(2.0 * 2 * pairs * width, 5.0 * 2 * pairs * width)
    if impl == "splash":
        from moon_jax.models.attention_splash import block_of

        pairs = block_pairs(length, block_of(length), causal)
        return Products(2.0 * 2 * pairs * width, 7.0 * 2 * pairs * width)
    if impl == "triton":
        from jax.experimental.pallas.ops.gpu.attention import BlockSizes

        from moon_jax.models.attention_triton import BLOCK

        blocks, length = BlockSizes.get_default(), round_up(length, BLOCK)
        wide = 2 ** math.ceil(math.log2(width))  # the kernel pads each head
        forward, backward = (block_pairs(length, size, causal) for size in (blocks.block_k, blocks.block_kv_dkv))
        return Products(2.0 * 2 * forward * wide, 7.0 * 2 * backward * wide)
    raise ValueError(f"what does the attention implementation {impl!r} multiply?")


def block_pairs(length: int, block: int, causal: bool) -> int:
    """Returns the pairs of tokens in the square blocks that are computed; under a causal mask those up to the diagonal.

    Args:
        length: tokens of the row; it is padded to whole blocks.
        block: side of a block.
        causal: of the mask.
    """
    n = math.ceil(length / block)
    return block**2 * (n * (n + 1) // 2 if causal else n * n)
