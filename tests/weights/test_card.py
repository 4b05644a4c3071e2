"""The model card says what decides an embedding, and where the weights come from."""

import dataclasses

from tiny_spec import SPEC

from moon_jax.config import Config, ModelConfig, MoEConfig
from moon_jax.weights import card
from moon_jax.weights.spec import ModelSpec

ORIGIN = {"kind": "hf", "name": "Qwen/X@1", "files": {"a.safetensors": "ab" * 32}, "changes": ["half of it"]}


def test_the_card_says_what_decides_an_embedding():
    text = card.markdown(SPEC, {"dtype": "bfloat16", "parameters": 1234567}, ORIGIN)
    assert text.startswith("---\nlibrary_name: moon_jax\n")
    for part in (
        "1,234,567 in bfloat16", 'moon_jax.load("PATH_OF_THIS_FOLDER")', "encode_query", "mean of the last hidden",
        '| query | `"find: "` | `"\\n"` | `""` |', '| item | `"<\\|im_start\\|>商品 \\|\\n"` | `" / "` |',
        "bidirectional", "72 to 1800", "the first 3", "7.5 : 1", "5: 3 general ones of which a token visits 3",
        "exclusive", "softmax_all", "Qwen/X@1", "ab" * 32, "- half of it", "Qwen Research License", "its own",
    ):  # fmt: skip
        assert part in text, part


def test_the_card_follows_the_origin_to_its_root():
    chain = {"kind": "training", "name": "shop", "step": 700, "origin": ORIGIN}
    text = card.markdown(SPEC, None, chain)
    assert text.index("a training run `shop`, step 700") < text.index("Which was made from a Hugging Face folder")
    assert "Qwen Research License" in text
    alone = card.markdown(SPEC, None, {"kind": "training", "name": "shop", "step": 1, "origin": {"kind": "random"}})
    assert "Qwen Research License" not in alone
    assert "no other model's licence" in alone
    for spec, words in (
        (SPEC, "not its experts"),
        (dataclasses.replace(SPEC, moe=MoEConfig(experts=0)), "attends causally"),
        (ModelSpec(ModelConfig(), MoEConfig(experts=0), Config().data), "Prompts, pooling and norm are then yours"),
    ):
        assert words in card.markdown(spec, None, ORIGIN, layout="hf")
