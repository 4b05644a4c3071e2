"""What XLA assigns to memory: its files read, and a compilation stopped when they are there."""

import multiprocessing
import os
import pathlib
import signal
import time

import jax
import jax.numpy as jnp
import pytest
from fake_batch import tiny_config

from moon_jax.planning import assignment
from moon_jax.planning.chips import parse_target

TEXT = """BufferAssignment:
allocation 0: size 512, thread-local:
 value: <1 a @0> (size=4,offset=0): f32[]
allocation 1: size 1000, parameter 5, shape |f32[250]| at ShapeIndex {}, maybe-live-out:
allocation 2: size 2000, parameter 0, shape |f32[500]| at ShapeIndex {}:
allocation 3: size 24, maybe-live-out:
allocation 4: size 40, constant:
allocation 5: size 7000, color 1, preallocated-temp:
allocation 6: size 30000, preallocated-temp:
 value: <2 allocation 9: size 5, x @0> (size=9,offset=0): f32[]
"""


def test_sums_of_the_main_memory_alone():
    assigned = assignment.parse(TEXT)
    assert (assigned.arguments, assigned.temporaries, assigned.outputs) == (3000, 30552, 24)
    assert assigned.total == 33576


def test_a_dump_says_what_xla_says_of_a_program_of_this_machine(tmp_path):
    step = jax.jit(lambda w, x: w + jax.grad(lambda w: jnp.tanh(x @ w).sum())(w), donate_argnums=0)
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((256, 128), (64, 256))]
    program = step.lower(*shapes).compile(compiler_options=assignment.dump_options(tmp_path))
    memory, assigned = program.memory_analysis(), assignment.read(tmp_path)
    assert assigned.arguments == memory.argument_size_in_bytes == 4 * (256 * 128 + 64 * 256)
    assert assigned.outputs == memory.output_size_in_bytes - memory.alias_size_in_bytes == 0
    assert assigned.temporaries >= memory.temp_size_in_bytes > 0
    assert assignment.read(tmp_path / "nothing") is None


def slow(config, target, folder):
    """Writes the last file in two halves and then generates code for ever."""
    folder = pathlib.Path(folder)
    (folder / "module.after_optimizations-buffer-assignment.txt").write_text(TEXT)
    (folder / "stderr").write_text("W0000 Can't reduce memory use below 12GiB\n")
    with open(folder / "module.after_optimizations_after_buffer_assignment.txt", "w") as file:
        for half in ("HloModule m\n\n", "ENTRY e {}\n\n"):
            file.write(half)
            file.flush()
            time.sleep(0.2)
        time.sleep(1000)


LARGE = TEXT.replace("size 30000", f"size {20 * 2**30}")  # than a v5e


def too_large(config, target, folder):
    (pathlib.Path(folder) / "module.after_optimizations-buffer-assignment.txt").write_text(LARGE)
    (pathlib.Path(folder) / "failure").write_text("RESOURCE_EXHAUSTED: Ran out of memory on HBM")
    raise SystemExit(1)


def broken(config, target, folder):
    (pathlib.Path(folder) / "failure").write_text("INVALID_ARGUMENT: oops")
    raise SystemExit(1)


def other_memory(config, target, folder):
    (pathlib.Path(folder) / "module.after_optimizations-buffer-assignment.txt").write_text(TEXT)
    (pathlib.Path(folder) / "failure").write_text("RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem: oops")
    raise SystemExit(1)


def killed(config, target, folder):
    """As when the machine runs out of memory while the program is written."""
    (pathlib.Path(folder) / "module.after_optimizations-buffer-assignment.txt").write_text(TEXT)
    (pathlib.Path(folder) / "module.after_optimizations_after_buffer_assignment.txt").write_text("HloModule m\n\n")
    (pathlib.Path(folder) / "stderr").write_text("oops\n")
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_compilation_ends_when_its_memory_is_known(monkeypatch):
    monkeypatch.setattr(assignment, "_compile", slow)
    stopped = assignment.stopped_compilation(tiny_config(), parse_target("v5e:2x4"))
    assert stopped.program == "HloModule m\n\nENTRY e {}\n\n"
    assert stopped.assigned == assignment.parse(TEXT)
    assert "12GiB" in stopped.said
    assert not multiprocessing.active_children()


def test_a_program_that_is_too_large_has_a_size_all_the_same(monkeypatch):
    monkeypatch.setattr(assignment, "_compile", too_large)
    stopped = assignment.stopped_compilation(tiny_config(), parse_target("v5e:2x4"))
    assert stopped.assigned.total > 20 * 2**30
    assert stopped.program == ""


@pytest.mark.parametrize("end", [broken, other_memory, killed])
def test_another_failure_is_said(monkeypatch, end):
    monkeypatch.setattr(assignment, "_compile", end)
    with pytest.raises(RuntimeError, match=r"without a program (?s:.*)oops"):
        assignment.stopped_compilation(tiny_config(), parse_target("v5e:2x4"))
