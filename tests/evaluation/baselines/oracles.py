"""The published way to make one embedding: one text and pictures, one sequence, no batch; by name of the baseline.

Prompts are strings with the special tokens written out, which the stock tokenizer takes apart again.
"""

import json
import math

import mm_embed_oracle
import numpy as np
import torch
import transformers


def vector(name, folder, text, pictures, kind="item"):
    """The unit vector of a text (may be "") and a list of Pillow pictures (may be empty)."""
    with torch.no_grad():
        if name == "mm_embed":
            return _mm_embed(folder, text, pictures, kind)
        if name in ("internvl3", "qwen2_5_vl", "gme"):
            return _unit(_SEQUENCES[name](folder, text, pictures))
        return _two_towers(name, folder, text, pictures)


def _unit(x):
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x)


def _processor(folder):
    return transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")


def _words(folder, **more):
    return transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **more)


_TWO_TOWERS = {
    "clip": (transformers.CLIPModel, 20, "<|endoftext|>"),
    "fashionclip": (transformers.CLIPModel, 20, "<|endoftext|>"),
    "siglip2": (transformers.SiglipModel, 16, "<pad>"),
    "siglip2_naflex": (transformers.Siglip2Model, 16, "<pad>"),
}


def _two_towers(name, folder, text, pictures):
    cls, length, pad = _TWO_TOWERS[name]
    model, total = cls.from_pretrained(folder).eval(), 0
    if text:
        words = _words(folder, pad_token=pad, padding_side="right")
        text = text if "clip" in name else text.lower()
        ids = words(text, padding="max_length", truncation=True, max_length=length, return_tensors="pt")["input_ids"]
        total = total + _unit(model.get_text_features(input_ids=ids).pooler_output[0])
    if pictures:
        found = [model.get_image_features(**_processor(folder)([p], return_tensors="pt")) for p in pictures]
        total = total + _unit(np.mean([_unit(f.pooler_output[0]) for f in found], axis=0))
    return _unit(total)


def _qwen(model, folder, prompt, pictures, size):
    """The last hidden states [s, d]; "<|image_pad|>" stands once for every picture."""
    processor, pixels, grids = _processor(folder), [], []
    for picture in pictures:
        made = processor([picture], return_tensors="pt", size=size)
        pixels.append(made["pixel_values"])
        grids.append(made["image_grid_thw"])
        prompt = prompt.replace("<|image_pad|>", "@" * int(made["image_grid_thw"].prod() // 4), 1)
    ids = _words(folder)(prompt.replace("@", "<|image_pad|>"), return_tensors="pt")["input_ids"]
    more = {"pixel_values": torch.cat(pixels), "image_grid_thw": torch.cat(grids)} if pictures else {}
    kinds = (ids == model.config.image_token_id).int()
    return model.model(input_ids=ids, mm_token_type_ids=kinds, **more).last_hidden_state[0]


def _qwen2_5_vl(folder, text, pictures):
    model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(folder).eval()
    prompt = "<|vision_start|><|image_pad|><|vision_end|>" * len(pictures) + text
    return _qwen(model, folder, prompt, pictures, {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 12}).mean(0)


def _gme(folder, text, pictures):
    model = transformers.Qwen2VLForConditionalGeneration.from_pretrained(folder).eval()
    token, limits = 28 * 28, json.loads((folder / "config.json").read_text())
    size = {"shortest_edge": limits["min_image_tokens"] * token, "longest_edge": limits["max_image_tokens"] * token}
    vectors = []
    for picture in pictures or [None]:
        middle, resized = text, []
        if picture is not None:
            width, height = picture.size
            w, h = max(28, round(width / 28) * 28), max(28, round(height / 28) * 28)
            if w * h < 4 * token:
                beta = math.sqrt(4 * token / (width * height))
                w, h = math.ceil(width * beta / 28) * 28, math.ceil(height * beta / 28) * 28
            resized = [picture.resize((w, h))]
            middle = f"<|vision_start|><|image_pad|><|vision_end|>{text}"
        prompt = (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            f"<|im_start|>user\n{middle}<|im_end|>\n<|im_start|>assistant\n<|endoftext|>"
        )
        vectors.append(_unit(_qwen(model, folder, prompt, resized, size)[-1]))
    return np.mean(vectors, axis=0)


def _internvl3(folder, text, pictures):
    model = transformers.InternVLForConditionalGeneration.from_pretrained(folder).eval()
    pixels = [_processor(folder)([p], return_tensors="pt", crop_to_patches=True)["pixel_values"] for p in pictures]
    prompt = "".join(f"<img>{'<IMG_CONTEXT>' * 4 * len(tiles)}</img>\n" for tiles in pixels) + text
    ids = _words(folder)(prompt, return_tensors="pt")["input_ids"]
    more = {"pixel_values": torch.cat(pixels)} if pixels else {}
    return model.model(input_ids=ids, **more).last_hidden_state[0].mean(0)


_SEQUENCES = {"qwen2_5_vl": _qwen2_5_vl, "gme": _gme, "internvl3": _internvl3}


def _mm_embed(folder, text, pictures, kind):
    what = "text" if not pictures else "given image and text" if text else "image"
    task = {
        "text": "Instruct: Find a product listing that matches the given text.",
        "image": "Instruct: Find a product listing that shows the product in the image.",
        "given image and text": "Instruct: Find a product listing that matches the given image and text.",
    }[what]
    vectors = []
    for picture in pictures or [None]:
        prompt = text if picture is None else f"<image>\n{text}"
        prompt, masked = (f"{task}\nQuery: {prompt}", task) if kind == "query" else (prompt, "")
        vectors.append(mm_embed_oracle.vector(folder, prompt, masked, picture))
    return _unit(np.mean(vectors, axis=0))
