"""Readers of product data; one file per format, all of them return the same `Dataset`."""

import pathlib
from collections.abc import Callable

from moon_jax.config import DataConfig
from moon_jax.data import store_refs
from moon_jax.data.records import DataError, Dataset
from moon_jax.data.sources import boxes, files, jsonl, m5product, marqo, mbe, mep3m, muge, product1m, table
from moon_jax.data.sources.lines import Reading
from moon_jax.data.store import open_store

READERS: dict[str, Callable[[DataConfig, Reading], Dataset]] = {
    "jsonl": jsonl.read,
    "mbe": mbe.read,
    "catalogue": jsonl.read,  # the drawn catalogue is written in our own layout
    "m5product": m5product.read,
    "product1m": product1m.read,
    "marqo": marqo.read,
    "muge": muge.read,
    "mep3m": mep3m.read,
    "table": table.read,
}


def read(config: DataConfig, *, triplets: bool = True, limit: int = 0) -> Dataset:
    """Returns the data set at `config.path`, read as `config.format`.

    Args:
        config: where the data are, their format and the policy for bad records.
        triplets: whether they are needed, as for training and evaluation; without, a catalogue will do.
        limit: records of each file that are read; 0 = all.

    Raises:
        DataError: the format, the folder, a part or a record cannot be used, or triplets are needed and there are
            none; the message names it.
    """
    if config.format not in READERS:
        raise DataError(f"config.data.format is {config.format!r}; it must be one of {', '.join(READERS)}")
    dataset = READERS[config.format](config, Reading(config, limit))
    if triplets and not (dataset.train or dataset.seen or dataset.unseen):
        raise DataError(
            f"{config.path} lists {len(dataset.products)} products, and no record is a query with a product (a "
            "positive), so there is nothing to learn or to find: training and evaluation need triplets (docs/data.md)"
        )
    if not dataset.products:
        raise DataError(f"{config.path}: there is not a single product")
    if config.boxes:
        dataset = boxes.fill(dataset, config, files.image_root(config))
    if not config.image_store:
        return dataset
    store = open_store(str(pathlib.Path(config.image_store).expanduser().absolute()))
    return store_refs.attach(dataset, store, files.image_root(config))
