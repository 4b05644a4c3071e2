"""Batches of documents to embed: planned from texts and the headers of pictures, loaded when they are asked for."""

import concurrent.futures
import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from moon_jax.config import Config
from moon_jax.data import buckets, images
from moon_jax.data.buckets import Bucket, Need
from moon_jax.data.documents import Document, EncodedDocument, encode
from moon_jax.data.packing import PackingError, pack_shards
from moon_jax.data.patches import Picture, blank
from moon_jax.data.pipeline import Batch, Tally
from moon_jax.data.policy import Skipped
from moon_jax.data.records import DataError
from moon_jax.data.tokenizer import Tokenizer

NOTHING = EncodedDocument(np.zeros(0, np.int32), np.zeros(0, np.int32), ())  # its vector is zero


class _Loaded(NamedTuple):
    """A document with its pictures, and what was wrong with them."""

    document: EncodedDocument
    broken: list[Skipped]
    unused_boxes: list[Skipped]


class DocumentBatches:
    """The batches of a list of documents, alike ones together; pictures are in memory only while a batch is made.

    Attributes:
        rows: for every batch, int64 [shards * E]: the document whose vector is in each place, -1 = none.
    """

    def __init__(
        self,
        documents: Sequence[Document],
        tokenizer: Tokenizer,
        config: Config,
        shards: int,
        host_shards: Sequence[int],
        *,
        batch_documents: int = 0,
        whole: bool = False,
        alike: bool = False,
    ):
        """Plans the batches; reads the headers of the pictures.

        Args:
            documents: any mixture.
            tokenizer: of the model.
            config: `eval.batch_documents`, `data`, `model`, `moe`.
            shards: of the global batch.
            host_shards: the ones to make here.
            batch_documents: of a shard of a batch; 0 = `config.eval.batch_documents`.
            whole: what `config.data.on_error` = "skip" does with a document of which a picture cannot be read: true
                leaves out the document (its vector is zero), false only the picture, and a document that has nothing
                else gets a white one.
            alike: the shapes do not depend on the number of shards, see `buckets.plan`.

        Raises:
            DataError: a picture cannot be read and `config.data.on_error` is "raise", or a document has no tokens.
        """
        self.documents, self.tokenizer, self.config = documents, tokenizer, config
        self.host_shards, self._whole = host_shards, whole
        pictured = [document for document in documents if document.images]
        with concurrent.futures.ThreadPoolExecutor() as pool:
            sketches = iter(list(pool.map(self._sketch, pictured)))
        self._sketches = [next(sketches) if d.images else self._sketch(d) for d in documents]
        needs = [Need(len(s.tokens), tuple(p.grid for p in s.pictures)) for s in self._sketches]
        self.buckets = buckets.plan(
            needs, batch_documents or config.eval.batch_documents, shards, config.model, config.moe, alike=alike
        )
        self._batches = [(bucket, batch) for bucket in self.buckets for batch in bucket.batches]
        self.rows = [_rows(bucket, batch) for bucket, batch in self._batches]

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, step: int) -> Batch:
        """Returns the host's part of batch `step`.

        Raises:
            DataError: a picture cannot be read and `config.data.on_error` is "raise".
        """
        bucket, batch = self._batches[step]
        own = [batch[shard] for shard in self.host_shards]
        tally, left_out = Tally(), {}
        numbers = [number for shard in own for number in shard]
        if any(self.documents[number].images for number in numbers):
            with concurrent.futures.ThreadPoolExecutor() as pool:  # Pillow lets go of the GIL
                loaded = dict(zip(numbers, pool.map(self._load, numbers), strict=True))
        else:
            loaded = {number: self._load(number) for number in numbers}
        for number, (document, broken, unused_boxes) in loaded.items():
            tally.add(document)
            tally.broken += broken
            tally.unused_boxes += unused_boxes
            if document is NOTHING:
                left_out[number] = "; ".join(message for _, message in broken)
        arrays = self._pack([[loaded[number].document for number in shard] for shard in own], bucket, batch)
        info = {
            "broken_pictures": len(tally.broken),
            "cut_texts": tally.cut_texts,
            "missing_boxes": tally.missing_boxes,
            "unused_boxes": len(tally.unused_boxes),
        }
        return Batch(arrays, info, (*tally.broken, *tally.unused_boxes), left_out)

    def _sketch(self, document: Document) -> EncodedDocument:
        """Returns the document with pictures that have a grid and no pixels."""
        data, vision = self.config.data, self.config.model.vision
        grids = []
        for image in document.images:
            try:
                grids += images.grids(Document((image,)), data, vision)
            except DataError as error:
                if data.on_error != "skip":
                    raise _named(document, error) from error
        pixels = np.zeros((0, vision.patch_dim), np.float32)
        pictures = [Picture(pixels, grid, role) for grid, role in grids]
        if document.images and not pictures and not document.segments:
            pictures = [blank(data, vision)]
        try:
            return encode(document, self.tokenizer, pictures, data, vision)
        except DataError as error:
            raise _named(document, error) from error

    def _load(self, number: int) -> _Loaded:
        """Returns the document with its pictures, and what was wrong with them."""
        document, sketch = self.documents[number], self._sketches[number]
        data, vision = self.config.data, self.config.model.vision
        loaded: list[Picture] = []
        broken, unused = [], []
        for image in document.images:
            try:
                made = images.pictures(Document((image,)), data, vision)
            except DataError as error:
                if data.on_error != "skip":
                    raise _named(document, error) from error
                broken.append(Skipped(error.reason, str(_named(document, error))))
            else:
                loaded += made
                unused += images.unused_boxes((image,), made, data)
        if broken and self._whole:
            return _Loaded(NOTHING, broken, unused)
        if document.images and not loaded and not document.segments:
            loaded = [blank(data, vision)]
        if [(p.grid, p.role) for p in loaded] == [(p.grid, p.role) for p in sketch.pictures]:
            return _Loaded(dataclasses.replace(sketch, pictures=tuple(loaded)), broken, unused)
        return _Loaded(encode(document, self.tokenizer, loaded, data, vision), broken, unused)

    def _pack(
        self, documents: Sequence[Sequence[EncodedDocument]], bucket: Bucket, batch: Sequence[Sequence[int]]
    ) -> dict[str, np.ndarray]:
        """Returns the packed shards; in a larger shape where a file is no longer what its header said.

        Hosts cannot agree on that without talking, so that only a host that has all the shards may choose.
        """
        vision = self.config.model.vision
        try:
            return pack_shards(documents, bucket.shape, vision)
        except PackingError as error:
            if len(documents) < len(batch):
                raise DataError(f"a picture is not of the size in its header; did a file change? {error}") from error
            needs = [[Need(len(d.tokens), tuple(p.grid for p in d.pictures)) for d in shard] for shard in documents]
            return pack_shards(documents, buckets.widened(bucket.shape, needs, vision), vision)


def _rows(bucket: Bucket, batch: Sequence[Sequence[int]]) -> Int[np.ndarray, " places"]:
    rows = np.full((len(batch), bucket.shape.documents), -1, np.int64)
    for shard, numbers in enumerate(batch):
        rows[shard, : len(numbers)] = numbers
    return rows.reshape(-1)


def _named(document: Document, error: DataError) -> DataError:
    return type(error)(f"{document.name}: {error}") if document.name else error
