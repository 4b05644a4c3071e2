"""Batches by their number: training batches of triplets, and the stream of these or of documents to embed.

`batches[step]` is a pure function of the settings, the data and the step, on every host and in every worker.
"""

import dataclasses
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np
from absl import flags

from moon_jax.config import Config, ConfigError, DataConfig, Role
from moon_jax.data import images
from moon_jax.data.documents import (
    EncodedDocument,
    encode,
    has_modality,
    item_document,
    query_document,
)
from moon_jax.data.packing import BatchShape, Bound, PackingError, document_bound, grown, pack_shards, plan_shape
from moon_jax.data.policy import NAMED_WARNINGS, Ledger, Skipped, shown
from moon_jax.data.records import DataError, Dataset
from moon_jax.data.sampling import Row, Sampler, balanced, quotas
from moon_jax.data.tokenizer import Tokenizer

_LOG = logging.getLogger(__name__)
HOST_COUNTS = ("triplets", "skipped_triplets", "cut_texts", "missing_boxes", "unused_boxes")  # of the host's own shards
SKIP_GRACE = 1000  # triplets of which max_skipped_share may be broken before the share of fewer ones is judged


@dataclasses.dataclass(frozen=True)
class Batch:
    """One step's work of a host: arrays for the devices, counts for the log."""

    arrays: dict[str, np.ndarray]  # leading axis: the host's shards; the fields are described at packing.pack
    info: dict[str, int]
    broken: tuple[Skipped, ...] = ()
    left_out: Mapping[int, str] = dataclasses.field(default_factory=dict)  # documents without a vector, and why


@dataclasses.dataclass
class Tally:
    """Counts over the documents of a batch."""

    cut_texts: int = 0
    missing_boxes: int = 0  # pictures without a core crop
    unused_boxes: list[Skipped] = dataclasses.field(default_factory=list)
    broken: list[Skipped] = dataclasses.field(default_factory=list)

    def add(self, document: EncodedDocument) -> EncodedDocument:
        """Returns the document, counted."""
        roles = [picture.role for picture in document.pictures]
        self.cut_texts += document.cut_texts
        self.missing_boxes += roles.count(Role.IMAGE) - roles.count(Role.CORE)
        return document

    def add_unused_boxes(self, skipped: Iterable[Skipped], triplet_id: str) -> None:
        """Counts boxes without a crop, named by their triplet."""
        name = f"triplet {shown(triplet_id)}"
        self.unused_boxes += [Skipped(reason, f"{name}: {message}") for reason, message in skipped]


