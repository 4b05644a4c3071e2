"""MM-Embed (Lin et al. 2024, arXiv:2411.02571), the folder of nvidia/MM-Embed, rebuilt: none of its code is run.

CLIP's picture tower and LLaVA-NeXT's projector in front of NV-Embed; the rules are those of its modeling_nvmmembed.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers
from jaxtyping import Float, Int
from PIL import Image
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel, LlavaNextPreTrainedModel

from moon_jax.evaluation.baselines import nv_embed
from moon_jax.evaluation.baselines.folder import BaselineError, ModelFolder
from moon_jax.evaluation.baselines.sequences import SequenceModel, Tokens
from moon_jax.evaluation.baselines.words import Words

RETRIEVER = "nvidia/NV-Embed-v1"
START, END = "<s>", "</s>"
IMAGE = -1  # in place of a token id
TEXT_TOKENS = 512  # of the whole prompt, the picture counting as one: the published default
# [ours] The card wants an instruction for every query and gives those of other tasks; these are in their style.
INSTRUCTIONS = {
    "image": "Find a product listing that shows the product in the image.",
    "text": "Find a product listing that matches the given text.",
    "item": "Find a product listing that matches the given image and text.",
}


class MMEmbedModel(LlavaNextPreTrainedModel):
    """The parts under their published names, so that transformers' loader finds the weights."""

    def __init__(self, config: transformers.LlavaNextConfig):
        super().__init__(config)
        self.model = LlavaNextModel(config)
        latent = config.latent_attention
        self.latent_attention_model = nv_embed.LatentAttention(
            latent["num_latents_value"], latent["num_cross_heads"], latent["hidden_dim"], latent["cross_dim_head"]
        )
        self.post_init()

    def picture_features(self, pixels: Float[torch.Tensor, "n 3 h w"]) -> Float[torch.Tensor, "n f d"]:
        """Returns the projected patches of the whole picture with the line-end vector behind them."""
        states = self.model.vision_tower(pixels.to(self.dtype), output_hidden_states=True).hidden_states
        patches = states[self.config.vision_feature_layer]
        if self.config.vision_feature_select_strategy == "default":
            patches = patches[:, 1:]
        features = self.model.multi_modal_projector(patches)
        return torch.cat([features, self.model.image_newline.expand(len(features), 1, -1)], dim=1)


class MMEmbed(SequenceModel):
    """A query: "Instruct: {task}", line end, "Query: ", picture, text; anything else: picture, text; <s> </s> around.

    Only the small picture of the whole is seen (`global_image_patch_only`). Attention looks both ways; the instruction
    is attended to but not pooled.
    """

    name = "mm_embed"
    model_types = ("llava_next",)
    single_picture = True
    rules: Mapping[str, str] = {
        "text": "NV-Embed's latent attention pooling over <s> text </s>; texts of a document joined by a line end",
        "image": "the same over <s> picture </s>, 576 patches and a line-end vector",
        "item": "the same over <s> picture, text </s>",
        "several_pictures": "unit mean of the vectors of each picture with the whole text: the rules know one picture",
        "instruction": f"queries only, not pooled: {INSTRUCTIONS}",
        "source": "arXiv:2411.02571, arXiv:2405.17428; modeling_nvmmembed.py of the model's folder",
    }

    def set_up(self) -> None:
        """Reads config, tokenizer and picture processor."""
        text, latent = self._retriever = _retriever(self.folder)
        given = {**self.folder.config, "text_config": {**text, "model_type": "mistral"}}
        self._config = config = transformers.LlavaNextConfig.from_dict(given)
        config.latent_attention = latent
        self._words = Words(self.folder, (START, END, "<image>"))
        self._pictures = self.picture_processor()
        side = config.vision_config.image_size
        self._seen = f"{side}x{side} px, squeezed"
        self._features = (side // config.vision_config.patch_size) ** 2 + 1
        if config.vision_feature_select_strategy != "default":
            self._features += 1

    def load_model(self) -> torch.nn.Module:
        """Returns the model."""
        return self.weights(MMEmbedModel, self._config)

    def settings(self) -> dict[str, Any]:
        """Returns pixels and token limit."""
        return {
            "pixels": self._seen,
            "sequence_tokens": TEXT_TOKENS,
            "pooling": "latent attention",
            "retriever": self._retriever,
        }

    def tokens(self, text: str, pictures: Sequence[Image.Image], kind: str) -> Tokens:
        """Returns the prompt with `IMAGE` in the places of the picture."""
        ids, unpooled = [self._words[START]], 0
        asked = kind == "query"
        if asked:
            task = INSTRUCTIONS["text" if not pictures else "item" if text else "image"]
            # As published: the instruction is tokenised with start and end, so the line end after it is left out too.
            unpooled = len(self._words.encode(f"Instruct: {task}")[0]) + 2
            prompt = f"Instruct: {task}\nQuery: "
            if not pictures:
                text = prompt + text
            else:
                ids += self._words.encode(prompt)[0]
        tensors, counted = {}, 0
        if pictures:
            ids += [IMAGE] * self._features
            counted = self._features - 1
            text = f"\n{text}"
            tensors["pixel_values"] = self.picture_tensors(pictures[0])["pixel_values"][:, 0]
        words, cut = self._words.encode(text, TEXT_TOKENS - 1 - (len(ids) - counted))
        return Tokens([*ids, *words, self._words[END]], tensors, unpooled, cut)

    def hidden(
        self, ids: Int[torch.Tensor, "m s"], mask: Int[torch.Tensor, "m s"], pictures: Mapping[str, torch.Tensor]
    ) -> Float[torch.Tensor, "m s d"]:
        """Returns the last hidden states of the language model, every token seeing every other."""
        language = self.model.model.language_model
        inputs = language.embed_tokens(ids.clamp(min=0))
        if pictures:
            features = self.model.picture_features(pictures["pixel_values"])
            inputs = inputs.masked_scatter((ids == IMAGE)[..., None], features.to(inputs.dtype))
        seen = mask.bool()[:, None, None, :].expand(-1, 1, mask.shape[1], -1)
        return language(inputs_embeds=inputs, attention_mask=seen, use_cache=False).last_hidden_state

    def pool(
        self, hidden: Float[torch.Tensor, "m s d"], pooled: Int[torch.Tensor, "m s"]
    ) -> Float[torch.Tensor, "m d"]:
        """Returns the pooled vectors."""
        return self.model.latent_attention_model(hidden, pooled)


def _retriever(folder: ModelFolder) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the configs of text model and pooling: the published ones, or those of a folder that config.json names.

    config.json has a text_config too, which belongs to the LLaVA-NeXT that training began with.
    """
    name = folder.config.get("retriever")
    if name == RETRIEVER:
        return dict(nv_embed.TEXT_CONFIG), dict(nv_embed.LATENT_CONFIG)
    if not isinstance(name, str) or not (folder.path / name / "config.json").is_file():
        raise BaselineError(
            f"{folder.path}/config.json: retriever is {name!r}, not {RETRIEVER!r} or a folder with a config.json"
        )
    config = folder.json(f"{name}/config.json")
    return config["text_config"], nv_embed.LATENT_CONFIG | config.get("latent_attention_config", {})
