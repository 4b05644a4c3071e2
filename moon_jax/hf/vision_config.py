"""The `vision_config` of a config.json <-> our `VisionConfig`, for every kind of vision tower."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from moon_jax.config import ModelConfig, TextConfig, VisionConfig
from moon_jax.config_backbone import InternConfig
from moon_jax.hf.fields import check_act, check_positive, is_list_of_ints

# Class defaults of transformers 5. The published configs rely on them: that of Qwen2.5-VL-3B names neither depth nor
# heads nor windows, and the default vision width is not the 3B model's.
_QWEN2_5 = {
    "depth": 32,
    "hidden_size": 3584,
    "intermediate_size": 3420,
    "num_heads": 16,
    "in_channels": 3,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 112,
    "out_hidden_size": 3584,
    "fullatt_block_indexes": (7, 15, 23, 31),
    "hidden_act": "silu",
}
_QWEN2 = {
    "depth": 32,
    "embed_dim": 1280,
    "hidden_size": 3584,  # of what comes out
    "mlp_ratio": 4,
    "num_heads": 16,
    "in_channels": 3,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "hidden_act": "quick_gelu",
}

_INTERN = {
    "num_hidden_layers": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_channels": 3,
    "image_size": (448, 448),
    "patch_size": (14, 14),
}
_INTERN_CHOICES = {  # all that we compute of each, the default first
    "attention_bias": (False, True),
    "use_qk_norm": (False, True),
    "norm_type": ("layer_norm", "rms_norm"),
    "hidden_act": ("gelu",),
    "use_absolute_position_embeddings": (True,),
    "use_mask_token": (False,),
    "use_mean_pooling": (True,),  # false: one more norm at the end
}


def read(kind: str, fields: Mapping[str, Any], text: TextConfig, problems: list[str]) -> VisionConfig:
    """Returns the sizes of a vision tower.

    Args:
        kind: of `VisionConfig`.
        fields: the object "vision_config".
        text: sizes of the language model.
        problems: gets a line for everything that cannot be used; what is returned then means nothing.
    """
    return _READ[kind](fields, text, problems)


def write(model: ModelConfig) -> dict[str, Any]:
    """Returns the object "vision_config" with every field that transformers reads."""
    return _WRITE[model.vision.kind](model.vision, model.text.hidden_size)


def _read_qwen2_5(fields: Mapping[str, Any], text: TextConfig, problems: list[str]) -> VisionConfig:
    values = {name: fields.get(name, default) for name, default in _QWEN2_5.items()}
    check_act(values.pop("hidden_act"), "vision", problems)
    _check_rope(fields, problems)
    full = values.pop("fullatt_block_indexes")
    if not is_list_of_ints(full):
        problems.append(f"vision fullatt_block_indexes must be a list of integers, got {full!r}")
        full = ()
    if not check_positive(values, "vision", problems):
        return VisionConfig()
    _check_out("out_hidden_size", values.pop("out_hidden_size"), text, problems)
    # transformers compares block numbers with this list, so what lies beyond the depth means nothing
    config = VisionConfig(**values, fullatt_block_indexes=tuple(i for i in full if 0 <= i < values["depth"]))
    _check_heads("hidden_size", config, problems)
    if config.window < 1:
        problems.append(f"vision window_size {config.window_size} is smaller than one merged token")
    return config


def _write_qwen2_5(vision: VisionConfig, out: int) -> dict[str, Any]:
    sizes = dataclasses.asdict(vision) | {"fullatt_block_indexes": list(vision.fullatt_block_indexes)}
    del sizes["kind"], sizes["intern"]
    return {
        "model_type": "qwen2_5_vl", "hidden_act": "silu", **sizes, "out_hidden_size": out,
        "in_chans": vision.in_channels, "spatial_patch_size": vision.patch_size, "tokens_per_second": 2,
    }  # fmt: skip


def _read_qwen2(fields: Mapping[str, Any], text: TextConfig, problems: list[str]) -> VisionConfig:
    values = {name: fields.get(name, default) for name, default in _QWEN2.items()}
    check_act(values.pop("hidden_act"), "vision", problems, "quick_gelu")
    _check_rope(fields, problems)
    if not check_positive(values, "vision", problems):
        return VisionConfig()
    _check_out("hidden_size", values.pop("hidden_size"), text, problems)
    width = values.pop("embed_dim")
    wide = width * values.pop("mlp_ratio")
    config = VisionConfig(**values, hidden_size=width, intermediate_size=wide, kind="qwen2_vl")
    _check_heads("embed_dim", config, problems)
    return config


def _write_qwen2(vision: VisionConfig, out: int) -> dict[str, Any]:
    same = ("depth", "num_heads", "in_channels", "patch_size", "spatial_merge_size", "temporal_patch_size")
    return {
        "model_type": "qwen2_vl", "hidden_act": "quick_gelu", **{name: getattr(vision, name) for name in same},
        "embed_dim": vision.hidden_size, "mlp_ratio": vision.intermediate_size // vision.hidden_size,
        "hidden_size": out, "in_chans": vision.in_channels, "spatial_patch_size": vision.patch_size,
    }  # fmt: skip


def _read_intern(fields: Mapping[str, Any], text: TextConfig, problems: list[str]) -> VisionConfig:
    values = {name: fields.get(name, default) for name, default in _INTERN.items()}
    for name in ("image_size", "patch_size"):
        sides = values[name]
        if isinstance(sides, (list, tuple)):
            values[name] = sides[0] if len(set(sides)) == 1 else list(sides)
    choices = {name: fields.get(name, allowed[0]) for name, allowed in _INTERN_CHOICES.items()}
    for name, allowed in _INTERN_CHOICES.items():
        if not any(type(choices[name]) is type(value) and choices[name] == value for value in allowed):
            problems.append(
                f"vision {name} is {choices[name]!r}; what is computed is {' or '.join(map(repr, allowed))}"
            )
    eps = fields.get("layer_norm_eps", 1e-6)
    if not isinstance(eps, (int, float)) or isinstance(eps, bool) or not 0 < eps < math.inf:
        problems.append(f"vision layer_norm_eps must be a positive number, got {eps!r}")
    if not check_positive(values, "vision", problems) or problems:
        return VisionConfig(kind="internvl")
    intern = InternConfig(
        values["image_size"], choices["attention_bias"], choices["use_qk_norm"], choices["norm_type"], float(eps)
    )
    config = VisionConfig(
        depth=values["num_hidden_layers"], hidden_size=values["hidden_size"],
        intermediate_size=values["intermediate_size"], num_heads=values["num_attention_heads"],
        in_channels=values["num_channels"], patch_size=values["patch_size"], temporal_patch_size=1, kind="internvl",
        intern=intern,
    )  # fmt: skip
    if config.hidden_size % config.num_heads:
        problems.append(f"vision hidden_size {config.hidden_size} must be a multiple of num_attention_heads")
    if intern.image_size % (2 * config.patch_size):
        problems.append(f"vision image_size {intern.image_size} must be a multiple of 2 * patch_size")
    return config


def _write_intern(vision: VisionConfig, _: int) -> dict[str, Any]:
    intern = vision.intern
    return {
        "model_type": "internvl_vision", "hidden_size": vision.hidden_size, "num_hidden_layers": vision.depth,
        "num_attention_heads": vision.num_heads, "intermediate_size": vision.intermediate_size,
        "num_channels": vision.in_channels, "image_size": [intern.image_size] * 2,
        "patch_size": [vision.patch_size] * 2, "layer_norm_eps": intern.layer_norm_eps,
        **{name: allowed[0] for name, allowed in _INTERN_CHOICES.items()},
        **{name: getattr(intern, name) for name in ("attention_bias", "use_qk_norm", "norm_type")},
    }  # fmt: skip


_READ: dict[str, Callable[[Mapping[str, Any], TextConfig, list[str]], VisionConfig]] = {
    "qwen2_5_vl": _read_qwen2_5,
    "qwen2_vl": _read_qwen2,
    "internvl": _read_intern,
}
_WRITE: dict[str, Callable[[VisionConfig, int], dict[str, Any]]] = {
    "qwen2_5_vl": _write_qwen2_5,
    "qwen2_vl": _write_qwen2,
    "internvl": _write_intern,
}


def _check_rope(fields: Mapping[str, Any], problems: list[str]) -> None:
    rope = fields.get("rope_parameters") or {}
    if not isinstance(rope, dict) or rope.get("rope_theta", 1e4) != 1e4:
        problems.append(f"vision rope_parameters are {rope}; only rope_theta 10000 is computed")


def _check_out(name: str, out: int, text: TextConfig, problems: list[str]) -> None:
    if out != text.hidden_size and not problems:  # else the text sizes may not be the file's
        problems.append(f"vision {name} {out} must be the text hidden_size {text.hidden_size}")


def _check_heads(name: str, config: VisionConfig, problems: list[str]) -> None:
    if config.hidden_size % (4 * config.num_heads):
        problems.append(f"vision {name} {config.hidden_size} must be a multiple of 4 * num_heads")
