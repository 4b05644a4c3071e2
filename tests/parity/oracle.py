"""Three families as transformers computes them, in torch, one document at a time: what ours must equal.

Tiny models with weights of a trained model's scale, documents of random tokens and pictures, and for each document
the intermediate results as numpy. Traps that this file steps around: `AutoModel` leaves the vision tower random under
some names, `rope_deltas` survives a call, and positions silently become 1-D without `mm_token_type_ids`.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

VOCAB = 160
IMAGE_PAD, VIDEO_PAD, VISION_START, VISION_END = 150, 151, 152, 153
TILES = 6  # of a picture of InternVL at most
TEXT_IDS = 150  # ordinary token ids are below
Model = Qwen2_5_VLForConditionalGeneration | Qwen2VLForConditionalGeneration | InternVLForConditionalGeneration
CLASSES = {
    "qwen2_5_vl": (Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration),
    "qwen2_vl": (Qwen2VLConfig, Qwen2VLForConditionalGeneration),
    "internvl": (InternVLConfig, InternVLForConditionalGeneration),
}
Part = int | tuple[int, int] | list[int] | Image.Image  # so many random tokens, a drawn picture of (height, width)
# pixels, or given token ids, a given picture


def make_model(text: dict, vision: dict, seed: int = 0, kind: str = "qwen2_5_vl", **root) -> Model:
    """A model of these sizes whose activations neither vanish nor explode; no weight keeps its initial value."""
    config_class, model_class = CLASSES[kind]
    text = {"vocab_size": VOCAB, "bos_token_id": None, "eos_token_id": None} | text
    root = {"image_token_id": IMAGE_PAD, "tie_word_embeddings": True} | root
    if kind == "internvl":
        text["model_type"] = "qwen2"
        root["image_seq_length"] = (vision["image_size"] // vision["patch_size"] // 2) ** 2
    else:
        vision = {"hidden_size" if kind == "qwen2_vl" else "out_hidden_size": text["hidden_size"]} | vision
        ids = {"video_token_id": VIDEO_PAD, "vision_start_token_id": VISION_START, "vision_end_token_id": VISION_END}
        root = ids | root
    config = config_class(text_config=text, vision_config=vision, **root)
    model = model_class(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "embed_tokens" in name:
                p.normal_(0, 0.1, generator=generator)  # small: a tied head must not just say its token again
            elif "cls_token" in name or "position_embeddings" in name:
                p.normal_(0, 0.5, generator=generator)
            elif p.ndim > 1:
                p.normal_(0, math.prod(p.shape[1:]) ** -0.5, generator=generator)
            elif (("norm" in name or "ln_q" in name) and name.endswith("weight")) or "lambda" in name:
                p.normal_(1, 0.2, generator=generator)
            else:
                p.normal_(0, 0.3, generator=generator)
    return model.float().eval()


def patch_kernel(model: Model) -> torch.Tensor:
    """The weight of the patch embedding."""
    if isinstance(model, InternVLForConditionalGeneration):
        return model.model.vision_tower.embeddings.patch_embeddings.projection.weight
    return model.model.visual.patch_embed.proj.weight


def save(model: Model, folder: pathlib.Path, layout: str = "hub", **options) -> None:
    """Writes the model as it occurs in the wild.

    Args:
        model: is not changed.
        folder: is made.
        layout: "fresh" (what save_pretrained writes), "hub" (the same names, flat config without the vision fields that
            equal the class defaults), "v5" or "base" (the names inside transformers 5, with and without the head).
        **options: of save_pretrained, e.g. max_shard_size.
    """
    if layout in ("fresh", "hub"):
        model.save_pretrained(folder, **options)
    else:
        inner = model if layout == "v5" else model.model
        inner.save_pretrained(folder, save_original_format=False, **options)
    if layout == "hub" and not isinstance(model, InternVLForConditionalGeneration):
        path = folder / "config.json"
        root = json.loads(path.read_text())
        text, vision = root.pop("text_config"), root.pop("vision_config")
        rope = text.pop("rope_parameters")
        root["torch_dtype"] = root.pop("dtype")
        root |= {n: v for n, v in text.items() if n not in ("model_type", "layer_types")}
        root |= {
            "rope_theta": rope["rope_theta"],
            "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]},
        }
        usual = type(model.config.vision_config)()
        root["vision_config"] = {
            n: v for n, v in vision.items() if n != "rope_parameters" and v != getattr(usual, n, None)
        }
        path.write_text(json.dumps(root))


def load(folder: pathlib.Path, attention: str = "eager", dtype: torch.dtype = torch.float32) -> Model:
    """The model of a folder; every tensor of the folder has found its place."""
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    model, report = CLASSES[kind][1].from_pretrained(
        folder, dtype=dtype, attn_implementation=attention, output_loading_info=True
    )
    assert not any(report.values()), report
    return model.eval()


@dataclasses.dataclass(frozen=True)
class Expected:
    """One document and what transformers makes of it.

    Attributes:
        ids: token ids with the image pads of every picture, [n].
        images: the pictures.
        pixels: per picture [patches, C * T * P * P], as the image processor gives them.
        grids: per picture (rows, columns) in patches.
        positions: rotary positions (t, h, w), [3, n].
        visual: merged visual tokens of all pictures in raster order, [image pads, D].
        hidden: last hidden states, after the final norm, [n, D].
        embedding: their mean, normalised, [D].
        logits: of the output head, [n, vocabulary].
    """

    ids: np.ndarray
    images: tuple[Image.Image, ...]
    pixels: tuple[np.ndarray, ...]
    grids: tuple[tuple[int, int], ...]
    positions: np.ndarray
    visual: np.ndarray
    hidden: np.ndarray
    embedding: np.ndarray
    logits: np.ndarray


def image_processor(
    config: Qwen2_5_VLConfig | Qwen2VLConfig | InternVLConfig,
) -> Qwen2VLImageProcessorPil | GotOcr2ImageProcessorPil:
    """The processor for the model's patches that keeps the size of every picture above one visual token."""
    vision = config.vision_config
    if isinstance(config, InternVLConfig):  # as InternVLProcessor calls it
        size = dict(zip(("height", "width"), vision.image_size, strict=True))
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        return GotOcr2ImageProcessorPil(
            size=size, crop_to_patches=True, max_patches=TILES, image_mean=mean, image_std=std
        )
    return Qwen2VLImageProcessorPil(
        patch_size=vision.patch_size,
        temporal_patch_size=vision.temporal_patch_size,
        merge_size=vision.spatial_merge_size,
        min_pixels=(vision.patch_size * vision.spatial_merge_size) ** 2,
        max_pixels=10**8,
    )


