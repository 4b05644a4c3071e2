"""The pictures of a data set in an image store: under which keys, and how the data set comes to read them there."""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Iterable

import numpy as np
from jaxtyping import Int64

from moon_jax.config import DataConfig, VisionConfig
from moon_jax.data import images
from moon_jax.data.records import Box, Dataset, ImageRef, ImageSource, replace_images
from moon_jax.data.store import PackedImage, Store, open_store


def key_of(source: ImageSource, folder: pathlib.Path) -> str:
    """Returns the key of a picture: a URL, or where it lies, relative to the folder where it is inside of it.

    So a store goes with its data set to another machine. A picture in memory has no key and gives "".
    """
    if isinstance(source, PackedImage):
        return source.key
    if not isinstance(source, str):
        text = "" if isinstance(source, bytes) or not hasattr(source, "read") else str(source)
    elif source.startswith(("http://", "https://")):
        text = source
    else:
        text = os.path.normpath(source)
    return text.removeprefix(f"{folder}{os.sep}")


def pictures_of(dataset: Dataset, folder: pathlib.Path) -> dict[str, ImageSource]:
    """Returns key -> picture of all that a data set refers to, without URLs and pictures in memory."""
    found = {key_of(ref.path, folder): ref.path for ref in _refs(dataset)}
    return {key: source for key, source in found.items() if key and key is not source}


def attach(dataset: Dataset, store: Store, folder: pathlib.Path) -> Dataset:
    """Returns the data set with its pictures read from a store, boxes scaled to their sizes there.

    Pictures that are not in the store stay what they are: a file that is there is read as before. The report counts
    both. The fingerprint covers what is in the store.

    Args:
      dataset: as its reader gives it.
      store: with its pictures.
      folder: that the keys are relative to.
    """
    sources = list({ref.path: None for ref in _refs(dataset) if not isinstance(ref.path, PackedImage)})
    keys = [key_of(source, folder) for source in sources]
    rows = np.where([bool(key) for key in keys], store.find(keys), -1) if keys else np.zeros(0, np.int64)
    packed = {
        source: PackedImage(str(store.folder), int(row), key)
        for source, key, row in zip(sources, keys, rows, strict=True)
        if row >= 0
    }

    def moved(ref: ImageRef, _: str) -> ImageRef:
        there = packed.get(ref.path)
        return ref if there is None else ImageRef(there, scaled(ref.box, store, there.row))

    return dataclasses.replace(
        replace_images(dataset, moved),
        fingerprint=hashlib.sha256(f"{dataset.fingerprint}\0{store.digest}".encode()).hexdigest(),
        report=dataset.report | {"pictures_in_store": len(packed), "pictures_not_in_store": len(sources) - len(packed)},
    )


def attach_one(ref: ImageRef, store: Store, folder: pathlib.Path) -> ImageRef | None:
    """Returns the reference to a picture in a store, its box scaled; None where the store does not hold it.

    Args:
      ref: a path or a URL; a picture in memory is in no store.
      store: with its pictures.
      folder: that the keys are relative to.
    """
    key = key_of(ref.path, folder)
    row = store.find_one(key) if key else -1
    return None if row < 0 else ImageRef(PackedImage(str(store.folder), row, key), scaled(ref.box, store, row))


def scaled(box: Box | None, store: Store, row: int) -> Box | None:
    """Returns a box in the source picture of a row as a box in the stored one."""
    entry = store.rows[row]
    width, height = int(entry["width"]), int(entry["height"])
    source_width, source_height = int(entry["source_width"]), int(entry["source_height"])
    if box is None or (width, height) == (source_width, source_height):
        return box
    x, y = width / source_width, height / source_height
    return box[0] * x, box[1] * y, box[2] * x, box[3] * y


def source_box(box: Box, image: PackedImage) -> Box:
    """Returns a box in a stored picture as a box in the picture that it was made of: the way back of `scaled`."""
    entry = open_store(image.folder).rows[image.row]
    x, y = (int(entry[f"source_{side}"]) / int(entry[side]) for side in ("width", "height"))
    return box[0] * x, box[1] * y, box[2] * x, box[3] * y


def tokens(store: Store, data: DataConfig, vision: VisionConfig) -> Int64[np.ndarray, " n"]:
    """Returns how many visual tokens the whole picture of every row has under the settings, from the index alone."""
    sizes = np.stack([store.rows["width"], store.rows["height"]], -1).astype(np.int64)
    kinds, of = np.unique(sizes, axis=0, return_inverse=True)
    grids = [images.grid((int(width), int(height)), data, vision) for width, height in kinds]
    counts = np.array([high * wide // vision.spatial_merge_size**2 for high, wide in grids], np.int64)
    return counts[of.reshape(-1)]


def _refs(dataset: Dataset) -> Iterable[ImageRef]:
    for product in dataset.products.values():
        yield from product.images
    for triplets in (dataset.train, dataset.seen, dataset.unseen):
        for triplet in triplets:
            if triplet.query.image is not None:
                yield triplet.query.image
