"""Multimodal language models as embedders: pictures and texts in one sequence, its hidden states pooled."""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from PIL import Image

from moon_jax.data.documents import Document
from moon_jax.evaluation.baselines.torch_model import Inputs, TorchBaseline, mean_by_owner, pictures_of, text_of

TEXT_TOKENS = 512  # [ours] of a document's texts, where the model's authors do not say


@dataclasses.dataclass(frozen=True)
class Tokens:
    """A sequence for the model.

    Attributes:
        ids: token ids.
        tensors: of its pictures, to be joined over the batch along the first axis.
        unpooled: so many of the first tokens do not count in the pooling.
        cut: the text was cut.
    """

    ids: list[int]
    tensors: dict[str, torch.Tensor]
    unpooled: int = 0
    cut: bool = False


class SequenceModel(TorchBaseline):
    """A language model that sees pictures. A subclass builds the sequence of a document and runs the model.

    Attributes:
        single_picture: the authors' rules know one picture an embedding; of several, each is embedded with the whole
            text. Else all pictures stand in one sequence.
        pooling: "mean" of the last hidden states, or that of the "last" token.
    """

    single_picture = False
    pooling = "mean"
    pad_id = 0  # never attended to

    @property
    def size(self) -> int:
        """Width of the vectors."""
        return self._config.text_config.hidden_size

    @abc.abstractmethod
    def tokens(self, text: str, pictures: Sequence[Image.Image], kind: str) -> Tokens:
        """Returns the sequence of a text and pictures; `kind` is that of the document ("query", "item", "plain")."""

    @abc.abstractmethod
    def hidden(
        self, ids: Int[torch.Tensor, "m s"], mask: Int[torch.Tensor, "m s"], pictures: Mapping[str, torch.Tensor]
    ) -> Float[torch.Tensor, "m s d"]:
        """Returns the last hidden states after the final norm."""

    def picture_tensors(self, picture: Image.Image, **settings: Any) -> dict[str, torch.Tensor]:
        """Returns what the folder's processor makes of one picture, by the names that the processor gives."""
        return dict(self._pictures(images=[picture], return_tensors="pt", **settings))

    def read(self, documents: Sequence[Document]) -> Inputs:
        """Returns the batch padded on the right; see `TorchBaseline`."""
        rows: list[Tokens] = []
        owners: list[int] = []
        count = 0
        cut: set[int] = set()
        for place, document in enumerate(documents):
            pictures, text = pictures_of(document), text_of(document, "\n")
            count += len(pictures)
            apart = self.single_picture and len(pictures) > 1
            for part in [[picture] for picture in pictures] if apart else [pictures]:
                rows.append(self.tokens(text, part, document.kind))
                owners.append(place)
                if rows[-1].cut:
                    cut.add(place)
        longest = max(len(row.ids) for row in rows)
        tensors = {
            "ids": torch.tensor([row.ids + [self.pad_id] * (longest - len(row.ids)) for row in rows]),
            "mask": torch.tensor([[1] * len(row.ids) + [0] * (longest - len(row.ids)) for row in rows]),
        }
        tensors["pooled"] = tensors["mask"].clone()
        for place, row in enumerate(rows):
            tensors["pooled"][place, : row.unpooled] = 0
        for name in {name: None for row in rows for name in row.tensors}:
            tensors[name] = torch.cat([row.tensors[name] for row in rows if name in row.tensors])
        return Inputs(len(documents), tensors, {"sequence": owners}, count, len(cut))

    def forward(self, inputs: Inputs) -> Float[torch.Tensor, "n d"]:
        """Returns the pooled sequence of every document, or the mean of its sequences' unit vectors."""
        pictures = dict(inputs.tensors)
        ids, mask, pooled = (pictures.pop(name) for name in ("ids", "mask", "pooled"))
        vectors = self.pool(self.hidden(ids, mask, pictures), pooled)
        return mean_by_owner(vectors, inputs.owners["sequence"], inputs.documents)

    def pool(
        self, hidden: Float[torch.Tensor, "m s d"], pooled: Int[torch.Tensor, "m s"]
    ) -> Float[torch.Tensor, "m d"]:
        """Returns a vector a sequence.

        Args:
            hidden: last hidden states.
            pooled: 1 for the tokens that count.
        """
        if self.pooling == "last":
            places = torch.arange(hidden.shape[1], device=hidden.device)
            return hidden[torch.arange(len(hidden), device=hidden.device), (pooled * places).argmax(1)]
        weights = pooled.float()[..., None]
        return (hidden.float() * weights).sum(1) / weights.sum(1)
