"""The config files of `configs/`, read as the command line reads them."""

import pathlib
from typing import Any

from absl import flags
from ml_collections import config_flags

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"


def recipe(argument: str) -> Any:
    """Returns the ConfigDict of a file with its argument, e.g. "demo.py:no_crop"."""
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", flag_values=values)
    values(["train", f"--config={CONFIGS}/{argument}"])
    return holder.value
