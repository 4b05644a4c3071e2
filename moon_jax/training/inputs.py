"""The data that a run reads, opened in the same way for training and for evaluation."""

import dataclasses
import pathlib

import jax
from jax.experimental import multihost_utils

from moon_jax.config import ConfigError, DataConfig
from moon_jax.data import catalogue, images, sources
from moon_jax.data.records import Dataset


def make_folder(workdir: pathlib.Path) -> None:
    """Makes a work folder that is not there yet.

    Raises:
        ConfigError: it cannot be made, as there is a file of that name.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        file = next(path for path in (workdir, *workdir.parents) if path.exists())
        raise ConfigError(f"--workdir={workdir} cannot be made: {file} is a file") from None


def open_dataset(data: DataConfig, workdir: pathlib.Path) -> tuple[DataConfig, Dataset]:
    """Returns the settings with the path filled in, and the data set that they name, its pictures checked.

    A catalogue without a path is drawn in the work folder.

    Raises:
        DataError: see `moon_jax.data.sources.read`; or pictures are missing.
    """
    data = drawn(data, workdir)
    dataset = sources.read(data)
    images.check(dataset, data)
    return data, dataset


def drawn(data: DataConfig, workdir: pathlib.Path) -> DataConfig:
    """Returns the settings with the path filled in, after drawing a catalogue that has none into the work folder.

    With several processes each one calls this; process 0 draws and the others wait for it.
    """
    if data.format != "catalogue" or data.path:
        return data
    path = workdir / "catalogue"
    if jax.process_index() == 0:
        catalogue.write(path, data.catalogue_products, seed=0)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("catalogue")
    return dataclasses.replace(data, path=str(path))
