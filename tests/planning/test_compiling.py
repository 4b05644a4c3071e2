"""The train step compiled for the devices that are here, and what compilers say when it does not fit."""

import dataclasses
import functools
import os

import jax
import pytest
from fake_batch import tiny_config
from meshes import mesh_of

from moon_jax.planning import compiling
from moon_jax.planning.batch import planned_shape
from moon_jax.planning.compiling import compile_step
from moon_jax.training.plan import device_bytes
from moon_jax.training.state import Trainer

SIZES = {
    "data__max_pixels": 16 * 16, "data__min_pixels": 16 * 16, "data__max_aspect": 1.0, "data__title_tokens": 8,
    "data__category_tokens": 4, "data__attribute_tokens": 4, "data__crop": False, "model__text__num_hidden_layers": 1,
    "model__vision__depth": 1, "model__vision__fullatt_block_indexes": (0,), "moe__experts": 4,
}  # fmt: skip


@functools.cache
def compiled():
    trainer = Trainer(tiny_config(**SIZES), mesh_of((1, 4, 2, 1)))
    return trainer, compile_step(trainer, 1e9)


def test_memory_and_collectives_of_a_compiled_step():
    trainer, result = compiled()
    known = device_bytes(trainer, planned_shape(trainer.config, trainer.mesh))
    state = sum(size for name, size in known.items() if "gradients" not in name)
    assert result.arguments == pytest.approx(state, rel=0.1)
    assert result.temporaries > known["gradients (float32)"]
    assert result.peak == result.arguments + result.temporaries + result.outputs + result.code
    assert result.outputs < 0.1 * result.arguments, "the state is donated"
    assert result.fits
    assert {("all-gather", ("fsdp",)), ("reduce-scatter", ("fsdp",))} <= {(c.kind, c.axes) for c in result.collectives}
    assert result.warnings == ()


@pytest.mark.parametrize(("dtype", "every"), [("float32", True), ("bfloat16", False)])
def test_float32_is_planned_with_the_precision_that_it_is_trained_with(dtype, every):
    """Compilers of accelerators multiply float32 in fewer bits unless each product says otherwise."""
    trainer = Trainer(tiny_config(**SIZES, model__dtype=dtype), mesh_of((1, 1, 1, 1)))
    with jax.default_matmul_precision("default"):
        text = compiling.lower_step(trainer).as_text()
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    exact = [line for line in products if "precision = [HIGHEST, HIGHEST]" in line]
    assert exact, "the loss is float32 in either case"
    assert (len(exact) == len(products)) == every


def test_what_is_larger_than_the_memory_does_not_fit():
    result = compiled()[1]
    assert dataclasses.replace(result, capacity=float(result.peak)).fits
    assert not dataclasses.replace(result, capacity=result.peak - 1.0).fits


def test_the_words_of_libtpu_for_too_large_a_program():
    message = (
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 23.05G of "
        "15.75G hbm. Exceeded hbm capacity by 7.30G."
    )
    assert compiling._overflow(message) == (round(23.05 * 2**30), 15.75 * 2**30)
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (29.53G) exceeds "
        "available HBM (15.75G)."
    )
    assert compiling._overflow(message) == (round(29.53 * 2**30), 15.75 * 2**30), "state and batch are among them"
    with pytest.raises(RuntimeError, match="out of memory and said: RESOURCE_EXHAUSTED: host"):
        compiling._overflow("RESOURCE_EXHAUSTED: host")


def test_warnings_of_the_compiler_are_kept_once_and_other_lines_are_not():
    line = (
        'W0000 spmd.cc:1] [SPMD] Involuntary full rematerialization. The op %x, metadata={op_name="jit(f)/dot"} cannot'
    )
    text = f"I0000 nothing\n{line}\n{line}\nW0000 Can't reduce memory use below 12GiB\n"
    first, second = compiling._warnings(text)
    assert first.endswith("jit(f)/dot")
    assert "12GiB" in second


def _complain():
    with compiling._said():
        os.write(2, b"why\n")
        raise ValueError("oops")


def test_what_compilers_write_is_collected_and_shown_when_something_fails(capfd):
    with compiling._said() as said:
        os.write(2, b"quiet\n")
    assert said.text == "quiet\n"
    assert capfd.readouterr().err == ""
    with pytest.raises(ValueError, match="oops"):
        _complain()
    assert capfd.readouterr().err == "why\n"


def test_another_failure_than_memory_is_not_swallowed(monkeypatch):
    monkeypatch.setitem(compiling.OPTIONS, "cpu", {"no_such_option": True})
    with pytest.raises(jax.errors.JaxRuntimeError, match="no_such_option"):
        compile_step(compiled()[0], 1e9)
