"""Tiny random instances of all baselines, written as their folders on the hub look: weights, config, tokenizer."""

import json
import pathlib

import safetensors.torch
import tokenizers
import torch
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from moon_jax.data import tokenizer as qwen_tokenizer

TEXTS = (
    "a red mug for the kitchen",
    "Home > Mugs",
    "color: red; size: 12 oz",
    "Blue Running Shoes for men",
    "系列",
) * 4
QWEN_TEXT = dict(
    hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=4096, initializer_range=0.3,
)  # fmt: skip


def write(name: str, folder: pathlib.Path) -> pathlib.Path:
    """Writes the baseline's folder and returns it."""
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    _WRITERS[name](folder)
    return folder


def _save(model, folder: pathlib.Path, preprocessor: dict) -> None:
    with torch.no_grad():  # biases and norms that are 0 and 1 would hide mistakes
        for value in model.parameters():
            if value.ndim == 1:
                value += 0.1 * torch.randn_like(value)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))


def _byte_bpe(folder: pathlib.Path, special: list[str], normalizer, post: str) -> dict[str, int]:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    backend.add_special_tokens(special)
    backend.post_processor = processors.TemplateProcessing(
        single=post, special_tokens=[(token, backend.token_to_id(token)) for token in special]
    )
    backend.save(str(folder / "tokenizer.json"))
    return {token: backend.token_to_id(token) for token in special} | {"size": backend.get_vocab_size()}


def _clip(folder: pathlib.Path) -> None:
    start, end = "<|startoftext|>", "<|endoftext|>"
    ids = _byte_bpe(folder, [start, end], normalizers.Lowercase(), f"{start} $A {end}")
    sizes = dict(hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4)
    config = transformers.CLIPConfig(
        text_config=dict(sizes, vocab_size=ids["size"], max_position_embeddings=20, eos_token_id=2, bos_token_id=0),
        vision_config=dict(sizes, image_size=28, patch_size=7),
        projection_dim=24,
    )
    preprocessor = {
        "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 28}, "do_center_crop": True,
        "crop_size": {"height": 28, "width": 28},
    }  # fmt: skip
    _save(transformers.CLIPModel(config), folder, preprocessor)


def _siglip_parts(folder: pathlib.Path) -> dict:
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    ids = ["<pad>", "<eos>", "<bos>", "<unk>"]  # in the order of Gemma's
    backend.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=ids, show_progress=False)
    backend.train_from_iterator((text.lower() for text in TEXTS), trainer)
    backend.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    backend.enable_padding(length=16, pad_id=0, pad_token="<pad>")  # the published file pads by itself
    backend.save(str(folder / "tokenizer.json"))
    sizes = dict(hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4)
    text = dict(sizes, vocab_size=backend.get_vocab_size(), max_position_embeddings=16, projection_size=32)
    return {"text_config": text, "vision_config": sizes}


def _siglip2(folder: pathlib.Path) -> None:
    parts = _siglip_parts(folder)
    parts["vision_config"] |= {"image_size": 28, "patch_size": 7}
    preprocessor = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 28, "width": 28}}
    _save(transformers.SiglipModel(transformers.SiglipConfig(**parts)), folder, preprocessor)


def _naflex(folder: pathlib.Path) -> None:
    parts = _siglip_parts(folder)
    parts["vision_config"] |= {"num_patches": 16, "patch_size": 7}
    preprocessor = {"image_processor_type": "Siglip2ImageProcessor", "patch_size": 7, "max_num_patches": 20}
    _save(transformers.Siglip2Model(transformers.Siglip2Config(**parts)), folder, preprocessor)


def _qwen_words(folder: pathlib.Path, *more: str) -> tuple[int, dict[str, int]]:
    words = qwen_tokenizer.train_bpe(TEXTS, folder, 320)
    if more:
        backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        backend.add_special_tokens(list(more))
        backend.save(str(folder / "tokenizer.json"))
        return backend.get_vocab_size(), {token: backend.token_to_id(token) for token in more}
    return words.vocab_size, words.special


def _qwen(folder: pathlib.Path, config_class, model_class, vision: dict, preprocessor: dict) -> None:
    size, special = _qwen_words(folder)
    config = config_class(
        text_config=dict(
            QWEN_TEXT, vocab_size=size,
            rope_scaling={"type": "mrope", "rope_type": "default", "mrope_section": [1, 1, 2]}, rope_theta=10000.0,
        ),
        vision_config=vision,
        image_token_id=special["<|image_pad|>"],
        video_token_id=special["<|video_pad|>"],
        vision_start_token_id=special["<|vision_start|>"],
        vision_end_token_id=special["<|vision_end|>"],
        tie_word_embeddings=True,
    )  # fmt: skip
    _save(model_class(config), folder, {"image_processor_type": "Qwen2VLImageProcessor", **preprocessor})


def _qwen2_5_vl(folder: pathlib.Path) -> None:
    vision = dict(
        depth=2, hidden_size=32, intermediate_size=40, num_heads=2, out_hidden_size=32, patch_size=14, window_size=56,
        fullatt_block_indexes=[1], spatial_merge_size=2, temporal_patch_size=2,
    )  # fmt: skip
    pixels = {"min_pixels": 28 * 28, "max_pixels": 28 * 28 * 12}
    _qwen(folder, transformers.Qwen2_5_VLConfig, transformers.Qwen2_5_VLForConditionalGeneration, vision, pixels)


