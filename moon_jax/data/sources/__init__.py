"""Readers of product data; one file per format, all of them return the same `Dataset`."""

from collections.abc import Callable

from moon_jax.config import DataConfig
from moon_jax.data.records import DataError, Dataset
from moon_jax.data.sources import jsonl, mbe

READERS: dict[str, Callable[[DataConfig], Dataset]] = {
    "jsonl": jsonl.read,
    "mbe": mbe.read,
    "catalogue": jsonl.read,  # the drawn catalogue is written in our own layout
}


def read(config: DataConfig) -> Dataset:
    """Returns the data set at `config.path`, read as `config.format`.

    Raises:
        DataError: the format, the folder, a part or a record cannot be used; the message names it.
    """
    if config.format not in READERS:
        raise DataError(f"config.data.format is {config.format!r}; it must be one of {', '.join(READERS)}")
    return READERS[config.format](config)
