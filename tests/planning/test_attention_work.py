"""What attention kernels multiply, against their own programs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask, splash_attention_mask_info

from moon_jax.models.attention import IMPLEMENTATIONS, attention
from moon_jax.models.attention_splash import block_of
from moon_jax.planning.attention_work import attention_products, block_pairs

FORWARD = 4 * 100 * 100 * 16  # two products of 100 x 100 x 16


def programs(impl: str, length: int = 256, width: int = 64) -> list[list[tuple[int, ...]]]:
    """Returns for each kernel of forward and gradient the shapes (rows, columns, contracted) of its products."""
    q = jnp.zeros((1, length, 1, 1, width), jnp.bfloat16)
    ids = jnp.ones((1, length), jnp.int32)
    run = functools.partial(attention, causal=True, impl=impl)
    gradient = jax.grad(lambda q, k, v: run(q, k, v, ids).astype(jnp.float32).sum(), argnums=(0, 1, 2))
    kernels = []

    def visit(jaxpr, inside):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general" and inside is not None:
                (contract, _), _ = equation.params["dimension_numbers"]
                left, out = equation.invars[0].aval, equation.outvars[0].aval
                inside.append((*out.shape, left.shape[contract[0]]))
            here = inside
            if equation.primitive.name == "pallas_call":
                kernels.append(here := [])
            for value in equation.params.values():
                for part in value if isinstance(value, (tuple, list)) else (value,):
                    inner = getattr(part, "jaxpr", part)
                    if hasattr(inner, "eqns"):
                        visit(inner, here)

    visit(jax.make_jaxpr(gradient)(q, q[:, :, :, 0], q[:, :, :, 0]).jaxpr, None)
    return [kernel for kernel in kernels if kernel]  # one only adds up


@pytest.mark.parametrize(("impl", "backward"), [("splash", [3, 4]), ("triton", [7])])
def test_the_kernels_multiply_twice_forward_and_seven_times_backward(impl, backward):
    forward, *rest = programs(impl)
    assert len(forward) == 2
    assert sorted(len(kernel) for kernel in rest) == backward
    found = attention_products(impl, 256, 64, False)
    assert found.backward == 3.5 * found.forward


def test_the_blocks_of_the_triton_kernel_are_those_that_are_counted():
    forward, backward = programs("triton", width=80)
    assert {tuple(sorted(product)) for product in forward} == {(128, 128, 128)}, "a head of 80 is padded to 128"
    assert {tuple(sorted(product)) for product in backward} == {(32, 32, 128)}
    found = attention_products("triton", 256, 80, True)
    assert found.forward == 2 * 2 * (3 * 128**2) * 128
    assert found.backward == 7 * 2 * (36 * 32**2) * 128, "8 * 9 / 2 blocks up to the diagonal"


@pytest.mark.parametrize("length", [128, 786, 1024])
def test_splash_skips_the_blocks_above_the_diagonal(length):
    block = block_of(length)
    padded = -(-length // block) * block
    for mask, causal in ((splash_attention_mask.CausalMask, True), (splash_attention_mask.FullMask, False)):
        heads = splash_attention_mask.MultiHeadMask([mask((padded, padded))])
        info, _ = splash_attention_mask_info.process_mask(heads, (block, block))
        visited = (padded // block) ** 2 if info.block_mask is None else int((np.asarray(info.block_mask) > 0).sum())
        assert block_pairs(length, block, causal) == visited * block**2


def test_what_keeps_the_scores_and_what_computes_them_again():
    """Products of the backward pass: 4 with the scores at hand, 5 with one more for them (cuDNN, rows of 64)."""
    xla = attention_products("xla", 100, 16, True)
    assert (xla.forward, xla.backward) == (FORWARD, 2 * FORWARD)
    cudnn = attention_products("cudnn", 100, 16, True)
    assert (cudnn.forward, cudnn.backward) == (FORWARD * 1.28**2, 2.5 * FORWARD * 1.28**2)


def test_every_implementation_is_counted_and_none_is_guessed():
    for impl in IMPLEMENTATIONS:
        assert attention_products(impl, 64, 64, False).forward >= 4 * 64**3
    with pytest.raises(ValueError, match="'new'"):
        attention_products("new", 64, 64, False)
