"""Prompts of text and pictures in Qwen2.5-VL's chat form -> a padded batch to generate from or to learn from."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int32

from moon_jax.config import Role, VisionConfig
from moon_jax.data import slots
from moon_jax.data.documents import EncodedDocument
from moon_jax.data.packing import BatchShape, pack
from moon_jax.data.patches import Picture
from moon_jax.data.records import DataError
from moon_jax.data.tokenizer import Tokenizer, TokenizerError

SYSTEM = "You are a helpful assistant."  # what the published chat template says where nobody else does
START, END = "<|im_start|>", "<|im_end|>"
EOS = (END, "<|endoftext|>")  # what the published models end an answer with

Part = str | Picture


@dataclasses.dataclass(frozen=True)
class EncodedPrompt(EncodedDocument):
    """A prompt as token ids, perhaps with the answer that should follow; no token has a guided role."""

    answer_tokens: int = 0  # so many of the last tokens are the answer, to be learned


@dataclasses.dataclass(frozen=True)
class PromptShape(BatchShape):
    """The static sizes of ONE shard of a batch of prompts: one prompt a row."""

    segments = 1


def encode_chat(
    parts: Sequence[Part],
    tokenizer: Tokenizer,
    vision: VisionConfig,
    *,
    answer: str | None = None,
    system: str = SYSTEM,
) -> EncodedPrompt:
    """Returns the ids of one turn: the system's message, the user's texts and pictures, the start of the answer.

    The published chat template, token for token; but what looks like a special token in a text is plain text. The
    answer is what the model will say after it.

    Args:
        parts: texts and pictures of the user in their order.
        tokenizer: has the special tokens of Qwen2.5-VL.
        vision: `merge_unit`.
        answer: what the model should say; with its <|im_end|> it is to be learned. None = a prompt to continue.
        system: the first message; "" = none.

    Raises:
        TokenizerError: the tokenizer has no chat tokens.
    """
    missing = [name for name in (START, END) if name not in tokenizer.special]
    if missing:
        raise TokenizerError(f"the tokenizer has no {', '.join(missing)}: it is not that of a Qwen2.5-VL chat model")
    start, end = tokenizer.special[START], tokenizer.special[END]
    items: list[Part | int] = [start, f"system\n{system}", end, "\n"] if system else []
    items += [start, "user\n", *parts, end, "\n", start, "assistant\n"]
    pictures = tuple(part for part in parts if isinstance(part, Picture))

    ids: list[int] = []
    is_image: list[bool] = []
    # Texts that stand side by side are one text to the tokenizer: a line end at a seam may join with what follows.
    for kind, group in itertools.groupby(items, type):
        for item in ["".join(group)] if kind is str else group:  # type: ignore[arg-type]
            if isinstance(item, Picture):
                pads = math.prod(item.grid) // vision.merge_unit
                new = [tokenizer.vision_start, *[tokenizer.image_pad] * pads, tokenizer.vision_end]
            else:
                new = tokenizer.encode(item) if isinstance(item, str) else [item]
            ids += new
            is_image += [token == tokenizer.image_pad for token in new]
    said = [] if answer is None else [*tokenizer.encode(answer), end]
    roles = np.where([*is_image, *[False] * len(said)], int(Role.IMAGE), int(Role.OTHER)).astype(np.int32)
    return EncodedPrompt(np.array([*ids, *said], np.int32), roles, pictures, answer_tokens=len(said))


def eos_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Returns the ids of `EOS` that the tokenizer has: where the answer of a published model ends."""
    return tuple(tokenizer.special[name] for name in EOS if name in tokenizer.special)


def answer_text(ids: Sequence[int] | Int32[np.ndarray, " n"], tokenizer: Tokenizer) -> str:
    """Returns what was generated as text, without special tokens and what is no token at all."""
    special = frozenset(tokenizer.special.values())
    return tokenizer.backend.decode([int(token) for token in ids if token >= 0 and int(token) not in special])


