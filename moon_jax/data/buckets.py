"""Which documents share a batch, and its static shape: alike ones together, so that short ones do not pay for long.

A shape is one compilation, so there must be few of them, and sizes are rounded up to a coarse scale. Everything is a
function of the documents of one window (in the order given), never of what was embedded before: the same input gives
the same batches, and so the same bits, however often a run is interrupted.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from moon_jax.config import ModelConfig, MoEConfig, VisionConfig
from moon_jax.data import slots
from moon_jax.data.packing import BatchShape

STEP_TOKENS = 8  # rows are a multiple of this long
TYPICAL_TOKENS = 512  # a batch of longer documents has fewer of them, so that it needs no more memory
SCORE_BYTES = 2 << 30  # of the attention scores of a shard's batch, which grow with the square of a picture's size
COMPILATION = 8  # a shape of its own must save at least the time of this many of the largest batches


class Need(NamedTuple):
    """What a document takes."""

    tokens: int
    grids: tuple[tuple[int, int], ...]  # of its pictures, in patches


@dataclasses.dataclass(frozen=True)
class Bucket:
    """Batches of one shape: `batches[i][g]` are the numbers of the documents of shard g."""

    shape: BatchShape
    batches: tuple[tuple[tuple[int, ...], ...], ...]


class _Size(NamedTuple):
    """The sizes of a bucket, rounded up; the order in which documents are sorted."""

    picture: int  # chunks of the largest picture
    pictures: int  # chunks of all pictures of a document
    tokens: int

    def join(self, other: "_Size") -> "_Size":
        return _Size(*map(max, self, other))


def plan(
    needs: Sequence[Need], batch_documents: int, shards: int, model: ModelConfig, moe: MoEConfig, *, alike: bool = False
) -> list[Bucket]:
    """Returns the buckets, the largest documents first (what does not fit into memory fails at once).

    Documents without pictures are never put together with others. Within each of the two kinds, sorted by size,
    neighbouring sizes share a shape where a compilation costs more than the padding.

    Args:
        needs: of every document.
        batch_documents: documents of a shard of a batch; fewer where they are long or few.
        shards: of a batch.
        model: sizes, for the cost of a shape.
        moe: experts that a token visits.
        alike: the same documents share a shard, and in the same shape, whatever the number of shards. This wastes some
            of them where there are few documents.
    """
    planned = 1 if alike else shards
    cost = _Cost(model, moe, batch_documents, planned)
    sizes: dict[_Size, list[int]] = {}
    for number, need in enumerate(needs):
        sizes.setdefault(_size(need, model.vision), []).append(number)
    groups = sorted(sizes.items())
    if not groups:
        return []
    largest = cost.batch(_joined([size for size, _ in groups]), batch_documents * planned)
    buckets = []
    for pictured in (True, False):
        kind = [(size, numbers) for size, numbers in groups if (size.picture > 0) == pictured]
        for joined in _partition(kind, cost, COMPILATION * largest):
            size = _joined([size for size, _ in joined])
            numbers = [number for _, group in joined for number in group]
            buckets.append(_bucket(size, numbers, needs, cost.documents(size, len(numbers)), shards, model.vision))
    return buckets


def _size(need: Need, vision: VisionConfig) -> _Size:
    chunks = [len(slots.layout(grid, vision).groups) for grid in need.grids]
    tokens = STEP_TOKENS * _round_up(-(-need.tokens // STEP_TOKENS))
    return _Size(_round_up(max(chunks, default=0)), _round_up(sum(chunks)), tokens)


def _round_up(n: int) -> int:
    """Returns the next of 0, 1, ... 8, 10, 12, 14, 16, 20, ...: four steps from one power of two to the next."""
    step = 1 << max(0, (n - 1).bit_length() - 3)
    return -(-n // step) * step


def _joined(sizes: Sequence[_Size]) -> _Size:
    out = sizes[0]
    for size in sizes[1:]:
        out = out.join(size)
    return out


class _Cost:
    """How long a shape takes, in multiply-adds."""

    def __init__(self, model: ModelConfig, moe: MoEConfig, batch_documents: int, shards: int):
        text, vision = model.text, model.vision
        heads = text.head_dim * (text.num_attention_heads + text.num_key_value_heads)
        visits = max(1, moe.top_k) if moe.experts else 1
        self._token = text.hidden_size * (2 * heads + 3 * text.intermediate_size * visits) * text.num_hidden_layers
        self._pair = text.head_dim * text.num_attention_heads * 2 * text.num_hidden_layers
        width = vision.hidden_size
        self._patch = width * (4 * width + vision.mlp_matrices * vision.intermediate_size) * vision.depth
        self._patch_pair, self._whole = 2 * width * len(vision.full_blocks), bool(vision.full_blocks)
        self._heads = text.num_attention_heads, vision.num_heads
        self._chunk, self._most, self._shards = vision.window_patches, batch_documents, shards

    def documents(self, size: _Size, count: int) -> int:
        """Returns the documents of a shard: the most, or a half, a quarter ... of it where they are long or few."""
        documents, scores = self._most, self._score_bytes(size)
        while documents > 1 and (
            documents * size.tokens > self._most * TYPICAL_TOKENS or documents * scores > SCORE_BYTES
        ):
            documents = -(-documents // 2)
        while documents > 1 and -(-documents // 2) * self._shards >= count:
            documents = -(-documents // 2)
        return documents

    def _score_bytes(self, size: _Size) -> int:
        """Returns the bytes of a document's attention scores, in the language model or the vision tower."""
        text_heads, vision_heads = self._heads
        # a slot is as long as the largest picture; where no block attends within it, only chunks have scores
        pairs = size.pictures * (size.picture if self._whole else 1) * self._chunk**2
        return 4 * max(text_heads * size.tokens**2, vision_heads * pairs)

    def batch(self, size: _Size, count: int) -> int:
        """Returns the cost of one batch of a bucket of `count` documents."""
        patches, slot = size.pictures * self._chunk, size.picture * self._chunk
        document = size.tokens * (self._token + self._pair * size.tokens)
        document += patches * (self._patch + self._patch_pair * slot)
        return self.documents(size, count) * self._shards * document

    def bucket(self, size: _Size, count: int) -> int:
        """Returns the cost of all batches of a bucket."""
        batches = -(-count // (self.documents(size, count) * self._shards))
        return batches * self.batch(size, count)


def _partition(
    groups: Sequence[tuple[_Size, list[int]]], cost: _Cost, compilation: int
) -> list[Sequence[tuple[_Size, list[int]]]]:
    """Returns runs of neighbouring groups whose buckets and compilations cost least together, the largest first."""
    best: list[tuple[int, int]] = [(0, 0)]  # of the first n groups: (cost, where the last run starts)
    for end in range(1, len(groups) + 1):
        options, size, count = [], groups[end - 1][0], 0
        for start in range(end - 1, -1, -1):
            size, count = size.join(groups[start][0]), count + len(groups[start][1])
            options.append((best[start][0] + compilation + cost.bucket(size, count), start))
        best.append(min(options))
    runs, end = [], len(groups)
    while end:
        start = best[end][1]
        runs.append(groups[start:end])
        end = start
    return runs


def _bucket(
    size: _Size, numbers: Sequence[int], needs: Sequence[Need], documents: int, shards: int, vision: VisionConfig
) -> Bucket:
    """Returns the batches of a bucket: numbers in falling order of size, dealt to shards in runs."""
    numbers = numbers[::-1]
    runs = [tuple(numbers[i : i + documents]) for i in range(0, len(numbers), documents)]
    runs += [()] * (-len(runs) % shards)
    most = max(_slots([grid for number in run for grid in needs[number].grids], size.picture, vision) for run in runs)
    shape = BatchShape(
        rows=documents,
        row_tokens=size.tokens,
        image_slots=_round_up(max(1, most)),
        slot_patches=max(1, size.picture) * vision.window_patches,
        documents=documents,
    )
    return Bucket(shape, tuple(tuple(runs[i : i + shards]) for i in range(0, len(runs), shards)))


def _slots(grids: Sequence[tuple[int, int]], chunks: int, vision: VisionConfig) -> int:
    return 1 + max((place.slot for place in slots.place(grids, chunks, vision)), default=-1)


def widened(shape: BatchShape, shards: Sequence[Sequence[Need]], vision: VisionConfig) -> BatchShape:
    """Returns a shape at least as large into which these documents fit too."""
    size = _joined([_size(need, vision) for shard in shards for need in shard])
    chunks = max(shape.slot_patches // vision.window_patches, size.picture)
    slots_needed = max(_slots([grid for need in shard for grid in need.grids], chunks, vision) for shard in shards)
    return dataclasses.replace(
        shape,
        row_tokens=max(shape.row_tokens, size.tokens),
        image_slots=max(shape.image_slots, _round_up(slots_needed)),
        slot_patches=chunks * vision.window_patches,
    )
