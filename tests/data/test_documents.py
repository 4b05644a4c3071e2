import dataclasses

import numpy as np
import pytest

from moon_jax.config import DataConfig, PromptConfig, Role, VisionConfig
from moon_jax.data import documents, grids, tokenizer
from moon_jax.data.documents import Document, Segment
from moon_jax.data.records import DataError, ImageRef, Product, Query

VISION = VisionConfig()
DATA = DataConfig()
FRONT, BACK = ImageRef("/front.jpg", (0.0, 0.0, 5.0, 5.0)), ImageRef("/back.jpg")
COAT = Product(
    id="coat",
    title="Warm coat",
    description="Made of wool.",
    images=(FRONT, BACK),
    category=("Apparel", "Men", "Coats"),
    attributes=(("color", ("red", "blue")), ("size", ("XL",))),
)


@dataclasses.dataclass(frozen=True)
class FakePicture:
    patches: np.ndarray
    grid: tuple[int, int]
    role: Role


def picture(high, wide, role):
    return FakePicture(np.zeros((high * wide, 588), np.float32), (high, wide), role)


@pytest.fixture(scope="module")
def bytes_only(tmp_path_factory):
    """A tokenizer without merges: one token per byte, so every expected length can be counted by hand."""
    return tokenizer.train_bpe([], tmp_path_factory.mktemp("tokenizer"), 270)


def test_item_has_its_texts_with_their_roles():
    assert documents.item_document(COAT, DATA) == Document(
        (FRONT,),
        (
            Segment(Role.TITLE, "Warm coat"),
            Segment(Role.CATEGORY, "Apparel > Men > Coats"),
            Segment(Role.ATTRIBUTE, "color: red, blue; size: XL"),
        ),
    )


def test_item_leaves_out_what_is_switched_off_or_missing():
    config = DataConfig(images_per_item=5, description=True)
    title = Segment(Role.TITLE, "Warm coat\nMade of wool.")
    assert documents.item_document(COAT, config, aspects=False) == Document((FRONT, BACK), (title,))
    only = documents.item_document(COAT, DATA, title=False, images=False)
    assert [s.role for s in only.segments] == [Role.CATEGORY, Role.ATTRIBUTE]
    assert only.images == ()
    bare = Product("bare", title="Bare")
    assert documents.item_document(bare, config) == Document((), (Segment(Role.TITLE, "Bare"),))
    with pytest.raises(DataError, match="'bare' has nothing to embed of aspects"):
        documents.item_document(bare, DATA, title=False, images=False)


@pytest.mark.parametrize(
    ("modality", "images", "texts"), [("image", 1, []), ("text", 0, ["a coat"]), ("both", 1, ["a coat"])]
)
def test_query_by_modality(modality, images, texts):
    document = documents.query_document(Query("a coat", FRONT), modality)
    assert document == Document((FRONT,) * images, tuple(Segment(Role.TITLE, t) for t in texts), "query")


def test_query_without_the_modality_is_refused():
    with pytest.raises(DataError, match="cannot be asked by 'both'"):
        documents.query_document(Query("a coat", None), "both")
    with pytest.raises(DataError, match="cannot be asked by 'text'"):
        documents.query_document(Query("", FRONT), "text")
    assert documents.has_modality(Query("", FRONT), "image")
    with pytest.raises(ValueError, match="not 'photo'"):
        documents.has_modality(Query("", FRONT), "photo")


def test_candidate_texts():
    category = documents.aspect_document(documents.category_text(COAT.category), Role.CATEGORY)
    assert category == Document((), (Segment(Role.CATEGORY, "Apparel > Men > Coats"),))
    attribute = documents.aspect_document(documents.attribute_text([("color", ("red",))]), Role.ATTRIBUTE)
    assert attribute == Document((), (Segment(Role.ATTRIBUTE, "color: red"),))


def test_encoding_lays_out_pictures_texts_and_template(bytes_only):
    data = DataConfig(prompt=PromptConfig(prefix="<|im_start|>P", separator="|", suffix="."))
    segments = (Segment(Role.TITLE, "ab"), Segment(Role.CATEGORY, "c"), Segment(Role.ATTRIBUTE, "d: e"))
    pictures = [picture(4, 6, Role.IMAGE), picture(2, 2, Role.CORE)]
    out = documents.encode(Document((FRONT,), segments), bytes_only, pictures, data, VISION)
    start, pad, end = "<|vision_start|>", "<|image_pad|>", "<|vision_end|>"
    text = f"<|im_start|>P{start}{pad * 6}{end}{start}{pad}{end}ab|c|d: e."
    assert bytes_only.decode(out.tokens.tolist()) == text
    O, I, C, T, K, A = Role.OTHER, Role.IMAGE, Role.CORE, Role.TITLE, Role.CATEGORY, Role.ATTRIBUTE  # noqa: E741
    expected = [O, O, O, *[I] * 6, O, O, C, O, T, T, O, K, O, A, A, A, A, O]
    np.testing.assert_array_equal(out.roles, expected)
    assert out.tokens.dtype == out.roles.dtype == np.int32
    assert out.pictures == tuple(pictures)
    assert out.cut_texts == 0


