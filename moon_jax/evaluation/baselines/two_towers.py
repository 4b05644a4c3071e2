"""Models with one encoder for texts and one for pictures: how their two vectors become one."""

import abc
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from PIL import Image

from moon_jax.data.documents import Document
from moon_jax.evaluation.baselines.torch_model import (
    Inputs,
    TorchBaseline,
    mean_by_owner,
    pictures_of,
    text_of,
)

RULES: Mapping[str, str] = {
    "text": "the text encoder's projected vector; texts of a document joined by a space",
    "image": "the picture encoder's projected vector",
    "item": "the sum of the unit text vector and the unit picture vector (score fusion of UniIR, arXiv:2311.17136)",
    "several_pictures": "the unit mean of the pictures' unit vectors stands for them",
}


class TwoTowers(TorchBaseline):
    """A dual encoder. A subclass gives the ids of a text, and what else differs from the calls of CLIP."""

    rules = RULES

    @abc.abstractmethod
    def text_ids(self, text: str) -> tuple[list[int], bool]:
        """Returns the ids, always as many, and whether the text was cut."""

    def pixels(self, pictures: list[Image.Image]) -> dict[str, torch.Tensor]:
        """Returns {"pixel_values": [n, 3, side, side]}, or what else `image_vectors` takes."""
        return {"pixel_values": self._pictures(images=pictures, return_tensors="pt")["pixel_values"]}

    def text_vectors(self, ids: torch.Tensor) -> Float[torch.Tensor, "n d"]:
        """Returns the text encoder's vectors."""
        return self.model.get_text_features(input_ids=ids).pooler_output

    def image_vectors(self, tensors: Mapping[str, torch.Tensor]) -> Float[torch.Tensor, "n d"]:
        """Returns the picture encoder's vectors."""
        return self.model.get_image_features(**tensors).pooler_output

    def read(self, documents: Sequence[Document]) -> Inputs:
        """Returns the batch; see `TorchBaseline`."""
        inputs = Inputs(len(documents), {}, {"text": [], "image": []})
        ids, pictures = [], []
        for place, document in enumerate(documents):
            if text := text_of(document, " "):
                new, cut = self.text_ids(text)
                ids.append(new)
                inputs.cut_texts += cut
                inputs.owners["text"].append(place)
            found = pictures_of(document)
            pictures += found
            inputs.owners["image"] += [place] * len(found)
        if ids:
            inputs.tensors["ids"] = torch.tensor(ids)
        if pictures:
            inputs.tensors |= self.pixels(pictures)
        inputs.pictures = len(pictures)
        return inputs

    def forward(self, inputs: Inputs) -> Float[torch.Tensor, "n d"]:
        """Returns the sum of each document's unit text vector and unit picture vector, of those that it has."""
        tensors = dict(inputs.tensors)
        total = torch.zeros((inputs.documents, self.size), device=self.device)
        if (ids := tensors.pop("ids", None)) is not None:
            total += mean_by_owner(self.text_vectors(ids), inputs.owners["text"], inputs.documents)
        if tensors:
            total += mean_by_owner(self.image_vectors(tensors), inputs.owners["image"], inputs.documents)
        return total
