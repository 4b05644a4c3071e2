"""What is embedded once: the pictures and role-marked texts of a query, a listing or a candidate, and its token ids."""

import dataclasses
import math
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int32

from moon_jax.config import DataConfig, PromptConfig, Role, VisionConfig
from moon_jax.data.grids import max_picture_tokens
from moon_jax.data.policy import CHARACTERS_PER_TOKEN, shown
from moon_jax.data.records import DataError, ImageRef, Product, Query
from moon_jax.data.tokenizer import Tokenizer

MODALITIES = ("image", "text", "both")  # of a query, in the order of config.data.modality_mix
KINDS = ("item", "query", "plain")
PLAIN = PromptConfig()  # around a plain document: nothing but a line end between its texts


@dataclasses.dataclass(frozen=True)
class Segment:
    """A text whose tokens share a role: TITLE, CATEGORY or ATTRIBUTE."""

    role: Role
    text: str


@dataclasses.dataclass(frozen=True)
class Document:
    """One thing to embed. Texts are untrusted: what looks like a special token in them is plain text.

    Its kind decides what stands around its texts: `config.data.prompt` for an "item" (a listing or a candidate text),
    `config.data.query_prompt` for a "query"; a "plain" one has no prompt and its texts are never cut.
    """

    images: tuple[ImageRef, ...] = ()
    segments: tuple[Segment, ...] = ()
    kind: str = "item"
    name: str = dataclasses.field(default="", compare=False)  # for errors: which record it was made of


@runtime_checkable
class PictureLike(Protocol):
    """What a document needs of a loaded picture (`moon_jax.data.images` imports this file, not the reverse)."""

    patches: Float32[np.ndarray, "n patch_dim"]
    grid: tuple[int, int]  # patches (high, wide)
    role: Role  # IMAGE or CORE


@dataclasses.dataclass(frozen=True)
class EncodedDocument:
    """A document as token ids; `pictures` in the order of their runs of image tokens."""

    tokens: Int32[np.ndarray, " n"]
    roles: Int32[np.ndarray, " n"]
    pictures: tuple[PictureLike, ...]
    cut_texts: int = 0  # segments that were longer than their limit


def has_modality(query: Query, modality: str) -> bool:
    """Returns whether the query can be asked by "image", "text" or "both"."""
    if modality not in MODALITIES:
        raise ValueError(f"a query's modality is one of {', '.join(MODALITIES)}, not {modality!r}")
    return (modality == "text" or query.image is not None) and (modality == "image" or bool(query.text))


def query_document(query: Query, modality: str) -> Document:
    """Returns the query by "image", "text" or "both"; its text has the role TITLE.

    Raises:
        DataError: the query lacks that picture or text.
    """
    if not has_modality(query, modality):
        raise DataError(f"the query ({shown(query.text)!r}, {query.image}) cannot be asked by {modality!r}")
    images = (query.image,) if query.image is not None and modality != "text" else ()
    return Document(images, segments((Role.TITLE, query.text if modality != "image" else "")), "query")


def item_document(
    product: Product, config: DataConfig, *, aspects: bool = True, title: bool = True, images: bool = True
) -> Document:
    """Returns the document of a listing: pictures, title (with description if configured), category, attributes.

    Args:
        product: the listing; what it lacks is left out.
        config: `images_per_item` and `description`.
        aspects: with the category and attribute texts. Leave them out where they are the answer.
        title: with the title (and the description).
        images: with the pictures. `title=False, images=False` is the form of candidate texts: aspects only.

    Raises:
        DataError: nothing is left to embed.
    """
    named = f"{product.title}\n{product.description}".strip() if config.description else product.title
    texts = segments(
        (Role.TITLE, named if title else ""),
        (Role.CATEGORY, category_text(product.category) if aspects else ""),
        (Role.ATTRIBUTE, attribute_text(product.attributes) if aspects else ""),
    )
    document = Document(product.images[: config.images_per_item] if images else (), texts)
    if not document.images and not document.segments:
        asked = [name for name, given in (("aspects", aspects), ("title", title), ("images", images)) if given]
        raise DataError(f"the product {shown(product.id)!r} has nothing to embed of {', '.join(asked) or 'nothing'}")
    return document


def aspect_document(text: str, role: Role) -> Document:
    """Returns a candidate text as a document: `category_text` as Role.CATEGORY, `attribute_text` as Role.ATTRIBUTE."""
    return Document((), segments((role, text)))


def category_text(category: Sequence[str]) -> str:
    """Returns "industry > level 1 > ..."."""
    return " > ".join(category)


