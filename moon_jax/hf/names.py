"""The ONE table between the tensors of a checkpoint and our parameters, usable in both directions.

A row says what one layer's tensor is called, where it lives in our tree, and how its axes are laid out, in one
pattern: "(kv group head) width -> width kv group head" reads "their axis 0 is kv * group * head, ours are four axes".
The pattern gives both shapes, the way here (`to_ours`) and, read backwards, the way back (`to_hf`). Everything works
on one layer (and expert) at a time, so a whole checkpoint never has to be in memory twice.
"""

import dataclasses
import math
from collections.abc import Collection

import numpy as np
from jaxtyping import Shaped

from moon_jax.config import ModelConfig, MoEConfig, VisionConfig

# Prefixes of the two halves of the model in the layouts that occur: published ones (and what a fresh save_pretrained
# of transformers 5 still writes), saved under the names of transformers 5, and the base model without its head.
LAYOUTS: dict[str, dict[str, str]] = {
    "hub": {"text": "model.", "vision": "visual."},
    "v5": {"text": "model.language_model.", "vision": "model.visual."},
    "base": {"text": "language_model.", "vision": "visual."},
}
_TOWER = {"vision": "vision_tower.", "projector": "multi_modal_projector."}
_INTERN_LAYOUTS: dict[str, dict[str, str]] = {
    "hub": {"text": "language_model.model.", **_TOWER},
    "v5": {"text": "model.language_model.", **{part: f"model.{prefix}" for part, prefix in _TOWER.items()}},
    "base": {"text": "language_model.", **_TOWER},
}
HEAD = "lm_head.weight"  # [vocab, width]; no part of the embedding model