def _gme(folder: pathlib.Path) -> None:
    vision = dict(depth=2, embed_dim=32, hidden_size=32, num_heads=2, mlp_ratio=2, patch_size=14)
    _qwen(folder, transformers.Qwen2VLConfig, transformers.Qwen2VLForConditionalGeneration, vision, {})
    file = folder / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"min_image_tokens": 4, "max_image_tokens": 12, "max_length": 150}))


def _internvl3(folder: pathlib.Path) -> None:
    size, special = _qwen_words(folder, "<img>", "</img>", "<IMG_CONTEXT>")
    config = transformers.InternVLConfig(
        vision_config=dict(
            hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2, image_size=[28, 28],
            patch_size=[7, 7],
        ),
        text_config=dict(QWEN_TEXT, model_type="qwen2", vocab_size=size),
        image_token_id=special["<IMG_CONTEXT>"],
        image_seq_length=4,
    )  # fmt: skip
    preprocessor = {
        "image_processor_type": "GotOcr2ImageProcessorFast", "size": {"height": 28, "width": 28}, "max_patches": 4,
    }  # fmt: skip
    _save(transformers.InternVLForConditionalGeneration(config), folder, preprocessor)


def _mm_embed(folder: pathlib.Path) -> None:
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(vocab_size=250, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    alphabet = ["Instruct: Find a product listing that shows the image.\nQuery: matches given text and", *TEXTS]
    backend.train_from_iterator(alphabet, trainer)
    vocab = backend.get_vocab_size()  # the retriever's: <image> and <pad> lie beyond it
    backend.add_special_tokens(["<image>", "<pad>"])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    backend.save(str(folder / "tokenizer.json"))
    text = dict(
        model_type="mistral", vocab_size=vocab, hidden_size=32, intermediate_size=40, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-5, rope_theta=10000.0, sliding_window=4096,
    )  # fmt: skip
    vision = dict(
        model_type="clip_vision_model", hidden_size=24, intermediate_size=40, num_hidden_layers=3,
        num_attention_heads=4, image_size=28, patch_size=7, projection_dim=8, vocab_size=99,
    )  # fmt: skip
    config = {
        "model_type": "llava_next", "architectures": ["NVMMEmbedModel"], "retriever": "nv_embed",
        "auto_map": {"AutoModel": "modeling_nvmmembed.NVMMEmbedModel"}, "global_image_patch_only": True,
        "image_grid_pinpoints": [[28, 56], [56, 28], [56, 56]], "image_token_index": vocab, "padding_side": "right",
        "projector_hidden_act": "gelu", "text_config": text | {"rope_theta": 1e6, "vocab_size": vocab + 64},
        "vision_config": vision, "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
    }  # fmt: skip
    latent = {"num_latents_value": 6, "num_cross_heads": 2, "hidden_dim": 32, "latent_dim": 32, "cross_dim_head": 12}
    (folder / "nv_embed").mkdir()
    (folder / "nv_embed/config.json").write_text(json.dumps({"text_config": text, "latent_attention_config": latent}))
    (folder / "config.json").write_text(json.dumps(config))
    preprocessor = {
        "image_processor_type": "LlavaNextImageProcessor", "size": {"shortest_edge": 28},
        "crop_size": {"height": 28, "width": 28}, "image_grid_pinpoints": config["image_grid_pinpoints"],
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))

    tower = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**vision)).state_dict()
    language = transformers.MistralModel(transformers.MistralConfig(**text)).state_dict()
    shapes = {f"vision_tower.vision_model.{name}": tuple(value.shape) for name, value in tower.items()}
    shapes |= {f"language_model.{name}": tuple(value.shape) for name, value in language.items()}
    shapes |= {"image_newline": (32,), "latent_attention_model.latents": (6, 32)}
    shapes |= {"multi_modal_projector.linear_1.weight": (32, 24), "multi_modal_projector.linear_2.weight": (32, 32)}
    shapes |= {f"multi_modal_projector.linear_{i}.bias": (32,) for i in (1, 2)}
    block = "latent_attention_model.cross_attend_blocks"
    shapes |= {f"{block}.0.fn.{name}.weight": size for name, size in
               (("to_q", (24, 32)), ("to_kv", (48, 32)), ("to_out", (32, 24)))}  # fmt: skip
    shapes |= {f"{block}.1.fn.net.0.weight": (256, 32), f"{block}.1.fn.net.0.bias": (256,)}
    shapes |= {f"{block}.1.fn.net.2.weight": (32, 128), f"{block}.1.fn.net.2.bias": (32,)}
    for norm in ("0.norm", "0.norm_context", "1.norm"):
        shapes |= {f"{block}.{norm}.{part}": (32,) for part in ("weight", "bias")}
    weights = {name: 0.3 * torch.randn(size) for name, size in shapes.items() if not name.endswith("position_ids")}
    weights = {name: value + ("norm" in name and name.endswith("weight")) for name, value in weights.items()}
    positions = torch.arange(17)[None]  # a buffer, as old checkpoints have it
    weights["vision_tower.vision_model.embeddings.position_ids"] = positions
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})


_WRITERS = {
    "clip": _clip,
    "fashionclip": _clip,
    "siglip2": _siglip2,
    "siglip2_naflex": _naflex,
    "internvl3": _internvl3,
    "qwen2_5_vl": _qwen2_5_vl,
    "gme": _gme,
    "mm_embed": _mm_embed,
}
NAMES = tuple(_WRITERS)
