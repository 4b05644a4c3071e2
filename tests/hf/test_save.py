"""Out and in again is identical to the bit, under the published names, and no half of it is ever left."""

import json
import math
import re

import ml_dtypes
import numpy as np
import pytest
import tiny_checkpoint
from safetensors.numpy import load_file
from tiny_checkpoint import tensors, write

from moon_jax.config import DataConfig, ModelConfig, MoEConfig, PromptConfig, TextConfig, VisionConfig
from moon_jax.hf import save
from moon_jax.hf.config import CheckpointInfo, LoadError, read_config, read_moe, write_config
from moon_jax.hf.load import HFSource
from moon_jax.hf.names import table
from moon_jax.hf.save import save_hf
from moon_jax.weights.source import LM_HEAD, Leaf, WeightsError
from moon_jax.weights.spec import ModelSpec

BF16 = np.dtype(ml_dtypes.bfloat16)
SPECIAL = {
    "<|endoftext|>": 18, "<|im_end|>": 19, "<|image_pad|>": 20, "<|video_pad|>": 21, "<|vision_start|>": 22,
    "<|vision_end|>": 23,
}  # fmt: skip
DENSE, EXPERTS = MoEConfig(experts=0), MoEConfig(experts=4, top_k=1, gate="softmax_all", guided="exclusive")


class Arrays:
    """A source over arrays in memory."""

    def __init__(self, arrays):
        self.arrays = arrays
        self.leaves = {name: Leaf(array.shape, array.dtype) for name, array in arrays.items()}

    def read(self, name, index=()):
        return np.array(self.arrays[name][tuple(index)])


def tokenizer(folder, special=SPECIAL):
    folder.mkdir()
    added = [{"content": name, "id": number} for name, number in special.items()]
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": added, "model": "字"}))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2Tokenizer"}')
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder


def tiny_model(tmp_path):
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "config.json").write_text(json.dumps(tiny_checkpoint.flat_config()))
    return read_config(tmp_path)[0]


def random_bits(model, moe, dtype, head=False):
    """Every bit pattern is as good as another: not-a-numbers, zeros of both signs, subnormals."""
    rng = np.random.default_rng(0)
    shapes = {row.leaf: row.shape for row in table(model, moe)}
    if head:
        shapes[LM_HEAD] = (model.text.vocab_size, model.text.hidden_size)
    return Arrays(
        {name: np.frombuffer(rng.bytes(math.prod(s) * dtype.itemsize), dtype).reshape(s) for name, s in shapes.items()}
    )


def out(tmp_path, source, spec, name="out", **settings):
    (tmp_path / name).mkdir()
    digests = save_hf(tmp_path / name, source, spec, tokenizer(tmp_path / f"{name}-tokenizer"), **settings)
    assert sorted(digests) == sorted(path.name for path in (tmp_path / name).iterdir())
    return tmp_path / name


@pytest.mark.parametrize(
    ("dtype", "moe", "head", "limit"),
    [
        (BF16, DENSE, False, 1 << 30),
        (np.dtype(np.float16), DENSE, True, 20_000),
        (BF16, EXPERTS, False, 20_000),
        (np.dtype(np.float32), EXPERTS, True, 1 << 30),
    ],
)
def test_out_and_in_again_is_identical_to_the_bit(tmp_path, monkeypatch, dtype, moe, head, limit):
    monkeypatch.setattr(save, "_PIECE_BYTES", 500)
    monkeypatch.setattr(save, "_READ_BYTES", 900)
    model = tiny_model(tmp_path / "in")
    source, written = random_bits(model, moe, dtype, head), []
    spec = ModelSpec(model, moe, DataConfig(), tied=True)  # a head that is there is not tied, whatever was said of it
    folder = out(tmp_path, source, spec, max_shard_bytes=limit, progress=written.append)
    assert sum(written) == sum(leaf.nbytes for leaf in source.leaves.values())
    assert (folder / "model.safetensors").exists() == (limit > 20_000)

    assert read_config(folder) == (
        model, CheckpointInfo(**tiny_checkpoint.TOKENS, tied=not head, dtype=dtype.name),
    )  # fmt: skip
    assert read_moe(folder) == moe
    with HFSource(folder, model, moe, tied=not head) as back:
        assert back.leaves == source.leaves
        for name, array in source.arrays.items():
            assert back.read(name).tobytes() == array.tobytes(), name


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("tied", [True, False])
def test_in_and_out_again_gives_the_same_tensors(tmp_path, tied, dtype):
    """Names and values against the checkpoint that was written by hand, from another layout than the published one."""
    head = {} if tied else {"lm_head.weight": tensors(seed=1)["model.embed_tokens.weight"]}
    config = tiny_checkpoint.nested_config(tie_word_embeddings=tied)
    write(tmp_path / "in", tensors("model.language_model.", "model.visual.") | head, config, shards=3, dtype=dtype)
    model, info = read_config(tmp_path / "in")
    with HFSource(tmp_path / "in", model, tied=info.tied) as source:
        folder = out(tmp_path, source, ModelSpec(model, DENSE, DataConfig(), info.tied))
    found = load_file(folder / "model.safetensors")
    wanted = tensors() | head
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == (BF16 if dtype == "bfloat16" else np.float32)
        np.testing.assert_array_equal(found[name].astype(np.float32), tensor, err_msg=name)
    assert read_config(folder)[1].tied == tied


