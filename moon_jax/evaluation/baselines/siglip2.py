"""SigLIP 2 (Tschannen et al. 2025, arXiv:2502.14786): the models of one picture size, and NaFlex for any aspect."""

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from PIL import Image

from moon_jax.evaluation.baselines.two_towers import RULES, TwoTowers
from moon_jax.evaluation.baselines.words import Words

END, PAD = "<eos>", "<pad>"


class Siglip2(TwoTowers):
    """E.g. google/siglip2-so400m-patch14-384, whose config calls it "siglip".

    Text: lower case, at most 63 tokens, <eos>, padded to 64 on the right; the padding is seen (there is no mask in
    training), and the vector is that of the last place. Picture: squeezed to a square; attention pooling.
    """

    name = "siglip2"
    model_types: tuple[str, ...] = ("siglip",)
    config_class, model_class = transformers.SiglipConfig, transformers.SiglipModel
    rules: Mapping[str, str] = {
        **RULES,
        "source": "arXiv:2502.14786, section 2 (64 tokens, lower case); transformers, model_doc/siglip2",
    }

    @property
    def size(self) -> int:
        """Width of the vectors."""
        return self._config.vision_config.hidden_size

    def set_up(self) -> None:
        """Reads config, tokenizer and picture processor."""
        self._config = self.config_class.from_dict(self.folder.config)
        self._words = Words(self.folder, (END, PAD))
        self._tokens = self._config.text_config.max_position_embeddings
        self._pictures = self.picture_processor()

    def load_model(self) -> torch.nn.Module:
        """Returns the model."""
        return self.weights(self.model_class, self._config)

    def settings(self) -> dict[str, Any]:
        """Returns pixels and token limit."""
        return {"pixels": self.seen(), "text_tokens": self._tokens - 1}

    def seen(self) -> str:
        """Returns what the model sees of a picture."""
        side = self._config.vision_config.image_size
        return f"{side}x{side} px, squeezed"

    def text_ids(self, text: str) -> tuple[list[int], bool]:
        """Returns the text in lower case, <eos>, padding."""
        ids, cut = self._words.encode(text.lower(), self._tokens - 1)
        ids = [*ids, self._words[END]]
        return ids + [self._words[PAD]] * (self._tokens - len(ids)), cut


class Siglip2NaFlex(Siglip2):
    """E.g. google/siglip2-so400m-patch16-naflex, whose config calls it "siglip2".

    A picture keeps its aspect: it is scaled so that at most `max_num_patches` patches cover it (256 by default).
    """

    name = "siglip2_naflex"
    model_types = ("siglip2",)
    config_class, model_class = transformers.Siglip2Config, transformers.Siglip2Model

    def seen(self) -> str:
        """Returns what the model sees of a picture."""
        side = self._pictures.patch_size
        return f"at most {self._patches} patches of {side}x{side} px"

    @property
    def _patches(self) -> int:
        most = self.options.max_pixels
        return self._pictures.max_num_patches if most is None else max(1, most // self._pictures.patch_size**2)

    def pixels(self, pictures: list[Image.Image]) -> dict[str, torch.Tensor]:
        """Returns pixel_values [n, patches, patch_dim], pixel_attention_mask [n, patches], spatial_shapes [n, 2]."""
        return dict(self._pictures(images=pictures, max_num_patches=self._patches, return_tensors="pt"))
