"""Chat prompts against transformers' tokenizer on the template written out, and padded batches against what went in."""

import numpy as np
import pytest
from PIL import Image
from transformers import AutoTokenizer

from moon_jax.config import Role, VisionConfig
from moon_jax.data import prompts, tokenizer
from moon_jax.data.packing import PackingError
from moon_jax.data.patches import patchify
from moon_jax.data.positions import mrope_positions
from moon_jax.data.records import DataError

VISION = VisionConfig(patch_size=4, window_size=16, hidden_size=32, num_heads=2)
CHINESE, ENGLISH = "找出图中的茶杯，返回坐标。", "Where is the mug? It's red,\n1.5 l."


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """(our tokenizer, transformers' on the same folder)."""
    folder = tmp_path_factory.mktemp("words")
    made = tokenizer.train_bpe([CHINESE, ENGLISH, prompts.SYSTEM, "user\n\n\n", "assistant\n"] * 4, folder, 420)
    return made, AutoTokenizer.from_pretrained(folder)


def picture(height, width, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    return patchify(Image.fromarray(pixels), VISION, 64, 10**6)


BIG, SMALL = picture(40, 24), picture(8, 16, seed=1)  # 5 x 3 and 1 x 2 visual tokens
PADS = {id(BIG): 15, id(SMALL): 2}


def written_out(parts, system=prompts.SYSTEM):
    """The published chat template by hand."""
    seen = lambda p: f"<|vision_start|>{'<|image_pad|>' * PADS[id(p)]}<|vision_end|>"  # noqa: E731
    user = "".join(p if isinstance(p, str) else seen(p) for p in parts)
    head = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    return f"{head}<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"


PARTS = {
    "english": (ENGLISH,),
    "chinese, picture first": (BIG, CHINESE),
    "pictures between texts": ("A:", SMALL, " B: ", BIG, BIG, "\n" + CHINESE),
    "seams": ("\n\n  two", " texts ", SMALL, "ends in a line\n"),
    "no text": (SMALL,),
}


@pytest.mark.parametrize("system", [prompts.SYSTEM, "", "答。"])
@pytest.mark.parametrize("name", PARTS)
def test_the_template_token_for_token(words, name, system):
    ours, theirs = words
    got = prompts.encode_chat(PARTS[name], ours, VISION, system=system)
    assert got.tokens.tolist() == theirs(written_out(PARTS[name], system))["input_ids"]
    assert [p.grid for p in got.pictures] == [p.grid for p in PARTS[name] if not isinstance(p, str)]
    assert ((got.roles == Role.IMAGE) == (got.tokens == ours.image_pad)).all()
    assert set(got.roles.tolist()) <= {Role.IMAGE, Role.OTHER}
    assert got.answer_tokens == 0


def test_an_answer_and_its_end_follow(words):
    ours, theirs = words
    got = prompts.encode_chat((BIG, ENGLISH), ours, VISION, answer=CHINESE)
    assert got.tokens.tolist() == theirs(written_out((BIG, ENGLISH)) + CHINESE + "<|im_end|>")["input_ids"]
    assert got.answer_tokens == len(theirs(CHINESE)["input_ids"]) + 1


def test_a_text_cannot_say_special_tokens(words):
    ours, _ = words
    plain = prompts.encode_chat(("a",), ours, VISION)
    got = prompts.encode_chat(("<|im_end|><|image_pad|>",), ours, VISION, answer="<|im_end|>")
    count = lambda encoded, name: (encoded.tokens == ours.special[name]).sum()  # noqa: E731
    assert count(got, "<|image_pad|>") == 0
    assert count(got, "<|im_end|>") == count(plain, "<|im_end|>") + 1  # of the answer


def test_what_was_generated_as_text(words):
    ours, theirs = words
    ids = [*ours.encode(CHINESE), ours.special["<|box_start|>"], *ours.encode(ENGLISH), ours.special["<|im_end|>"], -1]
    assert prompts.answer_text(ids, ours) == theirs.decode(ids[:-1], skip_special_tokens=True) == CHINESE + ENGLISH
    assert prompts.eos_ids(ours) == (
        theirs.convert_tokens_to_ids("<|im_end|>"),
        theirs.convert_tokens_to_ids("<|endoftext|>"),
    )


def encoded(words):
    made = [prompts.encode_chat(PARTS[name], words[0], VISION) for name in PARTS]
    return [*made, prompts.encode_chat(("short",), words[0], VISION, answer="yes")]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("rows", "shards"), [(6, 1), (2, 4)])
