"""The flags of one command, defined so that several commands can be imported into one process."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from moon_jax.config import ConfigError


class CommandFlags:
    """Defines flags: those of the process when the module is the program, else a set of the module's own.

    Two commands may both have `--input`; absl's flags belong to the process and would refuse the second.

        FLAGS = CommandFlags(__name__)
        INPUT = FLAGS.string("input", None, "folder of records")  # as flags.DEFINE_string; then INPUT.value

    Attributes:
        values: absl's FlagValues.
    """

    def __init__(self, module: str):
        self.values = flags.FLAGS if module == "__main__" else flags.FlagValues()

    def __getattr__(self, kind: str) -> Callable[..., flags.FlagHolder[Any]]:
        return functools.partial(getattr(flags, f"DEFINE_{kind}"), flag_values=self.values)

    def parse(self, **given: Any) -> None:
        """Sets the flags anew as the command line would: lists joined by commas, the others at their defaults."""
        self.values.unparse_flags()
        for name in self.values:
            self.values[name].unparse()
        text = lambda value: ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)  # noqa: E731
        self.values(["command", *(f"--{name}={text(value)}" for name, value in given.items())])


def pairs(name: str, given: Sequence[str], form: str = "OURS=THEIRS") -> tuple[tuple[str, str], ...]:
    """Returns the (ours, theirs) pairs of a list flag of OURS=THEIRS; `form` says so in the user's words.

    Raises:
        ConfigError: an entry has no "="; names the flag.
    """
    split = [one.partition("=") for one in given]
    if wrong := [one for one, (_, sign, _) in zip(given, split, strict=True) if not sign]:
        raise ConfigError(f"--{name}: {wrong[0]!r} is no {form}")
    return tuple((ours.strip(), theirs.strip()) for ours, _, theirs in split)
