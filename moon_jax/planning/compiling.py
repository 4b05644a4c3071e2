"""The train step compiled ahead of time: its memory, its collectives, and what the compiler warned about."""

import contextlib
import dataclasses
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator

import jax

from moon_jax.config import Config
from moon_jax.planning import assignment
from moon_jax.planning.batch import abstract_batch, planned_shape
from moon_jax.planning.chips import Target
from moon_jax.planning.hlo import Collective, collectives_of
from moon_jax.planning.targets import mesh_on
from moon_jax.training.embedder import exact
from moon_jax.training.state import Trainer

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_WARNINGS = {
    r"[Ii]nvoluntary full rematerialization": "the partitioner gathers a whole array to lay it out anew",
    r"[Cc]an't reduce memory use below": "the compiler could not bring the memory down to what the chip has",
}
# There is no GPU to try kernels on, and the one that stands in for them must take any shape.
_NO_TRIALS = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}
OPTIONS = {"cpu": {"xla_backend_optimization_level": 0}, "tpu": {}, "gpu": _NO_TRIALS, "cuda": _NO_TRIALS}
CODE = 2**27  # bytes of machine code where none is generated: the full model's step has 0.10 to 0.12 GiB


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What a compiled program needs on each device. Bytes."""

    seconds: float  # that tracing and compiling took
    arguments: int  # state and batch
    temporaries: int  # at the same time, at most
    outputs: int  # beside those that take the place of donated arguments
    code: int
    peak: int  # of all together
    capacity: float  # that a program may fill
    collectives: tuple[Collective, ...]  # empty if the compiler gave up for want of memory
    warnings: tuple[str, ...]
    largest: tuple[str, ...] = ()  # allocations that the compiler names when it gives up

    @property
    def fits(self) -> bool:
        """Whether the memory of the chip is enough."""
        return self.peak <= self.capacity


def compile_step(trainer: Trainer, capacity: float) -> Compiled:
    """Returns the compiled train step of a trainer whose mesh may be of devices that are not here.

    Args:
        trainer: config and mesh.
        capacity: bytes that a program may fill on a device.

    Raises:
        jax.errors.JaxRuntimeError: the compiler failed for another reason than memory.
    """
    mesh = trainer.mesh
    platform = mesh.devices.flat[0].platform
    begin = time.perf_counter()
    with _said() as said, tempfile.TemporaryDirectory() as folder:
        lowered = lower_step(trainer)
        dump = assignment.dump_options(folder) if platform == "tpu" else {}
        try:
            program = lowered.compile(compiler_options=OPTIONS[platform] | dump)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            program, failure = None, str(error)
        assigned = assignment.read(folder)
    seconds, warnings = time.perf_counter() - begin, _warnings(said.text)
    if program is None:
        used, limit = _overflow(failure)
        sizes = dataclasses.astuple(assigned) if assigned else (0, 0, 0)
        found = re.findall(r"Size: (\S+)\s+(?:Operator: op_name=\"([^\"]*)\")?", failure)
        largest = tuple(f"{size} {name}" for size, name in found[:8])
        return Compiled(seconds, *sizes, 0, used, limit, (), warnings, largest)
    memory = program.memory_analysis()
    if assigned:
        parts = (*dataclasses.astuple(assigned), memory.generated_code_size_in_bytes)
    else:
        outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
        parts = (
            memory.argument_size_in_bytes, memory.temp_size_in_bytes, outputs, memory.generated_code_size_in_bytes,
        )  # fmt: skip
    collectives = tuple(collectives_of(program.as_text(), mesh.shape))
    return Compiled(seconds, *parts, sum(parts), capacity, collectives, warnings)


def compile_without_code(config: Config, target: Target, code: int = CODE) -> Compiled:
    """Returns the train step for a TPU as `compile_step` does, in seconds: its machine code is never generated.

    So kernels are not checked, and what the code takes is not known.

    Args:
        config: all settings.
        target: a TPU.
        code: bytes of machine code that are taken for granted, e.g. those of the step for another batch.

    Raises:
        RuntimeError: the compiler failed for another reason than memory.
    """
    begin = time.perf_counter()
    stopped = assignment.stopped_compilation(config, target)
    parts = (*dataclasses.astuple(stopped.assigned), code)
    collectives = tuple(collectives_of(stopped.program, mesh_on(target, config.mesh).shape)) if stopped.program else ()
    seconds = time.perf_counter() - begin
    return Compiled(seconds, *parts, sum(parts), target.chip.memory, collectives, _warnings(stopped.said))


def lower_step(trainer: Trainer) -> jax.stages.Lowered:
    """Returns the train step for the largest batch, as training lowers it: float32 products in all of their bits."""
    config, mesh = trainer.config, trainer.mesh
    state, batch = trainer.abstract_state(), abstract_batch(config, mesh)  # before the mesh is set: nothing runs there
    with jax.set_mesh(mesh), exact(config.model.dtype):
        return trainer.train_step(planned_shape(config, mesh).documents).lower(state, batch)


def _overflow(message: str) -> tuple[int, float]:
    """Returns (bytes used, bytes there are) of what the compiler says when it gives up.

    It says "Used 23.05G of 15.75G hbm" of the program with its code, or, before there is code, "HLO temporaries
    (29.53G) exceeds available HBM (15.75G)", among which it counts state and batch.
    """
    size = r"([\d.]+)([KMGT]?)"
    found = re.search(rf"Used {size} of {size} hbm", message) or re.search(
        rf"temporaries \({size}\) exceeds available HBM \({size}\)", message
    )
    if not found:
        raise RuntimeError(f"the compiler ran out of memory and said: {message[:2000]}")
    used, limit = (round(float(number) * _UNITS[unit]) for number, unit in (found.group(1, 2), found.group(3, 4)))
    return used, float(limit)


def _warnings(text: str) -> tuple[str, ...]:
    lines = []
    for pattern, meaning in _WARNINGS.items():
        for line in text.splitlines():
            if re.search(pattern, line):
                name = re.search(r'op_name="([^"]*)"', line)
                lines.append(f"{meaning}: {name[1] if name else line.strip()[:300]}")
    return tuple(dict.fromkeys(lines))


class _Said:
    text = ""


@contextlib.contextmanager
def _said() -> Iterator[_Said]:
    """Collects what compilers, which are no Python, write to standard error; shows it if something fails."""
    said = _Said()
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield said
        except BaseException:
            file.seek(0)
            os.write(kept, file.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            said.text = file.read().decode(errors="replace")
