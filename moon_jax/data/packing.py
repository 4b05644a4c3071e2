"""Encoded documents in, the arrays of one batch shard out: static shapes that every possible batch fits into.

Documents share rows of tokens (attention is block-diagonal by `segment_ids`), pictures share slots of patches. The
fields are described at `pack`; a batch on the host stacks the shards on a leading axis.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from moon_jax.config import DataConfig, Role, VisionConfig
from moon_jax.data import slots
from moon_jax.data.documents import EncodedDocument, max_document_tokens
from moon_jax.data.grids import max_picture_tokens
from moon_jax.data.positions import patch_positions, token_positions
from moon_jax.data.records import DataError

MAX_SEGMENTS = 32  # documents in one row at most: `document_of_segment` has a static width


class PackingError(DataError):
    """Documents that do not fit the static shape; the message names the setting and what it would have to be."""


@dataclasses.dataclass(frozen=True)
class BatchShape:
    """The static sizes of ONE shard of a batch."""

    rows: int
    row_tokens: int
    image_slots: int
    slot_patches: int  # whole chunks of vision.window_patches
    documents: int

    @property
    def segments(self) -> int:
        """Documents that one row can hold."""
        return min(self.documents, MAX_SEGMENTS)


class Bound(NamedTuple):
    """`count` documents of at most `tokens` tokens and `pictures` pictures (crops included) each."""

    count: int
    tokens: int
    pictures: int


def document_bound(count: int, data: DataConfig, vision: VisionConfig, pictures: int, texts: int = 3) -> Bound:
    """Returns the bound of `count` documents with at most `pictures` pictures, crops included.

    Args:
        count: number of documents.
        data: limits of the texts, the prompt, the pixel budget.
        vision: sizes of patches.
        pictures: of one document.
        texts: 3 = title, category and attributes, 1 = title only (a query by text), 0 = none.
    """
    limits = {"title_tokens": texts >= 1, "category_tokens": texts >= 2, "attribute_tokens": texts >= 3}
    cut = {name: 0 for name, there in limits.items() if not there}
    tokens = max_document_tokens(dataclasses.replace(data, images_per_item=0, **cut), vision)
    return Bound(count, max(1, tokens + pictures * (2 + max_picture_tokens(data, vision))), pictures)


def plan_shape(bounds: Sequence[Bound], data: DataConfig, vision: VisionConfig) -> BatchShape:
    """Returns the smallest shape into which documents within `bounds` fit, whatever they are.

    A row has the length of the longest bound and takes floor(row_tokens / bound) documents of a kind; every kind gets
    the rows that it needs alone. Since `pack` takes documents by falling length, this holds for any mixture: while the
    longer kinds are placed, a row with fewer documents than that has room, so no more rows are opened; then the same
    holds for the next kind in the rows beyond. Each picture may need a slot of its own. `config.data.row_tokens`,
    `rows`, `row_share`, `image_slots` and `slot_share` overrule this: typical batches are smaller than the worst, and
    `pack` says so where one is not.
    """
    longest = max(bound.tokens for bound in bounds)
    row_tokens = data.row_tokens or longest
    fitting = [(bound, min(MAX_SEGMENTS, max(1, row_tokens // bound.tokens))) for bound in bounds]
    rows = data.rows or math.ceil(data.row_share * sum(-(-bound.count // per_row) for bound, per_row in fitting))
    slots_at_most = max(1, sum(bound.count * bound.pictures for bound in bounds))
    image_slots = data.image_slots or math.ceil(data.slot_share * slots_at_most)
    return BatchShape(
        rows=rows,
        row_tokens=row_tokens,
        image_slots=image_slots,
        slot_patches=slots.max_picture_chunks(data, vision) * vision.window_patches,
        documents=sum(bound.count for bound in bounds),
    )


def batch_shape(documents_per_shard: int, data: DataConfig, vision: VisionConfig) -> BatchShape:
    """Returns a shape for every possible set of `documents_per_shard` documents, all as long as a document can be."""
    pictures = data.images_per_item * (2 if data.crop else 1)
    return plan_shape([document_bound(documents_per_shard, data, vision, pictures)], data, vision)


def pack(documents: Sequence[EncodedDocument], shape: BatchShape, vision: VisionConfig) -> dict[str, np.ndarray]:
    """Returns the arrays of one shard, R rows of S tokens, I slots of P patches, E documents, M segments a row.

        tokens               int32 [R, S]     0 on padding
        segment_ids          int32 [R, S]     0 on padding, else 1, 2, ...: number of the document in its row
        positions            int32 [3, R, S]  (t, h, w), from 0 in every document
        roles                int32 [R, S]     config.Role
        image_slots          int32 [R, S]     index into the I * P / merge_unit visual tokens, -1 = not visual
        document_of_segment  int32 [R, M + 1] index of the document, -1 = none (always for 0, padding)
        patches              float32 [I, P, patch_dim]
        patch_picture        int32 [I, P]     0 on padding, else 1, 2, ...: number of the picture in its slot
        patch_window         int32 [I, P]     0 on padding, else 1, 2, ...: number of the window in its slot
        patch_positions      int32 [I, P, 2]  (row, column) in the picture's grid of patches

    Rows are filled first-fit by falling length (equal ones in the order given), slots in the order of the documents; a
    document's index is its place in `documents`, whatever the row. Patches of a merge unit stay together, windows lie
    within chunks (`slots`).

    Raises:
        PackingError: the documents do not fit; names the setting and the value that would do.
    """
    return {name: array[0] for name, array in pack_shards([documents], shape, vision).items()}


def pack_shards(
    groups: Sequence[Sequence[EncodedDocument]], shape: BatchShape, vision: VisionConfig
) -> dict[str, np.ndarray]:
    """Returns the arrays of several shards on a leading axis, written in place: see `pack`."""
    arrays = _empty(len(groups), shape, vision)
    for number, documents in enumerate(groups):
        _fill({name: array[number] for name, array in arrays.items()}, documents, shape, vision)
    return arrays


def grown(arrays: Mapping[str, np.ndarray], shape: BatchShape) -> dict[str, np.ndarray]:
    """Returns packed shards with empty rows and slots at the end, as `pack_shards` gives them for a larger shape."""
    rows, image_slots = shape.rows - arrays["tokens"].shape[1], shape.image_slots - arrays["patches"].shape[1]
    missing = dict.fromkeys(("tokens", "segment_ids", "positions", "roles", "image_slots", "document_of_segment"), rows)
    missing |= dict.fromkeys(("patches", "patch_picture", "patch_window", "patch_positions"), image_slots)
    out = dict(arrays)
    for name, count in missing.items():
        widths = [(0, 0)] * arrays[name].ndim
        widths[2 if name == "positions" else 1] = (0, count)
        absent = -1 if name in ("image_slots", "document_of_segment") else 0
        out[name] = np.pad(arrays[name], widths, constant_values=absent) if count else arrays[name]
    return out


def _fill(
    shard: dict[str, np.ndarray], documents: Sequence[EncodedDocument], shape: BatchShape, vision: VisionConfig
) -> None:
    if len(documents) > shape.documents:
        raise PackingError(f"{len(documents)} documents do not fit into a batch shard of {shape.documents}")
    visual = _put_pictures(shard, documents, shape, vision)
    for index, (row, start, segment) in enumerate(_rows(documents, shape)):
        document = documents[index]
        here = (row, slice(start, start + len(document.tokens)))
        grids = [picture.grid for picture in document.pictures]
        is_image = (document.roles == Role.IMAGE) | (document.roles == Role.CORE)
        shard["tokens"][here] = document.tokens
        shard["segment_ids"][here] = segment
        shard["roles"][here] = document.roles
        shard["positions"][:, *here] = token_positions(is_image, grids, vision)
        shard["image_slots"][here][is_image] = visual[index]
        shard["document_of_segment"][row, segment] = index


def _empty(shards: int, shape: BatchShape, vision: VisionConfig) -> dict[str, np.ndarray]:
    tokens, patches = (shards, shape.rows, shape.row_tokens), (shards, shape.image_slots, shape.slot_patches)
    return {
        "tokens": np.zeros(tokens, np.int32),
        "segment_ids": np.zeros(tokens, np.int32),
        "positions": np.zeros((shards, 3, shape.rows, shape.row_tokens), np.int32),
        "roles": np.zeros(tokens, np.int32),
        "image_slots": np.full(tokens, -1, np.int32),
        "document_of_segment": np.full((shards, shape.rows, shape.segments + 1), -1, np.int32),
        "patches": np.zeros((*patches, vision.patch_dim), np.float32),
        "patch_picture": np.zeros(patches, np.int32),
        "patch_window": np.zeros(patches, np.int32),
        "patch_positions": np.zeros((*patches, 2), np.int32),
    }


def _rows(documents: Sequence[EncodedDocument], shape: BatchShape) -> list[tuple[int, int, int]]:
    """Returns (row, first token, segment) of each document."""
    lengths = np.array([len(document.tokens) for document in documents], np.int64)
    if len(lengths) and lengths.max() > shape.row_tokens:
        raise PackingError(
            f"a document of {lengths.max()} tokens does not fit into a row of {shape.row_tokens}: set "
            "config.data.row_tokens to at least that (0 = the longest possible document)"
        )
    # Rows beyond shape.rows are filled too, to tell how many it would take.
    used = np.zeros(max(shape.rows, len(documents)), np.int64)
    segments = np.zeros_like(used)
    out = [(0, 0, 0)] * len(documents)
    for index in np.argsort(-lengths, kind="stable"):
        row = int(np.argmax((used + lengths[index] <= shape.row_tokens) & (segments < shape.segments)))
        segments[row] += 1
        out[index] = (row, int(used[row]), int(segments[row]))
        used[row] += lengths[index]
    needed = np.count_nonzero(segments)
    if needed > shape.rows:
        raise PackingError(
            f"{len(documents)} documents of {lengths.sum()} tokens take {needed} rows of {shape.row_tokens}, but a "
            f"batch shard has {shape.rows}: set config.data.rows to at least {needed} (0 = enough for every batch)"
        )
    return out


def _put_pictures(
    shard: dict[str, np.ndarray], documents: Sequence[EncodedDocument], shape: BatchShape, vision: VisionConfig
) -> list[np.ndarray]:
    """Writes the pictures into their slots; returns each document's visual tokens (places) in reading order."""
    pictures = [picture for document in documents for picture in document.pictures]
    chunks = shape.slot_patches // vision.window_patches
    try:
        places = slots.place([picture.grid for picture in pictures], chunks, vision)
    except ValueError as error:
        raise PackingError(
            f"{error}, but one has {chunks}: pictures must keep to config.data.max_pixels, min_pixels and max_aspect"
        ) from error
    needed = 1 + max((place.slot for place in places), default=0)
    if needed > shape.image_slots:
        raise PackingError(
            f"{len(pictures)} pictures take {needed} slots of {shape.slot_patches} patches, but a batch shard has "
            f"{shape.image_slots}: set config.data.image_slots to at least {needed} (0 = enough for every batch)"
        )
    # The same memory with an axis for the patches of a merge unit: pictures are moved unit by unit.
    unit = vision.merge_unit
    by_unit = {
        name: shard[name].reshape(shape.image_slots, -1, unit, *shard[name].shape[2:])
        for name in ("patches", "patch_picture", "patch_window", "patch_positions")
    }
    slot_units = shape.slot_patches // unit
    seen = np.zeros((2, shape.image_slots), np.int32)  # pictures and windows already in each slot
    visual = []
    for picture, place in zip(pictures, places, strict=True):
        plan, there = slots.layout(picture.grid, vision), (place.slot, place.units)
        position = patch_positions(picture.grid, vision.spatial_merge_size)
        by_unit["patches"][there] = picture.patches.reshape(-1, unit, vision.patch_dim)[plan.units]
        by_unit["patch_positions"][there] = position.reshape(-1, unit, 2)[plan.units]
        by_unit["patch_picture"][there] = seen[0, place.slot] + 1
        by_unit["patch_window"][there] = (seen[1, place.slot] + 1 + plan.windows)[:, None]
        seen[:, place.slot] += 1, plan.windows.max() + 1
        in_order = np.empty_like(place.units)
        in_order[plan.units] = place.units
        visual.append(place.slot * slot_units + in_order)
    ends = np.cumsum([len(document.pictures) for document in documents])
    groups = [visual[end - len(document.pictures) : end] for document, end in zip(documents, ends, strict=True)]
    return [np.concatenate(group) if group else np.zeros(0, np.int32) for group in groups]
