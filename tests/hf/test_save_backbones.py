"""Every backbone out of transformers and into it again: each weight the same bit, each setting the same value."""

import json

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from transformers import (  # noqa: E402
    AutoConfig,
    InternVLConfig,
    InternVLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil  # noqa: E402
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil  # noqa: E402

from moon_jax.config import MoEConfig  # noqa: E402
from moon_jax.convert import Options, convert  # noqa: E402
from moon_jax.data.patches import patchify  # noqa: E402
from moon_jax.data.tokenizer import train_bpe  # noqa: E402
from moon_jax.training.pretrained import open_pretrained  # noqa: E402
from moon_jax.weights.source import WeightsError  # noqa: E402

pytestmark = pytest.mark.torch

TEXT = {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-4, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip


def qwen2_vl(words, **root):
    rope = {"rope_type": "default", "rope_theta": 1e5, "mrope_section": [2, 1, 1]}
    vision = {"depth": 2, "embed_dim": 16, "mlp_ratio": 3, "num_heads": 2, "hidden_size": 32, "patch_size": 6}
    tokens = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end"}
    ids = {f"{name}_token_id": words.special[f"<|{token}|>"] for name, token in tokens.items()}
    config = Qwen2VLConfig(text_config=TEXT | {"rope_parameters": rope}, vision_config=vision, **ids, **root)
    return Qwen2VLForConditionalGeneration(config)


def internvl(words, **root):
    rope = {"rope_type": "default", "rope_theta": 1e5}
    vision = {
        "num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 20, "num_attention_heads": 2, "patch_size": 6,
        "image_size": 24, "attention_bias": True, "use_qk_norm": True, "norm_type": "rms_norm",
    }  # fmt: skip
    config = InternVLConfig(
        text_config=TEXT | {"model_type": "qwen2", "rope_parameters": rope}, vision_config=vision,
        image_token_id=words.special["<|image_pad|>"], image_seq_length=4, **root,
    )  # fmt: skip
    return InternVLForConditionalGeneration(config)


MODELS = {"qwen2_vl": qwen2_vl, "internvl": internvl}


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    return train_bpe(["红色连衣裙 red dress"] * 3, folder, 300), folder


def write(kind, words, folder, dtype=torch.float32, **root):
    """A published folder: weights in several files, and a tokenizer."""
    torch.manual_seed(0)
    model = MODELS[kind](words[0], **root)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.to(dtype).save_pretrained(folder, max_shard_size="30KB")
    for file in words[1].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", MODELS)
def test_there_and_back_again(tmp_path, words, kind, tied, dtype):
    model = write(kind, words, tmp_path / "in", dtype, tie_word_embeddings=tied)
    convert(tmp_path / "in", tmp_path / "ours", Options("jax"), progress=False)
    convert(tmp_path / "ours", tmp_path / "out", Options("hf"), progress=False)
    again, report = type(model).from_pretrained(tmp_path / "out", dtype="auto", output_loading_info=True)
    assert not any(report.values()), report
    assert again.dtype == dtype
    assert (again.lm_head.weight.data_ptr() == again.get_input_embeddings().weight.data_ptr()) == tied
    for (name, a), (same, b) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert name == same
        assert torch.equal(a, b), name
    wanted, found = (AutoConfig.from_pretrained(tmp_path / name).to_dict() for name in ("in", "out"))
    found["text_config"]["rope_parameters"].pop("type", None)  # the published word for it, beside theirs
    for part in ("text_config", "vision_config"):
        for name in found[part].keys() & wanted[part].keys() - IGNORED:
            assert found[part][name] == wanted[part][name], (part, name)
    with open_pretrained(tmp_path / "in") as first, open_pretrained(tmp_path / "out") as last:
        assert first.spec == last.spec
        assert last.spec.model.vision.kind == kind
        assert last.spec.data.grounding.coordinates == "relative"


IGNORED = {"dtype", "torch_dtype", "architectures", "max_position_embeddings", "max_window_layers", "_name_or_path",
           "bos_token_id", "eos_token_id", "pad_token_id", "model_type", "initializer_range"}  # fmt: skip


@pytest.mark.parametrize("kind", MODELS)
def test_every_ffn_becomes_experts(tmp_path, words, kind):
    write(kind, words, tmp_path / "in", tie_word_embeddings=True)
    convert(tmp_path / "in", tmp_path / "ours", Options("jax", experts=4), progress=False)
    convert(tmp_path / "ours", tmp_path / "out", Options("hf"), progress=False)
    with open_pretrained(tmp_path / "in") as dense, open_pretrained(tmp_path / "out") as mixture:
        assert mixture.spec.moe == MoEConfig(experts=4)
        for name in ("gate", "up", "down"):
            ffn, experts = dense.source.read(f"text/layers/ffn/{name}"), mixture.source.read(f"text/layers/moe/{name}")
            assert experts.shape == (3, 4, *ffn.shape[1:])
            np.testing.assert_array_equal(experts, np.broadcast_to(ffn[:, None], experts.shape))
    readme = (tmp_path / "out" / "README.md").read_text()
    assert MODELS[kind](words[0]).__class__.__name__ in readme


def test_the_processor_of_qwen2_vl_gives_our_pixels(tmp_path, words):
    write("qwen2_vl", words, tmp_path / "in", tie_word_embeddings=True)
    convert(tmp_path / "in", tmp_path / "out", Options("hf"), progress=False)
    processor = Qwen2VLImageProcessorPil.from_pretrained(tmp_path / "out")
    with open_pretrained(tmp_path / "out") as opened:
        data, vision = opened.spec.data, opened.spec.model.vision
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 77, 3), np.uint8))
    theirs = processor(image, return_tensors="np")
    ours = patchify(image, vision, data.min_pixels, data.max_pixels)
    assert theirs["image_grid_thw"].tolist() == [[1, *ours.grid]]
    frames = theirs["pixel_values"].reshape(-1, 3, 2, 36)
    np.testing.assert_allclose(ours.patches.reshape(-1, 3, 36), frames[:, :, 0], atol=2e-6)


def test_the_processor_of_internvl_gives_our_tiles(tmp_path, words):
    write("internvl", words, tmp_path / "in", tie_word_embeddings=True)
    settings = {"min_patches": 2, "max_patches": 5, "size": {"height": 24, "width": 24}}
    (tmp_path / "in" / "preprocessor_config.json").write_text(json.dumps(settings))
    convert(tmp_path / "in", tmp_path / "out", Options("hf"), progress=False)
    processor = GotOcr2ImageProcessorPil.from_pretrained(tmp_path / "out")
    with open_pretrained(tmp_path / "out") as opened:
        data, vision = opened.spec.data, opened.spec.model.vision
    for size in ((50, 77), (24, 24), (100, 11)):
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8))
        theirs = processor(image, return_tensors="np")["pixel_values"]
        ours = patchify(image, vision, data.min_pixels, data.max_pixels)
        assert ours.grid == (4 * len(theirs), 4)
        cut = theirs.reshape(-1, 3, 2, 2, 6, 2, 2, 6).transpose(0, 2, 5, 3, 6, 1, 4, 7)
        np.testing.assert_allclose(ours.patches, cut.reshape(-1, 108), atol=2e-6)
    (tmp_path / "in" / "preprocessor_config.json").write_text(json.dumps(settings | {"size": {"height": 30}}))
    with pytest.raises(WeightsError, match=r"size is \{'height': 30\}; the model needs"):
        open_pretrained(tmp_path / "in")
