"""Twelve kinds of picture files with Chinese and English texts around them, as chats, on both sides."""

import pathlib
from collections.abc import Callable

import measures
import numpy as np
import oracle
import ours
from cases import Sizes
from PIL import Image, ImageOps
from transformers import AutoTokenizer

from moon_jax.data import picture_files, prompts, tokenizer

SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
PROMPT = SYSTEM + "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
TEXTS = (
    "Where is the mug? Answer in JSON.",
    "请找出图片中的保温杯，并返回坐标。",
    "Red running shoes, size 42\n",
    "纯棉T恤 2件装 ￥99.90",
    "It's a 15\" laptop — 1.3 kg.",
    "儿童雨伞（黄色）",
    "  Two  spaces and a\ttab",
    "产品类别：家居 > 厨房 > 杯具",
    "Café crème, 250 ml",
    "颜色: 红; 尺码: XL",
    "🙂 emoji, ½ price",
    "第二张与第一张是同一件商品吗？",
)


def noise(height: int, width: int, channels: int = 3) -> Image.Image:
    rng = np.random.default_rng(height * 1000 + width)
    return Image.fromarray(rng.integers(0, 256, (height, width, channels)).astype(np.uint8).squeeze())


def _transparent_palette() -> Image.Image:
    image = noise(57, 86).quantize(16)
    image.info["transparency"] = 3
    return image


def _rotated() -> Image.Image:
    image = noise(56, 112)
    image.getexif()[0x0112] = 6  # a camera that was held upright
    return image


# name of the file -> what is saved in it
FILES: dict[str, Callable[[], Image.Image]] = {
    "rgb.png": lambda: noise(84, 56),
    "rgba.png": lambda: noise(70, 90, 4),
    "gray-alpha.png": lambda: noise(60, 60, 4).convert("LA"),
    "palette.png": lambda: noise(56, 84).quantize(16),
    "palette-transparent.png": _transparent_palette,
    "gray.png": lambda: noise(66, 77, 1),
    "bilevel.png": lambda: noise(56, 56, 1).convert("1"),
    "cmyk.jpg": lambda: noise(56, 84).convert("CMYK"),
    "9x13.png": lambda: noise(9, 13),
    "300x21.webp": lambda: noise(21, 300),
    "odd-61x199.bmp": lambda: noise(199, 61),
    "exif-rotated.jpg": _rotated,
}


def prepare(folder: pathlib.Path) -> measures.Pair:
    """A model with a small vocabulary of its own, and one chat for every kind of picture and one about two pictures.

    Transformers reads the files with Pillow (turned by their EXIF data, which its processor does not do) and the texts
    with its own tokenizer; ours come from our loader and our chat template.
    """
    words = tokenizer.train_bpe([*TEXTS, *PROMPT] * 3, folder, 600)
    theirs = AutoTokenizer.from_pretrained(folder)
    special = {f"{name}_token_id": words.special[f"<|{name}|>"] for name in ("vision_start", "vision_end")}
    special |= {f"{name}_token_id": words.special[f"<|{name}_pad|>"] for name in ("image", "video")}
    reference = measures.checkpoint(Sizes(tied=False), folder, vocab=words.vocab_size, **special)
    model = ours.load(folder)

    def read(text: str) -> list[int]:
        return theirs(text)["input_ids"]

    upright, pictures = {}, {}
    for name, draw in FILES.items():
        draw().save(folder / name, **({"exif": draw().getexif()} if "exif" in name else {}))
        with Image.open(folder / name) as image:
            image.load()
            upright[name] = ImageOps.exif_transpose(image) if "exif" in name else image
        pictures[name] = ours.prepare(picture_files.load(str(folder / name)), model.config.vision)

    names, (before, after) = list(FILES), PROMPT
    chats = [((name,), text) for name, text in zip(names, TEXTS, strict=True)] + [((names[1], names[-1]), TEXTS[-1])]
    expected, encoded = [], []
    for files, text in chats:
        parts = (read(before), *(upright[name] for name in files), read(text + after))
        expected.append(oracle.expect(reference, parts))
        encoded.append(prompts.encode_chat([*(pictures[n] for n in files), text], words, model.config.vision))
        assert encoded[-1].tokens.tolist() == expected[-1].ids.tolist(), (files, text)
    return measures.Pair(folder, model, reference, tuple(expected), tuple(encoded))