def attribute_text(attributes: Iterable[tuple[str, Sequence[str]]]) -> str:
    """Returns "key: value; key: value, value"."""
    return "; ".join(f"{key}: {', '.join(values)}" for key, values in attributes)


def segments(*texts: tuple[Role, str]) -> tuple[Segment, ...]:
    """Returns the segments of (role, text) pairs, less the empty ones."""
    return tuple(Segment(role, text) for role, text in texts if text.strip())


def _limits(data: DataConfig) -> dict[Role, int]:
    return {
        Role.TITLE: data.title_tokens,
        Role.CATEGORY: data.category_tokens,
        Role.ATTRIBUTE: data.attribute_tokens,
    }


def _prompt(kind: str, data: DataConfig) -> tuple[str, PromptConfig]:
    """Returns the setting and its value for a kind of document."""
    prompts = {"item": ("prompt", data.prompt), "query": ("query_prompt", data.query_prompt), "plain": ("", PLAIN)}
    if kind not in prompts:
        raise ValueError(f"a document's kind is one of {', '.join(KINDS)}, not {kind!r}")
    return prompts[kind]


def encode(
    document: Document, tokenizer: Tokenizer, pictures: Sequence[PictureLike], data: DataConfig, vision: VisionConfig
) -> EncodedDocument:
    """Returns the token ids and roles of a document.

    prefix, then per picture <|vision_start|> <|image_pad|>... <|vision_end|>, then the texts with the separator between
    them, suffix. One <|image_pad|> stands for a merged token and has the picture's role; everything that is neither a
    picture nor a text has the role OTHER. Texts are tokenised one by one and cut at their limits. The prompt (prefix,
    separator, suffix) and the limits are those of the document's kind, see `Document`.

    Args:
        document: its `images` are not looked at; `pictures` are what was loaded of them.
        tokenizer: see `moon_jax.data.tokenizer`.
        pictures: in order: every original followed by its crop, if it has one.
        data: prompts and limits.
        vision: `spatial_merge_size`.

    Raises:
        DataError: no tokens at all, a segment with a role that no text has, or an image token in the prompt.
    """
    limits, (setting, prompt) = _limits(data), _prompt(document.kind, data)
    ids: list[int] = []
    roles: list[int] = []
    cut = 0

    def add(new: list[int], role: Role) -> None:
        ids.extend(new)
        roles.extend([int(role)] * len(new))

    def add_template(text: str, name: str) -> None:
        new = tokenizer.encode_template(text)
        if tokenizer.image_pad in new:
            raise DataError(f"config.data.{setting}.{name} holds the image token; pictures are put in by themselves")
        add(new, Role.OTHER)

    add_template(prompt.prefix, "prefix")
    for picture in pictures:
        add([tokenizer.vision_start], Role.OTHER)
        add([tokenizer.image_pad] * (math.prod(picture.grid) // vision.merge_unit), picture.role)
        add([tokenizer.vision_end], Role.OTHER)
    for number, segment in enumerate(document.segments):
        if segment.role not in limits:
            raise DataError(f"a text has the role {segment.role!r}; it must be TITLE, CATEGORY or ATTRIBUTE")
        if number:
            add_template(prompt.separator, "separator")
        limit = None if document.kind == "plain" else limits[segment.role]
        read = None if limit is None else limit * CHARACTERS_PER_TOKEN  # tokenising a million would take seconds
        text = tokenizer.encode(segment.text[:read])
        cut += len(text) > len(text[:limit]) or len(segment.text) > len(segment.text[:read])
        add(text[:limit], segment.role)
    add_template(prompt.suffix, "suffix")
    if not ids:
        raise DataError("a document without pictures, texts and prompt has no tokens to embed")
    return EncodedDocument(np.array(ids, np.int32), np.array(roles, np.int32), tuple(pictures), cut)


def max_document_tokens(data: DataConfig, vision: VisionConfig) -> int:
    """Returns a bound of the tokens of any item or query that the functions above make: the static length of a row.

    A plain document has no bound. The template is counted by its NFC bytes, of which a byte-level BPE makes at most as
    many tokens, so that the bound depends on the settings alone and not on the tokenizer.
    """
    pictures = data.images_per_item * (2 if data.crop else 1)
    limits = _limits(data)
    template = max(
        _bytes(prompt.prefix) + (len(limits) - 1) * _bytes(prompt.separator) + _bytes(prompt.suffix)
        for prompt in (data.prompt, data.query_prompt)
    )
    return pictures * (2 + max_picture_tokens(data, vision)) + sum(limits.values()) + template


def _bytes(text: str) -> int:
    return len(unicodedata.normalize("NFC", text).encode())
