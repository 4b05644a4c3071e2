"""Sizes of the backbones: which vision tower, and how large it and the language model are."""

import dataclasses
from typing import NamedTuple


class Backbone(NamedTuple):
    """A family of published models."""

    title: str
    architecture: str  # the class of transformers that computes it
    processor: str  # and the one that prepares its input
    coordinates: str  # in which it was taught to say boxes: `GroundingConfig.coordinates`


BACKBONES = {  # by `model.vision.kind`, which is the model_type of its config.json
    "qwen2_5_vl": Backbone("Qwen2.5-VL", "Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLProcessor", "absolute"),
    "qwen2_vl": Backbone("Qwen2-VL", "Qwen2VLForConditionalGeneration", "Qwen2VLProcessor", "relative"),
    "internvl": Backbone("InternVL", "InternVLForConditionalGeneration", "InternVLProcessor", "relative"),
}

PACKED_SIDE = 4  # merged tokens: the squares in which pictures share memory where attention has no windows


@dataclasses.dataclass(frozen=True)
class InternConfig:
    """What only InternViT has, named as in its `vision_config`; the defaults are InternVL3-2B's."""

    image_size: int = 448  # side of a tile in px
    attention_bias: bool = True
    use_qk_norm: bool = False
    norm_type: str = "layer_norm"  # or "rms_norm"
    layer_norm_eps: float = 1e-6


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """Sizes of the vision tower, named as in the `vision_config` of Qwen2.5-VL; the defaults are the 3B model's.

    `window_size` and `fullatt_block_indexes` belong to kind "qwen2_5_vl", `intern` to "internvl"; for the others they
    stay at their defaults.
    """

    depth: int = 32
    hidden_size: int = 1280
    intermediate_size: int = 3420
    num_heads: int = 16
    in_channels: int = 3
    patch_size: int = 14
    spatial_merge_size: int = 2
    temporal_patch_size: int = 2
    window_size: int = 112
    fullatt_block_indexes: tuple[int, ...] = (7, 15, 23, 31)
    kind: str = "qwen2_5_vl"  # a key of BACKBONES
    intern: InternConfig = InternConfig()

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def patch_dim(self) -> int:
        """Numbers in one patch of a still image: channels * patch_size**2 (one frame; the model repeats it)."""
        return self.in_channels * self.patch_size**2

    @property
    def merge_unit(self) -> int:
        """Patches that the merger folds into one visual token."""
        return self.spatial_merge_size**2

    @property
    def mlp_matrices(self) -> int:
        """Matrices of a block's MLP: gate, up and down, or up and down."""
        return 3 if self.kind == "qwen2_5_vl" else 2

    @property
    def full_blocks(self) -> tuple[int, ...]:
        """Numbers of the blocks that attend within whole pictures; the others attend within windows or tiles."""
        if self.kind == "qwen2_5_vl":
            return self.fullatt_block_indexes
        return () if self.kind == "internvl" else tuple(range(self.depth))

    @property
    def tile_tokens(self) -> int:
        """Side of a tile of kind "internvl" in merged tokens."""
        return self.intern.image_size // self.spatial_merge_size // self.patch_size

    @property
    def window(self) -> int:
        """Side of a window in merged tokens: of attention, a tile, or the square in which pictures lie in a slot.

        Attention's is window_size // merge // patch, as transformers floors it.
        """
        if self.kind == "qwen2_5_vl":
            return self.window_size // self.spatial_merge_size // self.patch_size
        return self.tile_tokens if self.kind == "internvl" else PACKED_SIDE

    @property
    def window_patches(self) -> int:
        """Patches in a full window: the chunk within which windowed blocks attend."""
        return self.window**2 * self.merge_unit


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Sizes of the Qwen2 or Qwen2.5 language model, named as in its config; the defaults are Qwen2.5-VL-3B's."""

    vocab_size: int = 151936
    hidden_size: int = 2048
    intermediate_size: int = 11008
    num_hidden_layers: int = 36
    num_attention_heads: int = 16
    num_key_value_heads: int = 2
    head_dim: int = 128
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-6
    mrope_section: tuple[int, ...] = (16, 24, 24)
