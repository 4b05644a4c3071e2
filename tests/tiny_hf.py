"""A tiny Hugging Face checkpoint that can be trained from: weights, config.json and a tokenizer that fits them."""

import functools
import json
import pathlib
import sys

import numpy as np

sys.path.append(str(pathlib.Path(__file__).parent / "hf"))

import tiny_checkpoint

from moon_jax.data import tokenizer

VOCAB = 320


@functools.cache
def _texts() -> tuple[str, ...]:
    return ("a red mug for the kitchen", "Home > Mugs", "color: red; size: 12 oz", "blue running shoes for men") * 4


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """The tensors of tiny_checkpoint, with rows for a byte-level BPE; small enough that 3 layers do not saturate."""
    made = tiny_checkpoint.tensors(seed=seed)
    made["model.embed_tokens.weight"] = np.random.default_rng(seed).integers(-127, 128, (VOCAB, 24)) / 64
    return {
        name: (array if "norm" in name or "ln_q" in name else array / 4).astype(np.float32)
        for name, array in made.items()
    }


def write(
    folder: pathlib.Path, seed: int = 0, dtype: str = "float32", tied: bool = True, max_pixels: int | None = None
) -> pathlib.Path:
    """Writes the checkpoint and returns its folder; with `max_pixels`, pictures are read from 6 x 6 px (a token) up."""
    folder.mkdir(parents=True)
    words = tokenizer.train_bpe(_texts(), folder, VOCAB)
    ids = {
        "image_token_id": words.image_pad,
        "video_token_id": words.special["<|video_pad|>"],
        "vision_start_token_id": words.vision_start,
        "vision_end_token_id": words.vision_end,
    }
    config = tiny_checkpoint.flat_config(vocab_size=VOCAB, tie_word_embeddings=tied, **ids)
    head = {} if tied else {"lm_head.weight": np.ones((VOCAB, 24), np.float32)}
    tiny_checkpoint.write(folder, tensors(seed) | head, config, dtype=dtype)
    if max_pixels is not None:
        pixels = {"min_pixels": 6 * 6, "max_pixels": max_pixels, "patch_size": 3, "merge_size": 2}
        (folder / "preprocessor_config.json").write_text(json.dumps(pixels))
    return folder
