"""InternVL3 (Zhu et al. 2025, arXiv:2504.10479) as it is, the folder of OpenGVLab/InternVL3-2B-hf."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers
from jaxtyping import Float, Int
from PIL import Image

from moon_jax.evaluation.baselines.sequences import TEXT_TOKENS, SequenceModel, Tokens
from moon_jax.evaluation.baselines.words import Words

IMAGE_START, IMAGE_END = "<img>", "</img>"


class InternVL3(SequenceModel):
    """A picture is cut into the grid of square tiles that fits its aspect best, and a small picture of all of it added.

    Every tile gives 256 tokens after the pixel shuffle. As in the published chat template, a line end follows each
    picture; there is no other prompt. Pooling is that of the paper's own model (3.1): the paper does not say how this
    one is asked for embeddings.
    """

    name = "internvl3"
    model_types = ("internvl",)
    rules: Mapping[str, str] = {
        "text": "mean of the last hidden states; no prompt, texts of a document joined by a line end",
        "image": "mean of the last hidden states over the tokens of all tiles, the two brackets and the line end",
        "item": "one sequence: pictures, a line end after each, then texts; mean over all of it",
        "several_pictures": "all in one sequence, in order",
        "source": "MOON, section 3.1 (mean pooling); transformers, InternVLProcessor (tiles); the prompt is ours",
    }

    def set_up(self) -> None:
        """Reads config, tokenizer and picture processor."""
        self._config = config = transformers.InternVLConfig.from_dict(self.folder.config)
        self._words = Words(self.folder, (IMAGE_START, IMAGE_END))
        self._pictures = self.picture_processor()
        self._side = self._pictures.size["height"]
        most = self.options.max_pixels
        self._tiles = self._pictures.max_patches if most is None else max(1, most // self._side**2)
        patches = config.vision_config.image_size[0] // config.vision_config.patch_size[0]
        self._tile_tokens = int((patches * config.downsample_ratio) ** 2)

    def load_model(self) -> torch.nn.Module:
        """Returns the model without its head."""
        kind = transformers.InternVLForConditionalGeneration
        return self.weights(kind, self._config, optional=("lm_head.weight",)).model

    def settings(self) -> dict[str, Any]:
        """Returns pixels and token limit."""
        tiles = f"1 to {self._tiles} tiles of {self._side}x{self._side} px and one of the whole"
        return {"pixels": tiles, "text_tokens": TEXT_TOKENS, "pooling": self.pooling}

    def tokens(self, text: str, pictures: Sequence[Image.Image], kind: str) -> Tokens:
        """Returns pictures, a line end after each, then text."""
        (line_end, _), (words, cut) = self._words.encode("\n"), self._words.encode(text, TEXT_TOKENS)
        ids, tiles = [], []
        for picture in pictures:
            found = self.picture_tensors(picture, crop_to_patches=True, max_patches=self._tiles)
            tiles.append(found["pixel_values"])
            count = len(tiles[-1]) * self._tile_tokens
            ids += [self._words[IMAGE_START], *[self._config.image_token_id] * count, self._words[IMAGE_END], *line_end]
        return Tokens(ids + words, {"pixel_values": torch.cat(tiles)} if tiles else {}, cut=cut)

    def hidden(
        self, ids: Int[torch.Tensor, "m s"], mask: Int[torch.Tensor, "m s"], pictures: Mapping[str, torch.Tensor]
    ) -> Float[torch.Tensor, "m s d"]:
        """Returns the last hidden states."""
        return self.model(input_ids=ids, attention_mask=mask, use_cache=False, **pictures).last_hidden_state