def test_one_prompt_a_row_and_padding_on_one_side(words, side, rows, shards):
    given = encoded(words)
    shape = prompts.prompt_shape(given, rows, shards, VISION)
    batch = prompts.prompt_batch(given, shape, VISION, range(shards), side)
    unit = VISION.merge_unit
    for place in range(rows * shards):
        shard = {name: array[place // rows] for name, array in batch.items()}
        row = place % rows
        real = shard["segment_ids"][row] > 0
        if place >= len(given):
            assert not real.any()
            assert not shard["chosen"][row].any()
            continue
        prompt, count = given[place], len(given[place].tokens)
        assert real.tolist() == (np.arange(shape.row_tokens) < count)[:: 1 if side == "right" else -1].tolist()
        np.testing.assert_array_equal(shard["tokens"][row][real], prompt.tokens)
        np.testing.assert_array_equal(shard["roles"][row][real], prompt.roles)
        assert not shard["roles"][row][~real].any()
        grids = [p.grid for p in prompt.pictures]
        positions = mrope_positions(prompt.roles == Role.IMAGE, grids, VISION.spatial_merge_size)
        np.testing.assert_array_equal(shard["positions"][:, row][:, real], positions)
        np.testing.assert_array_equal(
            np.flatnonzero(shard["chosen"][row][real]), np.arange(count)[count - prompt.answer_tokens :]
        )
        assert not shard["chosen"][row][~real].any()
        slots = shard["image_slots"][row]
        assert ((slots >= 0)[real] == (prompt.roles == Role.IMAGE)).all()
        assert (slots[~real] == -1).all()
        patches = shard["patches"].reshape(-1, unit, VISION.patch_dim)[slots[slots >= 0]]
        wanted = [p.patches for p in prompt.pictures] or [np.zeros((0, VISION.patch_dim), np.float32)]
        np.testing.assert_array_equal(patches.reshape(-1, VISION.patch_dim), np.concatenate(wanted))
    np.testing.assert_array_equal(batch["document_of_segment"][..., 0], -1)


def test_a_host_makes_its_own_shards(words):
    given = encoded(words)
    shape = prompts.prompt_shape(given, 2, 4, VISION)
    whole = prompts.prompt_batch(given, shape, VISION, range(4))
    part = prompts.prompt_batch(given, shape, VISION, range(1, 3))
    for name, array in part.items():
        np.testing.assert_array_equal(array, whole[name][1:3], err_msg=name)


def test_few_shapes(words):
    given = encoded(words)
    shapes = {prompts.prompt_shape(given[:n], 6, 1, VISION) for n in range(1, 7)}
    assert len(shapes) <= 3
    for shape in shapes:
        for size in (shape.row_tokens, shape.image_slots, shape.slot_patches // VISION.window_patches):
            assert size in {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128}
    assert prompts.prompt_shape([], 6, 1, VISION).row_tokens == 1


def test_what_does_not_fit_is_refused(words):
    given = encoded(words)
    with pytest.raises(DataError, match="6 prompts do not fit into 2 shards of 2 rows"):
        prompts.prompt_shape(given, 2, 2, VISION)
    small = prompts.prompt_shape(given[:1], 6, 1, VISION)
    with pytest.raises(PackingError):
        prompts.prompt_batch(given, small, VISION, range(1))
    with pytest.raises(ValueError, match="'left' or the 'right', not 'top'"):
        prompts.prompt_batch(given[:1], small, VISION, range(1), "top")
    bare = tokenizer.Tokenizer(words[0].backend, {"<|image_pad|>": 400}, 401)
    with pytest.raises(tokenizer.TokenizerError, match=r"<\|im_start\|>, <\|im_end\|>"):
        prompts.encode_chat(("a",), bare, VISION)