def test_each_kind_has_its_own_prompt_and_plain_texts_are_never_cut(bytes_only):
    data = DataConfig(
        prompt=PromptConfig("I<", "|", ">"),
        query_prompt=PromptConfig("Q<", "/", ">"),
        title_tokens=2,
        category_tokens=2,
    )
    texts = (Segment(Role.TITLE, "abc"), Segment(Role.CATEGORY, "xyz"))
    said = {}
    for kind in documents.KINDS:
        out = documents.encode(Document((), texts, kind), bytes_only, [], data, VISION)
        said[kind] = bytes_only.decode(out.tokens.tolist()), out.cut_texts
    assert said == {"item": ("I<ab|xy>", 2), "query": ("Q<ab/xy>", 2), "plain": ("abc\nxyz", 0)}
    with pytest.raises(ValueError, match="kind is one of item, query, plain, not 'listing'"):
        documents.encode(Document((), texts, "listing"), bytes_only, [], data, VISION)


def test_the_name_of_a_document_is_no_part_of_it():
    assert Document((), (), "item", "record 1") == Document((), (), "item", "record 2")
    assert len({Document(name="a"), Document(name="b"), Document(kind="query")}) == 2


def test_no_separator_around_missing_segments(bytes_only):
    out = documents.encode(Document((), (Segment(Role.ATTRIBUTE, "a: b"),)), bytes_only, [], DATA, VISION)
    assert bytes_only.decode(out.tokens.tolist()) == "a: b"


def test_long_texts_are_cut_and_counted(bytes_only):
    data = DataConfig(title_tokens=3, category_tokens=2, attribute_tokens=4)
    segments = (Segment(Role.TITLE, "abcd"), Segment(Role.CATEGORY, "xy"), Segment(Role.ATTRIBUTE, "12345"))
    out = documents.encode(Document((), segments), bytes_only, [], data, VISION)
    assert bytes_only.decode(out.tokens.tolist()) == "abc\nxy\n1234"
    assert out.cut_texts == 2


def test_image_tokens_in_texts_are_text(bytes_only):
    document = Document((), (Segment(Role.TITLE, "<|image_pad|><|vision_start|>"),))
    out = documents.encode(document, bytes_only, [], DATA, VISION)
    assert set(out.roles) == {Role.TITLE}
    assert not np.isin(out.tokens, list(bytes_only.special.values())).any()


def test_what_cannot_be_encoded_is_refused(bytes_only):
    with pytest.raises(DataError, match="no tokens to embed"):
        documents.encode(Document(), bytes_only, [], DATA, VISION)
    data = DataConfig(prompt=PromptConfig(suffix="<|image_pad|>"))
    with pytest.raises(DataError, match=r"config\.data\.prompt\.suffix holds the image token"):
        documents.encode(Document(), bytes_only, [], data, VISION)
    data = DataConfig(query_prompt=PromptConfig(prefix="<|image_pad|>"))
    with pytest.raises(DataError, match=r"config\.data\.query_prompt\.prefix holds the image token"):
        documents.encode(Document(kind="query"), bytes_only, [], data, VISION)
    with pytest.raises(DataError, match=r"Role\.IMAGE"):
        documents.encode(Document((), (Segment(Role.IMAGE, "x"),)), bytes_only, [], DATA, VISION)


@pytest.mark.parametrize("kind", ["item", "query"])
@pytest.mark.parametrize("crop", [True, False])
def test_longest_document_fits_its_bound_exactly(bytes_only, crop, kind):
    long = PromptConfig(prefix="ab", separator=", ", suffix="é")
    prompts = {"prompt": PromptConfig(), "query_prompt": PromptConfig(suffix="é")}
    prompts["prompt" if kind == "item" else "query_prompt"] = long
    data = DataConfig(
        images_per_item=2, crop=crop, title_tokens=3, category_tokens=2, attribute_tokens=4, max_pixels=56 * 56 * 4,
        min_pixels=28 * 28, **prompts,
    )  # fmt: skip
    most = grids.max_picture_tokens(data, VISION)
    pictures = [picture(2, 2 * most, Role.IMAGE)] * (4 if crop else 2)
    segments = tuple(Segment(r, "long" * 9) for r in (Role.TITLE, Role.CATEGORY, Role.ATTRIBUTE))
    out = documents.encode(Document((), segments, kind), bytes_only, pictures, data, VISION)
    assert len(out.tokens) == documents.max_document_tokens(data, VISION)
