"""Qwen2.5-VL (Bai et al. 2025, arXiv:2502.13923) as it is, the folder of Qwen/Qwen2.5-VL-3B-Instruct."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers
from jaxtyping import Float, Int
from PIL import Image

from moon_jax.evaluation.baselines.sequences import TEXT_TOKENS, SequenceModel, Tokens
from moon_jax.evaluation.baselines.words import Words

VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"


class QwenVL(SequenceModel):
    """What Qwen2-VL and Qwen2.5-VL have in common: the picture's tokens and the call of the model."""

    config_class: type
    model_class: type
    template: tuple[str, ...] = ()  # further special tokens of the prompt

    def set_up(self) -> None:
        """Reads config, tokenizer and picture processor."""
        self._config = self.config_class.from_dict(self.folder.config)
        self._words = Words(self.folder, (VISION_START, VISION_END, *self.template))
        self._pictures = self.picture_processor()
        self._pixels = self.pixel_limits()

    def load_model(self) -> torch.nn.Module:
        """Returns the model without its head."""
        # Through the class with the head: the one without it may leave a tower random (5.23, names of version 5).
        return self.weights(self.model_class, self._config, optional=("lm_head.weight",)).model

    def pixel_limits(self) -> tuple[int, int]:
        """Returns the least and the most pixels of a picture: the folder's, or `max_pixels`."""
        size = self._pictures.size
        most = self.options.max_pixels or size["longest_edge"]
        return min(size["shortest_edge"], most), most

    def picture_ids(self, picture: Image.Image) -> tuple[list[int], dict[str, torch.Tensor]]:
        """Returns the tokens of a picture between its brackets, and its tensors."""
        least, most = self._pixels
        tensors = self.picture_tensors(picture, size={"shortest_edge": least, "longest_edge": most})
        count = int(tensors["image_grid_thw"].prod()) // self._config.vision_config.spatial_merge_size**2
        return [self._words[VISION_START], *[self._config.image_token_id] * count, self._words[VISION_END]], tensors

    def hidden(
        self, ids: Int[torch.Tensor, "m s"], mask: Int[torch.Tensor, "m s"], pictures: Mapping[str, torch.Tensor]
    ) -> Float[torch.Tensor, "m s d"]:
        """Returns the last hidden states, with three-part positions where there are pictures."""
        kinds = (ids == self._config.image_token_id).int() if pictures else None
        found = self.model(input_ids=ids, attention_mask=mask, mm_token_type_ids=kinds, use_cache=False, **pictures)
        return found.last_hidden_state


class Qwen25VL(QwenVL):
    """Document as our own model reads it without a prompt: pictures, then texts with a line end between them.

    The paper does not say how a model made for generation is asked for embeddings; the mean over all tokens is what it
    takes for its own (3.1), and what the fine-tuned form of this baseline starts from.
    """

    name = "qwen2_5_vl"
    model_types = ("qwen2_5_vl",)
    config_class, model_class = transformers.Qwen2_5_VLConfig, transformers.Qwen2_5_VLForConditionalGeneration
    rules: Mapping[str, str] = {
        "text": "mean of the last hidden states; no prompt, texts of a document joined by a line end",
        "image": "mean of the last hidden states over the picture's tokens and its two brackets",
        "item": "one sequence: pictures, then texts; mean over all of it",
        "several_pictures": "all in one sequence, in order",
        "source": "MOON, section 3.1 (mean pooling); the prompt is ours",
    }

    def settings(self) -> dict[str, Any]:
        """Returns pixels and token limit."""
        return {"pixels": list(self._pixels), "text_tokens": TEXT_TOKENS, "pooling": self.pooling}

    def tokens(self, text: str, pictures: Sequence[Image.Image], kind: str) -> Tokens:
        """Returns pictures, then text."""
        parts = [self.picture_ids(picture) for picture in pictures]
        ids, cut = self._words.encode(text, TEXT_TOKENS)
        tensors = {name: torch.cat([part[name] for _, part in parts]) for name in (parts[0][1] if parts else ())}
        return Tokens([*(token for part, _ in parts for token in part), *ids], tensors, cut=cut)