def test_the_other_files(tmp_path):
    model = tiny_model(tmp_path / "in")
    data = DataConfig(min_pixels=1234, max_pixels=56789, prompt=PromptConfig("a", "b", "c"))
    spec = ModelSpec(model, DENSE, data, tied=False)  # and its head was left out: transformers shall not make up one
    folder = out(tmp_path, random_bits(model, DENSE, BF16), spec)
    assert sorted(path.name for path in folder.iterdir()) == [
        "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "preprocessor_config.json",
        "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (folder / name).read_bytes() == (tmp_path / "out-tokenizer" / name).read_bytes()
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    assert (settings["min_pixels"], settings["max_pixels"], settings["patch_size"]) == (1234, 56789, 3)
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [19, 18]
    assert generation["do_sample"] is False
    config = json.loads((folder / "config.json").read_text())
    assert (config["eos_token_id"], config["bos_token_id"], config["torch_dtype"]) == (19, 18, "bfloat16")
    assert config["tie_word_embeddings"] is False
    assert "moon" not in config


def test_the_readme_tells_what_transformers_does_not_compute(tmp_path):
    model = tiny_model(tmp_path / "in")
    source = random_bits(model, EXPERTS, BF16)
    folder = out(tmp_path, source, ModelSpec(model, EXPERTS, DataConfig()))
    text = (folder / "README.md").read_text()
    assert text.startswith("## How this checkpoint differs from Qwen2.5-VL\n")
    stored = load_file(folder / "model.safetensors")
    moe = {n: t for n, t in stored.items() if ".mlp.gate.weight" in n or ".experts." in n}
    assert f"{len(moe)} tensors of the table ({sum(t.size for t in moe.values()):,} numbers)" in text
    described = dict(re.findall(r"^\| `([^`]+)` \| \[([\d, ]+)\]", text, re.M))
    assert len(described) == 4
    for pattern, shape in described.items():
        found = [
            n for n in moe if re.fullmatch(re.escape(pattern).replace(r"\{i\}", r"\d").replace(r"\{e\}", r"\d"), n)
        ]
        assert len(found) == (3 if "experts" not in pattern else 12), pattern
        assert {str(list(moe.pop(n).shape)) for n in found} == {f"[{shape}]"}
    assert not moe, "a tensor that the table does not name"
    assert "Expert 0 is the category expert, expert 2 the\nattribute expert; the others (1, 3) are general" in text
    assert '`guided` is "exclusive" and\n`gate` is "softmax_all"' in text

    both = tiny_model(tmp_path / "in2")
    both = ModelConfig(vision=both.vision, text=both.text, attention="bidirectional")
    folder = out(tmp_path, random_bits(both, DENSE, BF16), ModelSpec(both, DENSE, DataConfig()), "both")
    assert "attends causally" in (folder / "README.md").read_text()
    assert read_config(folder)[0] == both
    assert read_moe(folder) == DENSE


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path):
    model = tiny_model(tmp_path / "in")
    (tmp_path / "out").mkdir()
    good, spec = random_bits(model, DENSE, BF16), ModelSpec(model, DENSE, DataConfig())
    words = tokenizer(tmp_path / "words")

    def refused(message, source=good, spec=spec, words=words, error=WeightsError):
        with pytest.raises(error, match=message) as raised:
            save_hf(tmp_path / "out", source, spec, words)
        assert not list((tmp_path / "out").iterdir())
        return str(raised.value)

    bad = dict(good.arrays) | {"text/extra": np.zeros(3, BF16)}
    del bad["text/norm"], bad["vision/merger/fc1"]
    message = refused("text/norm is missing", Arrays(bad))
    assert "vision/merger/fc1 is missing" in message
    assert "text/extra [3] is left over" in message
    refused("missing", good, ModelSpec(model, EXPERTS, DataConfig()))
    refused("tokenizer.json is missing", words=tmp_path)
    few = {n: i for n, i in SPECIAL.items() if n not in ("<|image_pad|>", "<|vision_end|>")}
    refused(r"no special token <\|image_pad\|>, <\|vision_end\|>", words=tokenizer(tmp_path / "few", few))
    secret = tokenizer(tmp_path / "linked") / "tokenizer.json"
    secret.unlink()
    secret.symlink_to(words / "tokenizer.json")
    refused("a link that leads out", words=tmp_path / "linked")
    wide = ModelConfig(
        vision=model.vision, text=TextConfig(**vars(model.text) | {"head_dim": 8, "mrope_section": (1, 2, 1)})
    )
    refused("head_dim must be hidden_size / num_attention_heads", random_bits(wide, DENSE, BF16),
            ModelSpec(wide, DENSE, DataConfig()), error=LoadError)  # fmt: skip


