"""Batches by their number that teach a model to ground: picture and title in, the box as text out."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from moon_jax.config import Config, ConfigError
from moon_jax.data import grounding, picture_files, slots
from moon_jax.data.grids import max_picture_tokens, picture_bounds
from moon_jax.data.grounding import Frame, Question
from moon_jax.data.images import BoxError
from moon_jax.data.packing import PackingError
from moon_jax.data.pipeline import Batch
from moon_jax.data.policy import Skipped, shown
from moon_jax.data.prompts import EncodedPrompt, PromptShape, encode_chat, prompt_batch
from moon_jax.data.records import DataError, Dataset
from moon_jax.data.sampling import MAX_SPARES, order
from moon_jax.data.tokenizer import Tokenizer
from moon_jax.data.views import augment, crop_area

_SPARE, _AUGMENT = 6, 7  # random streams, see moon_jax.data.sampling
SEAM_TOKENS = 8  # a title and the words around it may have so many more tokens together than each by itself
CHAT_TOKENS = 6  # <|im_start|> and <|im_end|> of three messages


class GroundingBatches:
    """The batches of every step, of the shards of this host: one question with its answer a row.

    The fields of `prompts.prompt_batch`. Row i of the global batch is in shard i // rows, and is example number
    step * batch_size + i: every example once in each lap, in another order. What the counts call a triplet is picture,
    title and box.
    """

    def __init__(self, dataset: Dataset, tokenizer: Tokenizer, config: Config, shards: int, host_shards: Sequence[int]):
        """Plans the static shape.

        Args:
            dataset: its training set; pictures without a box teach nothing.
            tokenizer: of the model.
            config: `train.batch_size` and `train.seed`, `data`, `model.vision`.
            shards: of the global batch.
            host_shards: the ones to make here.

        Raises:
            ConfigError: the batch does not divide by the shards.
            DataError: no training picture has a box.
        """
        if config.train.batch_size % shards:
            raise ConfigError(
                f"config.train.batch_size {config.train.batch_size} must be a multiple of the {shards} batch shards"
            )
        self.examples = grounding.training_questions(dataset)
        if not self.examples:
            raise DataError(
                f"{config.data.path}: no picture of the training set has a box, so there is nothing to learn: boxes "
                "come with the records or from a file (config.data.boxes)"
            )
        self.config, self.tokenizer, self.host_shards = config, tokenizer, host_shards
        self.shape = plan_shape(config, config.train.batch_size // shards, tokenizer)

    def __getitem__(self, step: int) -> Batch:
        """Returns the host's part of the batch of a step.

        Raises:
            DataError: a picture or a box cannot be used and `config.data.on_error` is "raise", or the spares cannot
                either.
        """
        rows, batch_size = self.shape.rows, self.config.train.batch_size
        broken: list[Skipped] = []
        made = [
            [self._load(step, row, step * batch_size + row, broken) for row in range(shard * rows, (shard + 1) * rows)]
            for shard in self.host_shards
        ]
        vision = self.config.model.vision
        shards = [prompt_batch(prompts, self.shape, vision, range(1), side="right") for prompts in made]
        arrays = {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0]}
        return Batch(arrays, {"triplets": rows * len(made), "skipped_triplets": len(broken)}, tuple(broken))

    def agree(self, arrays: dict[str, np.ndarray], _) -> dict[str, np.ndarray]:
        """Returns a batch as it is: there is one shape for all of them."""
        return arrays

    def _load(self, step: int, row: int, number: int, broken: list[Skipped]) -> EncodedPrompt:
        """Returns the prompt of an example; if it cannot be used and that may be skipped, that of a spare one."""
        lap, place = divmod(number, len(self.examples))
        first = int(order(self.config.train.seed, lap, len(self.examples))[place])
        for index in itertools.chain((first,), self._spares(step, row)):
            question = self.examples[index]
            try:
                return self._encode(question, (self.config.train.seed, _AUGMENT, step, row))
            except DataError as error:
                message = f"{question.kind} {shown(question.id)}: {error}"
                if self.config.data.on_error != "skip":
                    raise DataError(f"{message} (config.data.on_error='skip' leaves it out)") from error
                broken.append(Skipped(error.reason, message))
        raise DataError(f"no example could be read in the place of a broken one; the last: {message}")

    def _spares(self, step: int, row: int) -> Iterator[int]:
        rng = np.random.default_rng((self.config.train.seed, _SPARE, step, row))
        yield from rng.integers(0, len(self.examples), MAX_SPARES).tolist()

    def _encode(self, question: Question, key: tuple[int, ...]) -> EncodedPrompt:
        data, vision = self.config.data, self.config.model.vision
        image, box = picture_files.load(question.image.path), question.image.box
        if crop_area(image.size, box, 0.0) is None:
            raise BoxError(f"{picture_files.name_of(question.image.path)}: the box {box} holds nothing of the picture")
        if data.augment:
            image, box = augment(image, box, key, data.augment_area)
        answer = Frame.of(image.size, data, vision).to_model(box, data.grounding.coordinates)
        picture = grounding.see(image, data, vision)
        prompt = grounding.ask(picture, question.title, self.tokenizer, data, vision, answer)
        if len(prompt.tokens) > self.shape.row_tokens:
            raise PackingError(
                f"a question of {len(prompt.tokens)} tokens, a row has {self.shape.row_tokens} (config.data.row_tokens)"
            )
        return prompt


def plan_shape(config: Config, rows: int, tokenizer: Tokenizer | None = None) -> PromptShape:
    """Returns the shape of one shard into which every question with its answer fits, one a row.

    `config.data.row_tokens` and `image_slots` overrule it.

    Args:
        config: `data`, `model.vision`.
        rows: of the shard.
        tokenizer: of the model; None = words are counted by their bytes, of which they have at most as many tokens.
    """
    data, vision, asked = config.data, config.model.vision, config.data.grounding
    longest_px = max(picture_bounds(data, vision)) * vision.patch_size * vision.spatial_merge_size
    widest = 10 ** len(str(longest_px if asked.coordinates == "absolute" else grounding.THOUSANDTHS)) - 1
    question, answer = grounding.question_text("", asked), grounding.answer_of((widest,) * 4, asked)
    if tokenizer is None:
        words = len(f"system\n{asked.system}\nuser\n{question}\nassistant\n{answer}".encode()) + CHAT_TOKENS
    else:
        words = len(encode_chat([question], tokenizer, vision, answer=answer, system=asked.system).tokens)
    tokens = words + SEAM_TOKENS + data.title_tokens + 2 + max_picture_tokens(data, vision)
    return PromptShape(
        rows=rows,
        row_tokens=data.row_tokens or tokens,
        image_slots=data.image_slots or rows,
        slot_patches=slots.max_picture_chunks(data, vision) * vision.window_patches,
        documents=rows,
    )
