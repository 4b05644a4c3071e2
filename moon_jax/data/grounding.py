"""Where is the product in the picture? The question as a generative model reads it, and its coordinates.

A model sees a picture padded and resized (`Frame`) and counts in the pixels of that; boxes everywhere else are in
pixels of the upright source picture.
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

from PIL import Image

from moon_jax.config import DataConfig, GroundingConfig, VisionConfig
from moon_jax.data import images, policy
from moon_jax.data.patches import Picture, patchify
from moon_jax.data.prompts import EncodedPrompt, encode_chat
from moon_jax.data.records import Box, DataError, Dataset, ImageRef, Product, Triplet
from moon_jax.data.tokenizer import Tokenizer
from moon_jax.data.views import pad_to_aspect, padded_size

THOUSANDTHS = 1000  # "relative" coordinates count in these of the picture's width and height
KINDS = ("query", "listing")


@dataclasses.dataclass(frozen=True)
class Question:
    """A picture and what is looked for in it.

    A listing is looked for by its title, a query by its own text: never by the title of what was bought after it, which
    nobody knows when the query is asked.
    """

    image: ImageRef  # with its box where that is known
    title: str  # may be empty
    kind: str = "listing"  # KINDS
    id: str = ""  # of the listing or of the triplet, for reports
    part: str = ""


def listing_questions(product: Product) -> Iterator[Question]:
    """Yields a question for every picture of a listing."""
    for image in product.images:
        yield Question(image, product.title, "listing", product.id, product.part)


def query_questions(triplet: Triplet) -> Iterator[Question]:
    """Yields the question of a query that has a picture."""
    if triplet.query.image is not None:
        yield Question(triplet.query.image, triplet.query.text, "query", triplet.id, triplet.part)


def all_questions(dataset: Dataset) -> list[Question]:
    """Returns the questions of a whole data set, listings first; the same picture and title are asked once."""
    first: dict[tuple[object, str], Question] = {}
    found = [question for product in dataset.products.values() for question in listing_questions(product)]
    for triplets in (dataset.train, dataset.seen, dataset.unseen):
        found += [question for triplet in triplets for question in query_questions(triplet)]
    for question in found:
        first.setdefault((question.image.path, question.title), question)
    return list(first.values())


def training_questions(dataset: Dataset) -> list[Question]:
    """Returns what a model may learn from: the pictures with a box of training's queries and of its listings."""
    listings = {p.id: p for t in dataset.train for p in (t.positive, t.negative) if p is not None}
    found = [question for _, product in sorted(listings.items()) for question in listing_questions(product)]
    found += [question for triplet in dataset.train for question in query_questions(triplet)]
    return [question for question in found if question.image.box is not None]


class Frame(NamedTuple):
    """How a picture comes to the model: white added to a long strip, then resized. Sizes are (width, height) px."""

    source: tuple[int, int]  # upright
    padded: tuple[int, int]
    seen: tuple[int, int]

    @classmethod
    def of(cls, size: tuple[int, int], data: DataConfig, vision: VisionConfig) -> "Frame":
        """Returns the frame of an upright picture of `size`."""
        high, wide = images.grid(size, data, vision)
        return cls(size, padded_size(size, data.max_aspect), (wide * vision.patch_size, high * vision.patch_size))

    def _scales(self, coordinates: str) -> tuple[float, float]:
        units = self.seen if coordinates == "absolute" else (THOUSANDTHS, THOUSANDTHS)
        return units[0] / self.padded[0], units[1] / self.padded[1]

    def _offset(self) -> tuple[int, int]:
        return (self.padded[0] - self.source[0]) // 2, (self.padded[1] - self.source[1]) // 2

    def to_model(self, box: Box, coordinates: str) -> tuple[int, int, int, int]:
        """Returns the part of a source box inside the picture in the model's coordinates, rounded."""
        (sx, sy), (dx, dy) = self._scales(coordinates), self._offset()
        x1, y1, x2, y2 = policy.clamp(box, *self.source)
        return round((x1 + dx) * sx), round((y1 + dy) * sy), round((x2 + dx) * sx), round((y2 + dy) * sy)

    def to_source(self, box: Box, coordinates: str) -> Box:
        """Returns a box in the model's coordinates in pixels of the source picture; it may reach beyond it."""
        (sx, sy), (dx, dy) = self._scales(coordinates), self._offset()
        return box[0] / sx - dx, box[1] / sy - dy, box[2] / sx - dx, box[3] / sy - dy


def see(image: Image.Image, data: DataConfig, vision: VisionConfig) -> Picture:
    """Returns an upright RGB picture as the model sees it, in its `Frame`."""
    return patchify(pad_to_aspect(image, data.max_aspect), vision, data.min_pixels, data.max_pixels)


def ask(
    picture: Picture,
    title: str,
    tokenizer: Tokenizer,
    data: DataConfig,
    vision: VisionConfig,
    answer: tuple[int, int, int, int] | None = None,
) -> EncodedPrompt:
    """Returns the question as a prompt: the picture, then the text; titles are cut at `data.title_tokens`.

    Args:
        picture: what the model sees.
        title: what to look for; "" = `data.grounding.untitled`.
        tokenizer: of the model.
        data: `grounding`, `title_tokens`.
        vision: `merge_unit`.
        answer: the box in the model's coordinates that it should answer with; None = a prompt to continue.

    Raises:
        TokenizerError: the tokenizer has no chat tokens.
        DataError: the model sees tiles, and answers should be in pixels.
    """
    grounding = data.grounding
    if vision.kind == "internvl" and grounding.coordinates == "absolute":
        raise DataError(
            "config.data.grounding.coordinates is 'absolute', but the model sees tiles of a picture: it can only say "
            "boxes in thousandths, 'relative'"
        )
    said = None if answer is None else answer_of(answer, grounding)
    text = question_text(cut(title, tokenizer, data.title_tokens), grounding)
    return encode_chat([picture, text], tokenizer, vision, answer=said, system=grounding.system)


def question_text(title: str, grounding: GroundingConfig) -> str:
    """Returns what the model is asked in words."""
    return grounding.prompt.replace("{title}", title.strip() or grounding.untitled)


def answer_of(box: tuple[int, int, int, int], grounding: GroundingConfig) -> str:
    """Returns the answer that training teaches for a box in the model's coordinates."""
    return grounding.answer.replace("{box}", "[" + ", ".join(map(str, box)) + "]")


def cut(text: str, tokenizer: Tokenizer, limit: int) -> str:
    """Returns the beginning of a text that has at most `limit` tokens by itself."""
    text = policy.well_formed(text[: limit * policy.CHARACTERS_PER_TOKEN])
    encoded = tokenizer.backend.encode(text, add_special_tokens=False)
    return text if len(encoded.ids) <= limit else text[: encoded.offsets[limit][0]]
