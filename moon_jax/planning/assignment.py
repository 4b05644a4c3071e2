"""What XLA assigns to a TPU's memory, by the files that it dumps, and a compilation that ends when they are there.

`memory_analysis()` of a program for a TPU does not say it: `temp_size_in_bytes` is larger (11.8 for 7.6 GiB of
temporaries of the full model on v5e:16x16), and `peak_memory_in_bytes` leaves out the gaps between the arrays. Buffer
assignment is what XLA itself compares with the chip. It comes after all passes over HLO and before machine code is
generated, which takes nearly all of the time.
"""

import dataclasses
import multiprocessing
import os
import pathlib
import re
import tempfile
import threading
import time
import traceback

from moon_jax.config import Config
from moon_jax.planning.chips import Target

_ALLOCATION = re.compile(r"^allocation \d+: size (\d+), (.*)$", re.MULTILINE)
_BUFFERS, _PROGRAM = "*-buffer-assignment.txt", "*after_buffer_assignment.txt"  # the second is written last
_SAID, _FAILURE = "stderr", "failure"
_PATIENCE_S = 0.5  # a file that ends like a program and has not grown for so long is whole


@dataclasses.dataclass(frozen=True)
class Assigned:
    """The main memory of one device. Bytes."""

    arguments: int  # state and batch
    temporaries: int  # with constants
    outputs: int  # beside those that take the place of donated arguments

    @property
    def total(self) -> int:
        """What XLA compares with the memory of the chip, before machine code is added."""
        return self.arguments + self.temporaries + self.outputs


@dataclasses.dataclass(frozen=True)
class Stopped:
    """A compilation that was stopped when all but its machine code was there."""

    assigned: Assigned
    program: str  # HLO after all passes; empty where XLA gave up for want of memory
    said: str  # by the compiler


def dump_options(folder: str | os.PathLike[str]) -> dict[str, str | bool]:
    """Returns the options with which XLA writes the assignment and the optimized program, and no pass, to a folder."""
    return {"xla_dump_to": str(folder), "xla_dump_hlo_as_text": True, "xla_dump_hlo_pass_re": "NONE"}


def read(folder: str | os.PathLike[str]) -> Assigned | None:
    """Returns the assignment of the one program that was dumped to a folder; None if there is none."""
    found = sorted(pathlib.Path(folder).glob(_BUFFERS))
    return parse(found[0].read_text()) if found else None


def parse(text: str) -> Assigned:
    """Returns the sums of a buffer assignment as XLA prints it; other memories (VMEM and such) have a color."""
    sizes = {"arguments": 0, "temporaries": 0, "outputs": 0}
    for size, about in _ALLOCATION.findall(text):
        if re.search(r"\bcolor [1-9]", about):
            continue
        kind = "arguments" if "parameter " in about else "outputs" if "maybe-live-out" in about else "temporaries"
        sizes[kind] += int(size)
    return Assigned(**sizes)


def stopped_compilation(config: Config, target: Target) -> Stopped:
    """Returns the train step for a TPU, compiled by a process of its own up to its machine code.

    Args:
        config: all settings.
        target: chips and topology.

    Raises:
        RuntimeError: the compiler failed, for another reason than memory; with its message.
    """
    with tempfile.TemporaryDirectory() as folder:
        process = multiprocessing.get_context("spawn").Process(target=_compile, args=(config, target, folder))
        process.start()
        try:
            whole = _wait(process, pathlib.Path(folder))
        finally:
            process.kill()
            process.join()
        said, failure = (
            path.read_text(errors="replace") if (path := pathlib.Path(folder, name)).exists() else ""
            for name in (_SAID, _FAILURE)
        )
        assigned = read(folder)
        too_large = assigned and "RESOURCE_EXHAUSTED" in failure and assigned.total > target.chip.memory
        if assigned is None or not (too_large or (whole and not failure)):
            raise RuntimeError(f"the compiler ended without a program (status {process.exitcode})\n{failure or said}")
        return Stopped(assigned, "" if too_large else _program(pathlib.Path(folder)), said)


def _wait(process: multiprocessing.process.BaseProcess, folder: pathlib.Path) -> bool:
    """Returns whether the last of the files is whole, as soon as it is or the process has ended."""
    text, since = "", time.monotonic()
    while process.is_alive():
        process.join(_PATIENCE_S / 5)
        now = _program(folder)
        if len(now) != len(text):
            text, since = now, time.monotonic()
        elif _is_whole(text) and time.monotonic() - since > _PATIENCE_S:
            return True
    return _is_whole(_program(folder))


def _program(folder: pathlib.Path) -> str:
    found = next(folder.glob(_PROGRAM), None)
    return found.read_text() if found else ""


def _is_whole(text: str) -> bool:
    return "\nENTRY " in text and text.endswith("}\n\n")


def _compile(config: Config, target: Target, folder: str) -> None:
    """Compiles in a fresh process, which does not outlive its parent; what goes wrong is written down."""
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    with open(pathlib.Path(folder, _SAID), "wb") as said:
        os.dup2(said.fileno(), 2)
    try:
        import jax

        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_enable_compilation_cache", False)  # what comes from there is not dumped
        from moon_jax.planning.compiling import OPTIONS, lower_step
        from moon_jax.planning.targets import mesh_on
        from moon_jax.training.state import Trainer

        trainer = Trainer(config, mesh_on(target, config.mesh))
        lower_step(trainer).compile(compiler_options=OPTIONS["tpu"] | dump_options(folder))
    except Exception:
        pathlib.Path(folder, _FAILURE).write_text(traceback.format_exc())
        raise SystemExit(1) from None


def _end_with(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)
