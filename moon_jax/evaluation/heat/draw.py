"""One record's weights in, its picture files and its entry of the index out."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from moon_jax.config import DataConfig, VisionConfig
from moon_jax.data.grids import tile_grid, tile_limits
from moon_jax.data.tokenizer import Tokenizer
from moon_jax.evaluation.heat.cases import Case
from moon_jax.evaluation.heat.folder import WITH, WITHOUT, HeatmapFolder
from moon_jax.evaluation.heat.maps import AttentionMap, even_attention
from moon_jax.evaluation.heat.sheet import SMALL_TILE, fit, overlay, sheet, split_sheet, top_of, views
from moon_jax.evaluation.heat.values import heat_values

SPLITS = ("no", "layers", "heads")


@dataclasses.dataclass(frozen=True)
class Drawing:
    """What is drawn of the weights, and how.

    Attributes:
        tokenizer: of the model.
        data: of the model: how pictures are cropped, padded and cut into tiles.
        vision: of the model.
        causal: whether a token sees only itself and what is before it.
        rollout_layers: 0, or all layers where the maps are rollouts.
        layers: the layers to average.
        heads: the heads to average.
        scale: one of `values.SCALES`.
        split: one of `SPLITS`: also draws a small map for each of the layers or heads.
    """

    tokenizer: Tokenizer
    data: DataConfig
    vision: VisionConfig
    causal: bool
    rollout_layers: int
    layers: Sequence[int]
    heads: Sequence[int]
    scale: str
    split: str

    def about(self) -> dict[str, Any]:
        """Returns what the index says of the values."""
        return {
            "method": "rollout" if self.rollout_layers else "attention", "layers": list(self.layers),
            "heads": list(self.heads), "scale": self.scale, "attention": "causal" if self.causal else "bidirectional",
        }  # fmt: skip

    def draw(self, case: Case, maps: Mapping[str, AttentionMap], folder: HeatmapFolder) -> dict[str, Any]:
        """Writes the picture files of a record; returns its entry: record, id, png, npz and `heat_values` by condition.

        Args:
            case: the record.
            maps: its maps by condition.
            folder: where the files go.
        """
        shown = views(case.document, self.data)
        entry = {"record": case.number, "id": case.id, "png": folder.file(case.number, ".png").name}
        entry |= {name: self._values(attention, shown, self.layers, self.heads) for name, attention in maps.items()}
        sheet(entry, shown, self.scale, self._heading()).save(folder.file(case.number, ".png"))
        entry["npz"] = folder.file(case.number, ".npz").name
        if self.split != "no" and shown:
            path = folder.file(case.number, f"_{self.split}.png")
            self._split(case, maps[WITH] if WITH in maps else maps[WITHOUT], shown).save(path)
            entry[f"png_{self.split}"] = path.name
        return entry

    def _values(
        self, attention: AttentionMap, shown: Sequence[Image.Image], layers: Sequence[int], heads: Sequence[int]
    ) -> dict[str, Any]:
        even = even_attention(len(attention.tokens), self.causal, self.rollout_layers)
        tiles = [self._tiles(image) for image in shown] if self.vision.kind == "internvl" else ()
        return heat_values(attention, self.tokenizer, layers, heads, even, tiles)

    def _tiles(self, image: Image.Image) -> tuple[int, int]:
        side = self.vision.intern.image_size
        return tile_grid(
            image.height, image.width, side, *tile_limits(self.data.min_pixels, self.data.max_pixels, side)
        )

    def _split(self, case: Case, attention: AttentionMap, shown: Sequence[Image.Image]) -> Image.Image:
        one_by_one, of_layers = getattr(self, self.split), self.split == "layers"
        single = [((n,), self.heads) if of_layers else (self.layers, (n,)) for n in one_by_one]
        pictures = [self._values(attention, shown, *pair)["pictures"][0] for pair in single]
        top, size = top_of(pictures, self.scale), fit(shown[0].size, SMALL_TILE)
        tiles = [
            (f"{self.split[:-1]} {number}", overlay(shown[0], np.array(picture[self.scale]), top, size))
            for number, picture in zip(one_by_one, pictures, strict=True)
        ]
        others = mean_of("head", self.heads) if of_layers else mean_of("layer", self.layers)
        return split_sheet(tiles, (case.id, f"the first picture, {self.split} one by one, {others}"))

    def _heading(self) -> str:
        if self.rollout_layers:
            return "attention rollout through all layers"
        return f"attention of the embedding, {mean_of('layer', self.layers)}, {mean_of('head', self.heads)}"


def mean_of(kind: str, numbers: Sequence[int]) -> str:
    """Returns how a heading says what is averaged: "layer 3", "mean of heads 0-3"."""
    return f"mean of {kind}s {runs(numbers)}" if len(numbers) > 1 else f"{kind} {runs(numbers)}"


def runs(numbers: Sequence[int]) -> str:
    """Returns rising numbers as short as `parse_numbers` reads them: "0-5, 11"."""
    starts = [n for n in numbers if n - 1 not in numbers]
    ends = [n for n in numbers if n + 1 not in numbers]
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))
