"""transformers loads what we write: no key too few or too many, every weight the same bit, the same hidden states."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402
from transformers import AutoTokenizer, GenerationConfig, Qwen2_5_VLConfig  # noqa: E402
from transformers import Qwen2_5_VLForConditionalGeneration as Model  # noqa: E402
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil  # noqa: E402

from moon_jax.config import DataConfig, MoEConfig  # noqa: E402
from moon_jax.data.tokenizer import train_bpe  # noqa: E402
from moon_jax.hf.config import read_config, read_moe  # noqa: E402
from moon_jax.hf.load import HFSource  # noqa: E402
from moon_jax.hf.save import save_hf  # noqa: E402
from moon_jax.weights.source import Upcycled  # noqa: E402
from moon_jax.weights.spec import ModelSpec  # noqa: E402

pytestmark = pytest.mark.torch

TEXT = {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-4, "bos_token_id": None, "eos_token_id": None,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e5, "mrope_section": [2, 1, 1]},
}  # fmt: skip
VISION = {
    "depth": 2, "hidden_size": 16, "intermediate_size": 20, "num_heads": 2, "out_hidden_size": 32, "patch_size": 6,
    "window_size": 36, "fullatt_block_indexes": [0],
}  # fmt: skip


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    return train_bpe(["红色连衣裙 red dress"] * 3, folder, 300), folder


def make(words, folder, dtype=torch.float32, **root):
    special = words[0].special
    tokens = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end"}
    ids = {f"{name}_token_id": special[f"<|{token}|>"] for name, token in tokens.items()}
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(text_config=TEXT, vision_config=VISION, **ids, **root)
    model = Model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.to(dtype).save_pretrained(folder, max_shard_size="30KB")
    return model


def export(folder, out, words, moe=None):
    model, info = read_config(folder)
    out.mkdir()
    with HFSource(folder, model, tied=info.tied) as source:
        spec = ModelSpec(model, moe or MoEConfig(experts=0), DataConfig(min_pixels=144, max_pixels=14400), info.tied)
        save_hf(out, Upcycled(source, moe) if moe else source, spec, words[1], max_shard_bytes=50_000)


def load(folder, dtype=torch.float32):
    return Model.from_pretrained(folder, dtype=dtype, output_loading_info=True)


def hidden_states(model):
    """Of a document with a picture of 4 x 6 patches in the middle, 6 visual tokens."""
    config = model.config
    ids = [5, 6, config.vision_start_token_id, *[config.image_token_id] * 6, config.vision_end_token_id, 7, 8]
    tokens = torch.tensor([ids])
    pixels = torch.randn(24, 3 * 2 * 36, generator=torch.Generator().manual_seed(1)).to(model.dtype)
    model.model.rope_deltas = None
    with torch.no_grad():
        return model.eval().model(
            input_ids=tokens, mm_token_type_ids=(tokens == config.image_token_id).int(), pixel_values=pixels,
            image_grid_thw=torch.tensor([[1, 4, 6]]),
        ).last_hidden_state  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
def test_a_dense_model_comes_back_whole(tmp_path, words, tied, dtype):
    make(words, tmp_path / "in", dtype, tie_word_embeddings=tied)
    export(tmp_path / "in", tmp_path / "out", words)
    (model, _), (again, report) = (load(tmp_path / name, dtype="auto") for name in ("in", "out"))
    assert not any(report.values()), report
    assert again.dtype == dtype
    assert (again.lm_head.weight.data_ptr() == again.get_input_embeddings().weight.data_ptr()) == tied
    for (name, a), (same, b) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert name == same
        assert torch.equal(a, b), name
    states = hidden_states(model)
    assert states.abs().max() > 0.1
    assert torch.equal(states, hidden_states(again))


def test_the_config_says_the_same(tmp_path, words):
    model = make(words, tmp_path / "in", tie_word_embeddings=True)
    export(tmp_path / "in", tmp_path / "out", words)
    ours, theirs = Qwen2_5_VLConfig.from_pretrained(tmp_path / "out"), model.config
    for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                 "num_key_value_heads", "rms_norm_eps", "hidden_act", "use_sliding_window", "layer_types"):  # fmt: skip
        assert getattr(ours.text_config, name) == getattr(theirs.text_config, name), name
    rope = {"rope_theta": 1e5, "mrope_section": [2, 1, 1], "rope_type": "default"}
    assert {name: ours.text_config.rope_parameters[name] for name in rope} == rope
    known = theirs.vision_config.to_dict()
    for name in ("depth", "hidden_size", "hidden_act", "intermediate_size", "num_heads", "in_channels", "patch_size",
                 "spatial_merge_size", "temporal_patch_size", "window_size", "out_hidden_size"):  # fmt: skip
        assert getattr(ours.vision_config, name) == known[name], name
    assert list(ours.vision_config.fullatt_block_indexes) == [0]
    for name in ("image", "video", "vision_start", "vision_end"):
        assert getattr(ours, f"{name}_token_id") == getattr(theirs, f"{name}_token_id")
    assert read_config(tmp_path / "out")[0] == read_config(tmp_path / "in")[0]


def test_the_other_files_load_too(tmp_path, words):
    make(words, tmp_path / "in", tie_word_embeddings=True)
    export(tmp_path / "in", tmp_path / "out", words)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    special = words[0].special
    assert tokenizer("<|image_pad|>").input_ids == [special["<|image_pad|>"]]
    processor = Qwen2VLImageProcessorPil.from_pretrained(tmp_path / "out")
    assert (processor.size["shortest_edge"], processor.size["longest_edge"]) == (144, 14400)
    assert (processor.patch_size, processor.merge_size, processor.temporal_patch_size) == (6, 2, 2)
    generation = GenerationConfig.from_pretrained(tmp_path / "out")
    assert generation.eos_token_id == [special["<|im_end|>"], special["<|endoftext|>"]]
    assert not generation.do_sample


def test_of_a_mixture_exactly_the_ffn_is_missing(tmp_path, words):
    model = make(words, tmp_path / "in", tie_word_embeddings=True)
    moe = MoEConfig(experts=4, top_k=1)
    export(tmp_path / "in", tmp_path / "out", words, moe)
    assert read_moe(tmp_path / "out") == moe
    again, report = load(tmp_path / "out")
    layers = [f"layers.{i}.mlp" for i in range(3)]
    missing = {f"model.language_model.{at}.{n}_proj.weight" for at in layers for n in ("gate", "up", "down")}
    unexpected = {f"{at}.gate.weight" for at in layers} | {
        f"{at}.experts.{e}.{n}_proj.weight" for at in layers for e in range(4) for n in ("gate", "up", "down")
    }
    assert set(report["missing_keys"]) == missing
    assert {name[name.index("layers.") :] for name in report["unexpected_keys"]} == unexpected
    assert not report["mismatched_keys"]
    wanted = dict(model.named_parameters())
    for name, weight in again.named_parameters():
        assert torch.equal(weight, wanted[name]) == (name not in missing), name
    # with any expert in place of the FFN the model is the dense one, whose copies they are
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())["weight_map"]
    stored = {name: t for file in set(index.values()) for name, t in load_file(tmp_path / "out" / file).items()}
    with torch.no_grad():
        for i, layer in enumerate(again.model.language_model.layers):
            for n in ("gate", "up", "down"):
                expert = stored[f"model.layers.{i}.mlp.experts.{i + 1}.{n}_proj.weight"]
                getattr(layer.mlp, f"{n}_proj").weight.copy_(expert)
            assert np.std(stored[f"model.layers.{i}.mlp.gate.weight"].numpy()) > 0.01
    assert torch.equal(hidden_states(again), hidden_states(model))
