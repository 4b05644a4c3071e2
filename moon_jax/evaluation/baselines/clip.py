"""CLIP (Radford et al. 2021, arXiv:2103.00020), e.g. the folder of openai/clip-vit-large-patch14."""

from collections.abc import Mapping
from typing import Any

import torch
import transformers

from moon_jax.evaluation.baselines.folder import BaselineError
from moon_jax.evaluation.baselines.two_towers import RULES, TwoTowers
from moon_jax.evaluation.baselines.words import Words

START, END = "<|startoftext|>", "<|endoftext|>"


class Clip(TwoTowers):
    """Text: start, at most 75 tokens, end; the hidden state at the end, projected. Picture: the class token, projected.

    The text has no prompt around it ("a photo of a ..." is a recipe for class names, paper 3.1.4).
    """

    name = "clip"
    model_types = ("clip",)
    rules: Mapping[str, str] = {**RULES, "source": "arXiv:2103.00020, section 2.4; the model card's code"}

    @property
    def size(self) -> int:
        """Width of the vectors."""
        return self._config.projection_dim

    def set_up(self) -> None:
        """Reads config, tokenizer and picture processor.

        Raises:
            BaselineError: the tokenizer's end token is not the one whose hidden state the model takes.
        """
        self._config = config = transformers.CLIPConfig.from_dict(self.folder.config)
        self._words = Words(self.folder, (START, END))
        end, top = config.text_config.eos_token_id, self._words.size - 1
        # 2 is what the published configs have by mistake; transformers then takes the place of the largest id
        if end != self._words[END] and not (end == 2 and self._words[END] == top):
            raise BaselineError(
                f"{self.folder.path}: texts end with token {end} for config.json, {self._words[END]} for tokenizer.json"
            )
        self._tokens = config.text_config.max_position_embeddings
        self._pictures = self.picture_processor()

    def load_model(self) -> torch.nn.Module:
        """Returns the CLIPModel."""
        return self.weights(transformers.CLIPModel, self._config)

    def settings(self) -> dict[str, Any]:
        """Returns pixels and token limit."""
        side = self._config.vision_config.image_size
        return {"pixels": f"{side}x{side} px from its middle", "text_tokens": self._tokens - 2}

    def text_ids(self, text: str) -> tuple[list[int], bool]:
        """Returns start, text, end and padding behind it, which nothing in front of it sees."""
        ids, cut = self._words.encode(text, self._tokens - 2)
        ids = [self._words[START], *ids, self._words[END]]
        return ids + [self._words[END]] * (self._tokens - len(ids)), cut