_TEXT = {
    "embed_tokens.weight": ("embed", "vocab width"),
    "norm.weight": ("norm", "width"),
    "layers.{layer}.input_layernorm.weight": ("layers.norm1", "width"),
    "layers.{layer}.self_attn.q_proj.weight": ("layers.q", "(kv group head) width -> width kv group head"),
    "layers.{layer}.self_attn.q_proj.bias": ("layers.q_bias", "(kv group head) -> kv group head"),
    "layers.{layer}.self_attn.k_proj.weight": ("layers.k", "(kv head) width -> width kv head"),
    "layers.{layer}.self_attn.k_proj.bias": ("layers.k_bias", "(kv head) -> kv head"),
    "layers.{layer}.self_attn.v_proj.weight": ("layers.v", "(kv head) width -> width kv head"),
    "layers.{layer}.self_attn.v_proj.bias": ("layers.v_bias", "(kv head) -> kv head"),
    "layers.{layer}.self_attn.o_proj.weight": ("layers.o", "width (kv group head) -> kv group head width"),
    "layers.{layer}.post_attention_layernorm.weight": ("layers.norm2", "width"),
}
_DENSE = {
    "layers.{layer}.mlp.gate_proj.weight": ("layers.ffn.gate", "ffn width -> width ffn"),
    "layers.{layer}.mlp.up_proj.weight": ("layers.ffn.up", "ffn width -> width ffn"),
    "layers.{layer}.mlp.down_proj.weight": ("layers.ffn.down", "width ffn -> ffn width"),
}
_EXPERTS = {  # ours alone: Qwen2.5-VL has none; named as the mixtures of the Qwen family are
    "layers.{layer}.mlp.gate.weight": ("layers.moe.router", "experts width -> width experts"),
    "layers.{layer}.mlp.experts.{expert}.gate_proj.weight": ("layers.moe.gate", "ffn width -> width ffn"),
    "layers.{layer}.mlp.experts.{expert}.up_proj.weight": ("layers.moe.up", "ffn width -> width ffn"),
    "layers.{layer}.mlp.experts.{expert}.down_proj.weight": ("layers.moe.down", "width ffn -> ffn width"),
}
_ATTENTION = {
    "patch_embed.proj.weight": ("patch_embed", "width channel frame row col -> frame (channel row col) width"),
    "blocks.{layer}.norm1.weight": ("blocks.norm1", "width"),
    "blocks.{layer}.attn.qkv.weight": ("blocks.qkv", "(qkv heads head) width -> width qkv heads head"),
    "blocks.{layer}.attn.qkv.bias": ("blocks.qkv_bias", "(qkv heads head) -> qkv heads head"),
    "blocks.{layer}.attn.proj.weight": ("blocks.proj", "width (heads head) -> heads head width"),
    "blocks.{layer}.attn.proj.bias": ("blocks.proj_bias", "width"),
    "blocks.{layer}.norm2.weight": ("blocks.norm2", "width"),
}
_MERGER = {
    "merger.ln_q.weight": ("merger.norm", "width"),
    "merger.mlp.0.weight": ("merger.fc1", "mid merged -> merged mid"),
    "merger.mlp.0.bias": ("merger.fc1_bias", "mid"),
    "merger.mlp.2.weight": ("merger.fc2", "out mid -> mid out"),
    "merger.mlp.2.bias": ("merger.fc2_bias", "out"),
}
_QWEN2_5_MLP = {
    "blocks.{layer}.mlp.gate_proj.weight": ("blocks.gate", "ffn width -> width ffn"),
    "blocks.{layer}.mlp.gate_proj.bias": ("blocks.gate_bias", "ffn"),
    "blocks.{layer}.mlp.up_proj.weight": ("blocks.up", "ffn width -> width ffn"),
    "blocks.{layer}.mlp.up_proj.bias": ("blocks.up_bias", "ffn"),
    "blocks.{layer}.mlp.down_proj.weight": ("blocks.down", "width ffn -> ffn width"),
    "blocks.{layer}.mlp.down_proj.bias": ("blocks.down_bias", "width"),
}
_QWEN2_MLP = {
    "blocks.{layer}.norm1.bias": ("blocks.norm1_bias", "width"),
    "blocks.{layer}.norm2.bias": ("blocks.norm2_bias", "width"),
    "blocks.{layer}.mlp.fc1.weight": ("blocks.up", "ffn width -> width ffn"),
    "blocks.{layer}.mlp.fc1.bias": ("blocks.up_bias", "ffn"),
    "blocks.{layer}.mlp.fc2.weight": ("blocks.down", "width ffn -> ffn width"),
    "blocks.{layer}.mlp.fc2.bias": ("blocks.down_bias", "width"),
    "merger.ln_q.bias": ("merger.norm_bias", "width"),
}
_VISION = {  # by `VisionConfig.kind`
    "qwen2_5_vl": _ATTENTION | _QWEN2_5_MLP | _MERGER,
    "qwen2_vl": _ATTENTION | _QWEN2_MLP | _MERGER,
}
_INTERN = {
    "embeddings.cls_token": ("class_token", "one two width -> (one two width)"),
    "embeddings.position_embeddings": ("position_table", "one positions width -> (one positions) width"),
    "embeddings.patch_embeddings.projection.weight": (
        "patch_embed", "(width frame) channel row col -> frame (channel row col) width",
    ),
    "embeddings.patch_embeddings.projection.bias": ("patch_bias", "width"),
    "encoder.layer.{layer}.layernorm_before.weight": ("blocks.norm1", "width"),
    "encoder.layer.{layer}.layernorm_before.bias": ("blocks.norm1_bias", "width"),
    "encoder.layer.{layer}.attention.q_proj.weight": ("blocks.q", "(heads head) width -> width heads head"),
    "encoder.layer.{layer}.attention.q_proj.bias": ("blocks.q_bias", "(heads head) -> heads head"),
    "encoder.layer.{layer}.attention.q_norm.weight": ("blocks.q_norm", "(heads head) -> heads head"),
    "encoder.layer.{layer}.attention.k_proj.weight": ("blocks.k", "(heads head) width -> width heads head"),
    "encoder.layer.{layer}.attention.k_proj.bias": ("blocks.k_bias", "(heads head) -> heads head"),
    "encoder.layer.{layer}.attention.k_norm.weight": ("blocks.k_norm", "(heads head) -> heads head"),
    "encoder.layer.{layer}.attention.v_proj.weight": ("blocks.v", "(heads head) width -> width heads head"),
    "encoder.layer.{layer}.attention.v_proj.bias": ("blocks.v_bias", "(heads head) -> heads head"),
    "encoder.layer.{layer}.attention.projection_layer.weight": (
        "blocks.proj", "width (heads head) -> heads head width",
    ),
    "encoder.layer.{layer}.attention.projection_layer.bias": ("blocks.proj_bias", "width"),
    "encoder.layer.{layer}.lambda_1": ("blocks.layer_scale1", "width"),
    "encoder.layer.{layer}.layernorm_after.weight": ("blocks.norm2", "width"),
    "encoder.layer.{layer}.layernorm_after.bias": ("blocks.norm2_bias", "width"),
    "encoder.layer.{layer}.mlp.fc1.weight": ("blocks.up", "ffn width -> width ffn"),
    "encoder.layer.{layer}.mlp.fc1.bias": ("blocks.up_bias", "ffn"),
    "encoder.layer.{layer}.mlp.fc2.weight": ("blocks.down", "width ffn -> ffn width"),
    "encoder.layer.{layer}.mlp.fc2.bias": ("blocks.down_bias", "width"),
    "encoder.layer.{layer}.lambda_2": ("blocks.layer_scale2", "width"),
}  # fmt: skip
_PROJECTOR = {
    "layer_norm.weight": ("merger.norm", "merged"),
    "layer_norm.bias": ("merger.norm_bias", "merged"),
    "linear_1.weight": ("merger.fc1", "out merged -> merged out"),
    "linear_1.bias": ("merger.fc1_bias", "out"),
    "linear_2.weight": ("merger.fc2", "out mid -> mid out"),
    "linear_2.bias": ("merger.fc2_bias", "out"),
}