def test_a_source_that_fails_leaves_nothing(tmp_path):
    model = tiny_model(tmp_path / "in")
    (tmp_path / "out").mkdir()
    source = random_bits(model, DENSE, BF16)

    def read(name, index=()):
        if name == "text/layers/o":
            raise WeightsError("the disk is gone")
        return np.array(source.arrays[name][tuple(index)])

    broken = Arrays(source.arrays)
    broken.read = read
    with pytest.raises(WeightsError, match="the disk is gone"):
        save_hf(tmp_path / "out", broken, ModelSpec(model, DENSE, DataConfig()), tokenizer(tmp_path / "words"))
    assert not list((tmp_path / "out").iterdir())


def test_only_a_layer_is_read_at_a_time(tmp_path):
    """Of the largest stack, and of the token table not much more."""
    text = TextConfig(
        vocab_size=5000, hidden_size=64, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, mrope_section=(2, 3, 3),
    )  # fmt: skip
    model = ModelConfig(vision=VisionConfig(depth=1, hidden_size=16, intermediate_size=8, num_heads=2), text=text)
    source, largest = random_bits(model, EXPERTS, BF16), {}
    read = source.read

    def watched(name, index=()):
        array = read(name, index)
        largest[name] = max(largest.get(name, 0), array.size)
        return array

    source.read = watched
    save._READ_BYTES, before = 64 << 10, save._READ_BYTES
    try:
        out(tmp_path, source, ModelSpec(model, EXPERTS, DataConfig()))
    finally:
        save._READ_BYTES = before
    assert largest["text/layers/moe/gate"] == 64 * 512
    assert largest["text/layers/q"] == 64 * 64
    assert largest["text/embed"] <= 32 << 10


@pytest.mark.parametrize("value", [3.5, -1, "8", True, None])
def test_a_mixture_that_is_none_is_refused(tmp_path, value):
    for key in ("experts", "top_k", "gate", "guided", "attention", "expert"):
        write(tmp_path, tensors(), tiny_checkpoint.flat_config(moon={"experts": 4} | {key: value}))
        with pytest.raises(LoadError, match=f"moon.{key} is unknown or cannot be"):
            read_moe(tmp_path)


def test_published_sizes_come_out_as_they_are():
    info = CheckpointInfo(151655, 151656, 151652, 151653, True, "bfloat16")
    config = write_config(ModelConfig(), DENSE, info, "bfloat16")
    published = {
        "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
        "num_key_value_heads": 2, "vocab_size": 151936, "rope_theta": 1e6, "rms_norm_eps": 1e-6, "hidden_act": "silu",
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "torch_dtype": "bfloat16",
        "tie_word_embeddings": True, "image_token_id": 151655, "video_token_id": 151656,
        "vision_start_token_id": 151652, "vision_end_token_id": 151653, "model_type": "qwen2_5_vl",
        "architectures": ["Qwen2_5_VLForConditionalGeneration"], "use_sliding_window": False,
    }  # fmt: skip
    assert {name: config[name] for name in published} == published
    vision = {
        "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "in_channels": 3,
        "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112,
        "out_hidden_size": 2048, "fullatt_block_indexes": [7, 15, 23, 31],
        "hidden_act": "silu", "in_chans": 3, "spatial_patch_size": 14,
    }  # fmt: skip
    assert {name: config["vision_config"][name] for name in vision} == vision