class TrainBatches:
    """The packed triplets of every step, of the shards of this host.

    Beside the fields of `pack`, int32 [shards, B] each: `query`, `positive`, `negative` (index of the document in the
    shard) and `positive_product`, `negative_product` (Dataset.numbers). Row i of the global batch is in shard i // B.
    """

    def __init__(self, dataset: Dataset, tokenizer: Tokenizer, config: Config, shards: int, host_shards: Sequence[int]):
        """Plans the static shape.

        Args:
            dataset: its training triplets.
            tokenizer: of the model.
            config: `train.batch_size` and `train.seed`, `data`, `model.vision`.
            shards: of the global batch.
            host_shards: the ones to make here.

        Raises:
            ConfigError: the batch does not divide by the shards.
            DataError: there is nothing to train on.
        """
        batch_size, data = config.train.batch_size, config.data
        if batch_size % shards:
            raise ConfigError(f"config.train.batch_size {batch_size} must be a multiple of the {shards} batch shards")
        if not dataset.train:
            raise DataError(f"{data.path}: no training triplets (config.data.unseen_share is {data.unseen_share})")
        self.dataset, self.tokenizer, self.config = dataset, tokenizer, config
        self.host_shards, self.triplets = host_shards, batch_size // shards
        self.sampler = Sampler(dataset, data, config.train.seed, batch_size)
        self.shape = self._plan(data, quotas(batch_size, data.modality_mix)[2])
        whole = dataclasses.replace(data, row_share=1.0, slot_share=1.0)
        self.largest = self._plan(whole, quotas(batch_size, data.modality_mix)[2])
        pairs = [(t.positive, t.negative) for t in dataset.train if t.negative is not None]
        self.balanced_share = sum(balanced(*pair) for pair in pairs) / max(1, len(pairs))
        if self.balanced_share < 0.5:
            _LOG.warning(
                "only %.0f%% of the triplets have category and attribute texts on the positive and the negative alike; "
                "the others are trained without them, or their presence would give the positive away",
                100 * self.balanced_share,
            )

    def _plan(self, data: DataConfig, most_both: int) -> BatchShape:
        """Returns a shape for every batch: at most `most_both` queries have a picture and a text."""
        vision, n = self.config.model.vision, self.triplets
        train = self.dataset.train
        asked = [t.query.image for t in train if t.query.image is not None]
        if data.own_picture:
            asked += [t.positive.images[0] for t in train if t.positive.images]
        in_query = max((images.count(image, data) for image in asked), default=0)
        products = [p for t in train for p in (t.positive, t.negative) if p is not None]
        in_item = max(sum(images.count(i, data) for i in p.images[: data.images_per_item]) for p in products)
        both = min(n, most_both) if any(has_modality(t.query, "both") for t in train) else 0
        by_image = document_bound(n - both, data, vision, in_query, texts=0)
        by_text = document_bound(n - both, data, vision, 0, texts=1)
        bounds = [
            document_bound(2 * n, data, vision, in_item),
            document_bound(both, data, vision, in_query, texts=1),
            Bound(n - both, max(by_image.tokens, by_text.tokens), max(by_image.pictures, by_text.pictures)),
        ]
        return plan_shape([bound for bound in bounds if bound.count], data, vision)

    def __getitem__(self, step: int) -> Batch:
        """Returns the host's part of the batch of a step.

        Raises:
            DataError: a picture cannot be read and `config.data.on_error` is "raise", or the spares cannot either.
            PackingError: `config.data.rows` or another size was set too small for this batch.
        """
        rows, info = self.sampler.rows(step)
        n, tally = self.triplets, Tally()
        own = [[self._load(step, i, rows[i], tally) for i in range(g * n, (g + 1) * n)] for g in self.host_shards]
        documents = [[documents[part] for part in range(3) for _, documents in shard] for shard in own]
        arrays = self._pack(documents)
        for part, name in enumerate(("query", "positive", "negative")):
            arrays[name] = np.tile(np.arange(part * n, (part + 1) * n, dtype=np.int32), (len(own), 1))
        number = self.dataset.numbers
        products = [[(number[row.triplet.positive.id], number[row.negative.id]) for row, _ in shard] for shard in own]
        arrays["positive_product"], arrays["negative_product"] = np.moveaxis(np.array(products, np.int32), 2, 0)
        info |= {
            "triplets": len(own) * n,
            "skipped_triplets": len(tally.broken),
            "cut_texts": tally.cut_texts,
            "missing_boxes": tally.missing_boxes,
            "unused_boxes": len(tally.unused_boxes),
        }
        return Batch(arrays, info, (*tally.broken, *tally.unused_boxes))

    def _pack(self, documents: Sequence[Sequence[EncodedDocument]]) -> dict[str, np.ndarray]:
        """Returns the packed shards, in the shape of the worst case where they do not fit into the usual one."""
        vision = self.config.model.vision
        try:
            return pack_shards(documents, self.shape, vision)
        except PackingError:
            return pack_shards(documents, self.largest, vision)

    def agree(self, arrays: dict[str, np.ndarray], most: Callable[[int], int]) -> dict[str, np.ndarray]:
        """Returns a batch in the shape of the worst case if any host needs that: all hosts run the same program.

        Args:
            arrays: of `self[step]`.
            most: the largest of the numbers that the hosts give; asked only where hosts can differ.
        """
        if self.shape == self.largest:
            return arrays
        sizes = arrays["tokens"].shape[1], arrays["patches"].shape[1]
        large = most(int(sizes != (self.shape.rows, self.shape.image_slots)))
        return grown(arrays, self.largest) if large else arrays

    def _load(self, step: int, index: int, row: Row, tally: Tally) -> tuple[Row, list[EncodedDocument]]:
        """Returns the row's three documents; if a picture is broken and that may be skipped, those of a spare row."""
        for tried in itertools.chain((row,), self.sampler.spares(step, index, row.modality)):
            try:
                return tried, self._encode(step, index, tried, tally)
            except DataError as error:  # a picture that cannot be read, or a listing with nothing to embed
                message = f"triplet {shown(tried.triplet.id)}: {error}"
                if self.config.data.on_error != "skip":
                    raise DataError(f"{message} (config.data.on_error='skip' leaves it out)") from error
                tally.broken.append(Skipped(error.reason, message))
        raise DataError(f"no triplet could be read in the place of a broken one; the last: {message}")

    def _encode(self, step: int, index: int, row: Row, tally: Tally) -> list[EncodedDocument]:
        data, vision = self.config.data, self.config.model.vision
        form = row.form._asdict()
        documents = [
            query_document(row.query, row.modality),
            item_document(row.triplet.positive, data, **form),
            item_document(row.negative, data, **form),
        ]
        keys = [self.sampler.augment_key(step, index, part) if data.augment else None for part in range(3)]
        least_box = (data.own_box if row.own_picture else 1.0, 1.0, 1.0)
        loaded = [images.pictures(d, data, vision, *view) for d, *view in zip(documents, keys, least_box, strict=True)]
        encoded = [encode(d, self.tokenizer, p, data, vision) for d, p in zip(documents, loaded, strict=True)]
        for document, made in zip(documents, loaded, strict=True):
            tally.add_unused_boxes(images.unused_boxes(document.images, made, data), row.triplet.id)
        return [tally.add(document) for document in encoded]


