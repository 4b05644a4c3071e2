"""GME (Zhang et al. 2024, arXiv:2412.16855), the folder of Alibaba-NLP/gme-Qwen2-VL-2B-Instruct.

Rebuilt from the rules of its gme_inference.py, whose wrapper does not load in transformers 5; the weights are those of
a Qwen2-VL under its own names.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import transformers
from PIL import Image

from moon_jax.data.grids import smart_resize
from moon_jax.evaluation.baselines.qwen2_5_vl import QwenVL
from moon_jax.evaluation.baselines.sequences import Tokens

INSTRUCTION = "You are a helpful assistant."  # the default, and always that of what is not a query
START, END, TEXT_END = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
_TOKEN_PX = 28 * 28
_FIRST_SIZE = (4 * _TOKEN_PX, 16384 * _TOKEN_PX)  # pixels of the first of the two resizings
_LIMITS = {"min_image_tokens": 256, "max_image_tokens": 1280, "max_length": 1800}


class Gme(QwenVL):
    """A turn of chat with the picture before the text, ended by <|endoftext|>, whose last hidden state is the vector.

    Too long a text is cut, where the original cuts the end of the sequence and with it the token that it pools.
    """

    name = "gme"
    model_types = ("qwen2_vl",)
    config_class, model_class = transformers.Qwen2VLConfig, transformers.Qwen2VLForConditionalGeneration
    template = (START, END, TEXT_END)
    single_picture = True
    pooling = "last"
    rules: Mapping[str, str] = {
        "text": "hidden state of the last token, <|endoftext|>, after one turn of chat with the default instruction; "
        "texts of a document joined by a line end",
        "image": "the same, the picture in the place of the text",
        "item": "the same, the picture before the text",
        "several_pictures": "unit mean of the vectors of each picture with the whole text: the rules know one picture",
        "instruction": INSTRUCTION,
        "source": "arXiv:2412.16855; gme_inference.py of the model's folder",
    }

    def pixel_limits(self) -> tuple[int, int]:
        """Returns the least and the most pixels of a picture: 256 to 1280 tokens, or `max_pixels`."""
        self._most_tokens = int(self._limit("max_length"))
        most = self.options.max_pixels or int(self._limit("max_image_tokens")) * _TOKEN_PX
        return min(int(self._limit("min_image_tokens")) * _TOKEN_PX, most), most

    def _limit(self, name: str) -> int:
        return self.folder.config.get(name, _LIMITS[name])

    def settings(self) -> dict[str, Any]:
        """Returns pixels and token limit."""
        return {"pixels": list(self._pixels), "sequence_tokens": self._most_tokens, "pooling": self.pooling}

    def tokens(self, text: str, pictures: Sequence[Image.Image], kind: str) -> Tokens:
        """Returns the whole turn; queries and items alike, as without an instruction for the task."""
        special, words = self._words, self._words.encode
        head = [special[START], *words(f"system\n{INSTRUCTION}")[0], special[END], *words("\n")[0], special[START]]
        tail = [special[END], *words("\n")[0], special[START], *words("assistant\n")[0], special[TEXT_END]]
        tensors = {}
        if pictures:
            part, tensors = self.picture_ids(_first_resize(pictures[0]))
            head += [*words("user\n")[0], *part]
        else:
            text = f"user\n{text}"
        ids, cut = words(text, self._most_tokens - len(head) - len(tail))
        return Tokens([*head, *ids, *tail], tensors, cut=cut)


def _first_resize(picture: Image.Image) -> Image.Image:
    """Returns the picture with sides of whole tokens, as `fetch_image` does before the processor resizes it again."""
    width, height = (max(28, round(side / 28) * 28) for side in picture.size)
    if not _FIRST_SIZE[0] <= width * height <= _FIRST_SIZE[1]:
        height, width = smart_resize(picture.height, picture.width, 28, *_FIRST_SIZE)
    return picture.resize((width, height))