def draw_image(height: int, width: int, rng: np.random.Generator) -> Image.Image:
    """A picture that differs everywhere: noise over a gradient."""
    shade = np.linspace(0, 120, width)[None, :, None] + np.linspace(0, 80, height)[:, None, None]
    return Image.fromarray((shade + rng.integers(0, 55, (height, width, 3))).astype(np.uint8))


def expect(model: Model, parts: Sequence[Part], seed: int = 0) -> Expected:
    """What transformers makes of one document, computed on its own."""
    rng = np.random.default_rng(seed)
    config, processor = model.config, image_processor(model.config)
    ids, images, pixels, grids = [], [], [], []
    for part in parts:
        if isinstance(part, list):
            ids += part
            continue
        if isinstance(part, int):
            ids += rng.integers(0, TEXT_IDS, part).tolist()
            continue
        images.append(part if isinstance(part, Image.Image) else draw_image(*part, rng))
        made = processor(images[-1], return_tensors="np")
        pixels.append(made["pixel_values"].astype(np.float32))
        if isinstance(config, InternVLConfig):
            count = int(made["num_patches"][0])
            side = config.vision_config.image_size[0] // config.vision_config.patch_size[0]
            h, w, merge = count * side, side, 2  # its tiles, one below the other
        else:
            (_, h, w), merge = made["image_grid_thw"][0].tolist(), config.vision_config.spatial_merge_size
        grids.append((h, w))
        start, end = (
            getattr(config, "vision_start_token_id", VISION_START),
            getattr(config, "vision_end_token_id", VISION_END),
        )
        ids += [start, *[config.image_token_id] * (h * w // merge**2), end]
    with torch.no_grad():
        positions, visual, hidden = forward(model, np.array(ids), pixels, grids)
        embedding, logits = pool(hidden), model.lm_head(hidden)
    return Expected(
        np.array(ids, np.int32), tuple(images), tuple(pixels), tuple(grids), positions.numpy().astype(np.int32),
        *(x.float().numpy() for x in (visual, hidden, embedding, logits)),
    )  # fmt: skip


def inputs(model: Model, ids: np.ndarray, pixels: Sequence[np.ndarray], grids: Sequence) -> dict[str, torch.Tensor]:
    """What the model is called with, for ids [n] of a document or [b, n] of several; their pictures in order."""
    model.model.rope_deltas = None
    tokens = torch.from_numpy(ids).long().reshape(-1, ids.shape[-1])
    made = {"input_ids": tokens}
    if isinstance(model, InternVLForConditionalGeneration):
        return made | ({"pixel_values": torch.from_numpy(np.concatenate(pixels)).to(model.dtype)} if pixels else {})
    if pixels:
        made["mm_token_type_ids"] = (tokens == model.config.image_token_id).int()
        made["pixel_values"] = torch.from_numpy(np.concatenate(pixels)).to(model.dtype)
        made["image_grid_thw"] = torch.tensor([(1, h, w) for h, w in grids])
    return made


def forward(
    model: Model, ids: np.ndarray, pixels: Sequence[np.ndarray], grids: Sequence
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(positions [3, n], visual tokens [v, D], last hidden states [n, D]) of one document, differentiable."""
    inner, made = model.model, inputs(model, ids, pixels, grids)
    hidden = inner(**made).last_hidden_state[0]
    if not pixels:
        return torch.arange(len(ids)).expand(3, -1), hidden[:0], hidden
    if isinstance(model, InternVLForConditionalGeneration):
        visual = inner.get_image_features(made["pixel_values"], **VISION_LAYER).pooler_output.flatten(0, 1)
        return torch.arange(len(ids)).expand(3, -1), visual, hidden
    tokens, types, values, grid = made.values()
    positions, _ = inner.get_rope_index(tokens, mm_token_type_ids=types, image_grid_thw=grid)
    return positions[:, 0], torch.cat(inner.get_image_features(values, grid).pooler_output), hidden


VISION_LAYER = {"vision_feature_layer": -1, "vision_feature_select_strategy": "default"}  # InternVL's


def padded(model: Model, documents: Sequence[Expected], side: str) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    """(what the model is called with for all documents in one batch, which of its tokens are real [b, n])."""
    longest = max(len(d.ids) for d in documents)
    ids, real = np.zeros((len(documents), longest), np.int64), np.zeros((len(documents), longest), bool)
    for row, document in enumerate(documents):
        here = slice(longest - len(document.ids), None) if side == "left" else slice(len(document.ids))
        ids[row, here], real[row, here] = document.ids, True
    pixels, grids = [x for d in documents for x in d.pixels], [x for d in documents for x in d.grids]
    return inputs(model, ids, pixels, grids) | {"attention_mask": torch.from_numpy(real).long()}, real


def continue_one(model: Model, document: Expected, new: int, eos: Sequence[int] = ()) -> list[int]:
    """The greedy continuation of a document by itself, with its eos token if it comes to one."""
    made = inputs(model, document.ids, document.pixels, document.grids)
    made["attention_mask"] = torch.ones_like(made["input_ids"])  # or every token with the pad's id counts as padding
    return _generate(model, made, new, eos)[0, len(document.ids) :].tolist()


def continue_batch(model: Model, documents: Sequence[Expected], new: int) -> list[list[int]]:
    """The greedy continuations of all documents in one batch, padded on the left."""
    made, real = padded(model, documents, "left")
    return _generate(model, made, new, ())[:, real.shape[1] :].tolist()


def _generate(model: Model, made: dict[str, torch.Tensor], new: int, eos: Sequence[int]) -> torch.Tensor:
    with torch.no_grad():
        return model.generate(
            **made, max_new_tokens=new, do_sample=False, eos_token_id=list(eos) or None, pad_token_id=0
        )


def pool(hidden: torch.Tensor) -> torch.Tensor:
    """The mean over the tokens, normalised."""
    return torch.nn.functional.normalize(hidden.mean(0), dim=0)