@runtime_checkable
class Batches(Protocol):
    """Random access to batches."""

    config: Config

    def __getitem__(self, step: int) -> Batch:
        """Returns the host's part of batch `step`."""
        ...


@dataclasses.dataclass(frozen=True)
class _Source:
    """Steps start .. stop - 1 for grain; an error travels as a value, so that its type survives a worker process."""

    batches: Batches
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            batch = self.batches[self.start + index]
        except DataError as error:
            return {"error": error}
        return {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}


def stream(
    batches: Batches, start_step: int, stop_step: int, workers: int, prefetch: int
) -> Iterator[tuple[int, Batch]]:
    """Yields (step, batch) for start_step .. stop_step - 1, prepared ahead; the content depends on the step alone.

    Args:
        batches: random access to batches.
        start_step: the first.
        stop_step: the one after the last.
        workers: processes; 0 = threads of this process.
        prefetch: batches that are prepared ahead.

    Raises:
        DataError: from `batches`; or more than `config.data.max_skipped_share` of the triplets are broken.
    """
    if stop_step <= start_step:
        return
    source = grain.MapDataset.source(_Source(batches, start_step, stop_step))
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain's worker processes read flags; a library or a test has parsed none
        ahead = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=-(-prefetch // workers))
        dataset = source.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)).mp_prefetch(ahead)
    else:
        dataset = source.to_iter_dataset(grain.ReadOptions(num_threads=prefetch, prefetch_buffer_size=prefetch))
    ledger, seen, named = Ledger("triplets that this process read", batches.config.data), 0, set()
    iterator = iter(dataset)
    try:
        for step, item in enumerate(iterator, start=start_step):
            if "error" in item:
                raise item["error"]
            batch = Batch(**item)
            seen += batch.info.get("triplets", 0)
            for skipped in batch.broken:
                ledger.add(skipped)
                if skipped not in named and len(named) < NAMED_WARNINGS:
                    named.add(skipped)
                    _LOG.warning("skipped: %s", skipped.message)
                    if len(named) == NAMED_WARNINGS:
                        _LOG.warning("what else is skipped is only counted (skipped_triplets in metrics.jsonl)")
            if "triplets" in batch.info:
                ledger.check(seen, SKIP_GRACE)
            yield step, batch
    finally:
        iterator.close()
