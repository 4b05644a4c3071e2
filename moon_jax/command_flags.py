"""The flags of one command, defined so that several commands can be imported into one process."""

import functools
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags
from ml_collections import config_flags

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

    def config(self, default: str | None, help_text: str) -> flags.FlagHolder[Any]:
        """Defines --config, a file with a get_config(), and --config.GROUP.NAME for each of its settings."""
        holder = config_flags.DEFINE_config_file("config", default, help_text, flag_values=self.values)
        flags.register_validator("config", _check_loaded, flag_values=self.values)
        return holder

    def run(self, main: Callable[[list[str]], None]) -> None:
        """Runs the command with the process's arguments; flags that cannot be read end with one plain message."""
        app.run(main, flags_parser=_read)

    def parse(self, **given: Any) -> None:
        """Sets the flags anew as the command line would: lists joined by commas, the others at their defaults."""
        self.values.unparse_flags()
        for name in self.values:
            self.values[name].unparse()
        text = lambda value: ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)  # noqa: E731
        self.values(["command", *(f"--{name}={text(value)}" for name, value in given.items())])


def _read(argv: list[str]) -> list[str]:
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError, IndexError) as error:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if not frame.f_globals.get("__name__", "").startswith("ml_collections."):
            raise  # a mistake in the config file
        missing, *hint = re.findall(r"[\w.]+", re.sub(r".*lookup: |instead of.*|\\n", " ", str(error.args[0])))
        names = [a.partition("=")[0] for a in argv if a.lstrip("-").startswith("config.")]
        named = [n for n in names if n.endswith(missing) or missing in n.split(".")] or names
        closest = f"; did you mean {hint[-1]!r}?" if hint else ""
        sys.exit(f"FATAL Flags parsing error: {', '.join(named)} does not exist{closest}")


def _check_loaded(config: Any) -> bool:
    """Raises flags.ValidationError if ml_collections could not open the file; it would say so only when it is used."""
    try:
        getattr(config, "get", None)
    except OSError as error:
        raise flags.ValidationError(str(error.__cause__ or error)) from error
    return True


def pairs(name: str, given: Sequence[str], form: str = "OURS=THEIRS") -> tuple[tuple[str, str], ...]:
    """Returns the (ours, theirs) pairs of a list flag of OURS=THEIRS; `form` says so in the user's words.

    Raises:
        ConfigError: an entry has no "="; names the flag.
    """
    split = [one.partition("=") for one in given]
    if wrong := [one for one, (_, sign, _) in zip(given, split, strict=True) if not sign]:
        raise ConfigError(f"--{name}: {wrong[0]!r} is no {form}")
    return tuple((ours.strip(), theirs.strip()) for ours, _, theirs in split)