Groups = tuple[tuple[str, ...], ...]  # per axis of an array, the named axes that are folded into it


@dataclasses.dataclass(frozen=True)
class Row:
    """One parameter of ours and the tensor (of each layer) that holds it in a checkpoint.

    Attributes:
        prefixes: what stands before the name, by layout.
        name: the tensor's name without the layout's prefix; has {layer} and {expert} where the parameter is stacked.
        path: where the parameter is in our tree.
        stack: lengths of the parameter's leading layer and expert axes, as far as it has them.
        theirs: the checkpoint's axes.
        ours: our axes of one layer.
        sizes: length of every named axis.
    """

    prefixes: dict[str, str]
    name: str
    path: tuple[str, ...]
    stack: tuple[int, ...]
    theirs: Groups
    ours: Groups
    sizes: dict[str, int]

    @property
    def leaf(self) -> str:
        """Name of the parameter, "text/layers/q"."""
        return "/".join(self.path)

    @property
    def hf_shape(self) -> tuple[int, ...]:
        """Shape of one layer's tensor in the checkpoint."""
        return _shape(self.theirs, self.sizes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole parameter, with the axes of layers and experts."""
        return self.stack + _shape(self.ours, self.sizes)

    def hf_name(self, layout: str, place: tuple[int, ...] = ()) -> str:
        """Returns the tensor's name under a layout, at this place (layer, expert) of the stack."""
        name = self.prefixes[layout] + self.name
        return name.format(**dict(zip(("layer", "expert"), place, strict=False)))

    def hf_names(self, layout: str) -> list[str]:
        """Returns the tensor names under a layout, of every layer and of every expert in it."""
        return [self.hf_name(layout, place) for place in np.ndindex(self.stack)]

    @property
    def axes(self) -> tuple[str, ...]:
        """The named axes of the checkpoint's tensor, in the order in which its numbers lie."""
        return tuple(axis for group in self.theirs for axis in group)

    def to_ours(self, tensor: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
        """Returns one layer's tensor in our axes, without those of the stack (a view where possible).

        Args:
            tensor: as the checkpoint has it; or with an axis for each of `axes`, of any lengths: a box cut out of it.
        """
        return _rearrange(tensor, self.theirs, self.ours, self.sizes)

    def to_hf(self, weight: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
        """Returns one layer of our parameter in the checkpoint's axes (a view where possible)."""
        return _rearrange(weight, self.ours, self.theirs, self.sizes)


def table(config: ModelConfig, moe: MoEConfig | None = None) -> tuple[Row, ...]:
    """Returns the rows of every parameter of the model with these sizes.

    Args:
        config: sizes of the backbone.
        moe: its `experts` stand in place of the FFN; None or 0 of them = the dense model.
    """
    text, vision = config.text, config.vision
    experts = moe.experts if moe else 0
    text_sizes = {
        "vocab": text.vocab_size,
        "width": text.hidden_size,
        "kv": text.num_key_value_heads,
        "group": text.num_attention_heads // text.num_key_value_heads,
        "head": text.head_dim,
        "ffn": text.intermediate_size,
        "experts": experts,
    }
    merged = vision.hidden_size * vision.merge_unit
    vision_sizes = {
        "width": vision.hidden_size,
        "channel": vision.in_channels,
        "frame": vision.temporal_patch_size,
        "row": vision.patch_size,
        "col": vision.patch_size,
        "qkv": 3,
        "heads": vision.num_heads,
        "head": vision.head_dim,
        "ffn": vision.intermediate_size,
        "one": 1,
        "two": 1,
        "positions": (vision.intern.image_size // vision.patch_size) ** 2 + 1,
        "merged": merged,
        "mid": merged,
        "out": text.hidden_size,
    }
    names = _TEXT | (_EXPERTS if experts else _DENSE)
    prefixes, depth = layouts(vision.kind), {"layer": vision.depth}
    of = lambda part: {layout: parts[part] for layout, parts in prefixes.items()}  # noqa: E731
    tower = _intern_tower(vision) if vision.kind == "internvl" else _VISION[vision.kind]
    rows = [_row(of("vision"), name, "vision", *entry, depth, vision_sizes) for name, entry in tower.items()]
    if vision.kind == "internvl":
        sizes = vision_sizes | {"mid": text.hidden_size}
        rows += [_row(of("projector"), name, "vision", *entry, {}, sizes) for name, entry in _PROJECTOR.items()]
    stack = {"layer": text.num_hidden_layers, "expert": experts}
    rows += [_row(of("text"), name, "text", *entry, stack, text_sizes) for name, entry in names.items()]
    return tuple(rows)


def head_name(kind: str, layout: str) -> str:
    """Returns the name of the output head under a layout."""
    return f"language_model.{HEAD}" if kind == "internvl" and layout == "hub" else HEAD


def layouts(kind: str) -> dict[str, dict[str, str]]:
    """Returns the prefixes of the parts of a model by layout, for a kind of vision tower."""
    return _INTERN_LAYOUTS if kind == "internvl" else LAYOUTS


def _intern_tower(vision: VisionConfig) -> dict[str, tuple[str, str]]:
    """Returns the rows that an InternViT of these choices has."""
    absent = [] if vision.intern.attention_bias else ["q_bias", "k_bias", "v_bias"]
    absent += [] if vision.intern.use_qk_norm else ["q_norm", "k_norm"]
    absent += [] if vision.intern.norm_type == "layer_norm" else ["norm1_bias", "norm2_bias"]
    gone = {f"blocks.{name}" for name in absent}
    return {name: entry for name, entry in _INTERN.items() if entry[0] not in gone}


def find_layout(names: Collection[str], rows: tuple[Row, ...]) -> str | None:
    """Returns the layout that explains most of the tensor names, None if none explains any.

    The names alone decide: the shape of config.json (flat or nested) does not go with them.
    """
    found = {layout: sum(n in names for row in rows for n in row.hf_names(layout)) for layout in rows[0].prefixes}
    best = max(found, key=found.__getitem__)
    return best if found[best] else None


def _row(
    prefixes: dict[str, str], name: str, root: str, path: str, pattern: str, stack: dict[str, int],
    sizes: dict[str, int],
) -> Row:  # fmt: skip
    theirs, _, ours = pattern.partition(" -> ")
    stacked = tuple(n for axis, n in stack.items() if f"{{{axis}}}" in name)
    return Row(prefixes, name, (root, *path.split(".")), stacked, _groups(theirs), _groups(ours or theirs), sizes)


def _groups(axes: str) -> Groups:
    """Returns the axes of one side of a pattern: "a (b c)" -> (("a",), ("b", "c"))."""
    groups: list[list[str]] = []
    folded = False
    for word in axes.split():
        if not folded:
            groups.append([])
        groups[-1].append(word.strip("()"))
        folded = (folded or word.startswith("(")) and not word.endswith(")")
    return tuple(map(tuple, groups))


def _shape(groups: Groups, sizes: dict[str, int]) -> tuple[int, ...]:
    return tuple(math.prod(sizes[axis] for axis in group) for group in groups)


def _rearrange(array: np.ndarray, source: Groups, target: Groups, sizes: dict[str, int]) -> np.ndarray:
    flat = [axis for group in source for axis in group]
    if array.ndim == len(flat):
        sizes = dict(zip(flat, array.shape, strict=True))
    order = [flat.index(axis) for group in target for axis in group]
    return array.reshape([sizes[axis] for axis in flat]).transpose(order).reshape(_shape(target, sizes))