def prompt_shape(prompts: Sequence[EncodedPrompt], rows: int, shards: int, vision: VisionConfig) -> PromptShape:
    """Returns a shape into which these prompts fit, `rows` a shard, rounded up so that few shapes occur.

    Every shape compiles once: lengths and numbers of picture slots are rounded up to 1, 2, 3, 4, 6, 8, 12, 16, ...

    Args:
        prompts: of the global batch, at most rows * shards.
        rows: of a shard.
        shards: of the global batch.
        vision: sizes of patches and windows.

    Raises:
        DataError: there are more prompts than rows.
    """
    if len(prompts) > rows * shards:
        raise DataError(f"{len(prompts)} prompts do not fit into {shards} shards of {rows} rows")
    grids = [[p.grid for prompt in part for p in prompt.pictures] for part in _split(prompts, rows, range(shards))]
    chunks = max((len(slots.layout(grid, vision).groups) for part in grids for grid in part), default=1)
    chunks = _round_up(chunks)
    places = [slots.place(part, chunks, vision) for part in grids]
    return PromptShape(
        rows=rows,
        row_tokens=_round_up(max((len(prompt.tokens) for prompt in prompts), default=1)),
        image_slots=_round_up(1 + max((place.slot for part in places for place in part), default=0)),
        slot_patches=chunks * vision.window_patches,
        documents=rows,
    )


def prompt_batch(
    prompts: Sequence[EncodedPrompt],
    shape: PromptShape,
    vision: VisionConfig,
    host_shards: Sequence[int],
    side: str = "left",
) -> dict[str, np.ndarray]:
    """Returns the host's shards of a batch with one prompt a row: row r of shard g is prompt g * rows + r.

    The fields of `packing.pack` with a leading shard axis, and bool `chosen` [G, R, S]: the tokens of the answers.
    Rows without a prompt are padding.

    Args:
        prompts: of the global batch.
        shape: from `prompt_shape`, the same on every host.
        vision: sizes of patches and windows.
        host_shards: the ones to make here.
        side: where the padding of a row is, "left" or "right"; it changes nothing but the places.

    Raises:
        PackingError: a prompt or its pictures do not fit into the shape.
    """
    if side not in ("left", "right"):
        raise ValueError(f"the padding is on the 'left' or the 'right', not {side!r}")
    made = [_shard(part, shape, vision, side) for part in _split(prompts, shape.rows, host_shards)]
    return {name: np.stack([shard[name] for shard in made]) for name in made[0]}


def _split(prompts: Sequence[EncodedPrompt], rows: int, shards: Sequence[int]) -> list[Sequence[EncodedPrompt]]:
    return [prompts[shard * rows : (shard + 1) * rows] for shard in shards]


def _shard(
    prompts: Sequence[EncodedPrompt], shape: PromptShape, vision: VisionConfig, side: str
) -> Mapping[str, np.ndarray]:
    batch = pack(prompts, shape, vision)
    documents = batch["document_of_segment"][:, 1]
    order = np.argsort(np.where(documents < 0, shape.rows, documents), kind="stable")  # `pack` fills by falling length
    lengths = (batch["segment_ids"] > 0).sum(1)[order]
    answers = np.array([p.answer_tokens for p in prompts] + [0] * (shape.rows - len(prompts)))
    ends = np.arange(shape.row_tokens)[None] - lengths[:, None]  # of a token: places after the row's last one, minus 1
    batch["chosen"] = np.zeros_like(batch["segment_ids"], bool)
    for name in ("tokens", "segment_ids", "positions", "roles", "image_slots", "document_of_segment"):
        batch[name] = batch[name][..., order, :]
    batch["chosen"] = (ends < 0) & (ends >= -answers[:, None])
    if side == "left":
        source = (np.arange(shape.row_tokens)[None] + lengths[:, None]) % shape.row_tokens
        for name in ("tokens", "segment_ids", "positions", "roles", "image_slots", "chosen"):
            index = np.broadcast_to(source, batch[name].shape)
            batch[name] = np.take_along_axis(batch[name], index, axis=-1)
    return batch


def _round_up(n: int) -> int:
    """Returns the next of 1, 2, 3, 4, 6, 8, 12, 16, 24, ..."""
    power = 1 << max(n - 1, 0).bit_length()
    return 3 * power // 4 if power >= 4 and n <= 3 * power // 4 else power
