"""config.json of a Qwen2.5-VL checkpoint -> our `ModelConfig`, with the defaults that transformers would fill in."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from moon_jax.config import ModelConfig, TextConfig, VisionConfig

# Class defaults of transformers 5 (configuration_qwen2_5_vl.py). The published configs rely on them: their
# vision_config names neither depth nor heads nor windows, and the default vision width is not the 3B model's.
_TEXT = {
    "vocab_size": 152064,
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
}
_VISION = {
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
_TOKENS = {"image": 151655, "video": 151656, "vision_start": 151652, "vision_end": 151653}


class LoadError(ValueError):
    """A checkpoint folder that cannot be used; the message names the file and everything that is wrong with it."""


@dataclasses.dataclass(frozen=True)
class CheckpointInfo:
    """What config.json says beside the sizes."""

    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int
    tied: bool  # the output head is the token embedding, so `lm_head.weight` may be absent
    dtype: str  # in which the weights were trained or saved, e.g. "bfloat16"; "" = not said


def read_config(folder: str | pathlib.Path) -> tuple[ModelConfig, CheckpointInfo]:
    """Returns (sizes, token ids and flags) of a checkpoint folder.

    Reads the published layout (text fields flat at the root) and the nested one of transformers 5.

    Args:
        folder: holds config.json.

    Raises:
        LoadError: no such file, another kind of model, or a feature that we do not compute; all of it at once.
    """
    path = pathlib.Path(folder) / "config.json"
    try:
        root = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LoadError(f"there is no {path}: give the folder of a Qwen2.5-VL checkpoint") from None
    except (OSError, ValueError) as error:
        raise LoadError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(root, dict) or root.get("model_type") != "qwen2_5_vl":
        kind = root.get("model_type") if isinstance(root, dict) else type(root).__name__
        raise LoadError(f"{path}: model_type is {kind!r}; only 'qwen2_5_vl' (Qwen2.5-VL) can be loaded")

    problems: list[str] = []
    text_fields = root if root.get("text_config") is None else root["text_config"]
    vision_fields = root.get("vision_config") or {}
    for name, fields in (("text_config", text_fields), ("vision_config", vision_fields)):
        if not isinstance(fields, dict):
            raise LoadError(f"{path}: {name} must be an object, got {fields!r}")
    text = _text(text_fields, problems)
    vision = _vision(vision_fields, text, problems)
    tokens = {f"{name}_token_id": root.get(f"{name}_token_id", default) for name, default in _TOKENS.items()}
    for name, value in tokens.items():
        if not _is_int(value):
            problems.append(f"{name} must be an integer, got {value!r}")
    if problems:
        raise LoadError(f"{path} cannot be used:\n" + "\n".join(f"  - {p}" for p in problems))
    # before transformers 5 the flag was saved inside text_config
    tied = bool(root.get("tie_word_embeddings") or text_fields.get("tie_word_embeddings"))
    dtype = root.get("dtype") or root.get("torch_dtype") or ""
    return ModelConfig(vision=vision, text=text), CheckpointInfo(**tokens, tied=tied, dtype=str(dtype))


def _text(fields: Mapping[str, Any], problems: list[str]) -> TextConfig:
    values = {name: fields.get(name, default) for name, default in _TEXT.items()}
    if values["num_key_value_heads"] is None:
        values["num_key_value_heads"] = values["num_attention_heads"]
    _check_act(values.pop("hidden_act"), "text", problems)
    rope = fields.get("rope_scaling") or fields.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        problems.append(f"rope_scaling / rope_parameters must be an object, got {rope!r}")
        rope = {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "mrope"):
        problems.append(f"rope type {kind!r} is not computed; only 'default' (with mrope_section)")
    theta = rope.get("rope_theta", fields.get("rope_theta", 1e6))
    section = rope.get("mrope_section", (16, 24, 24))
    eps = values.pop("rms_norm_eps")
    for name, value in (("rope_theta", theta), ("rms_norm_eps", eps)):
        if not isinstance(value, (int, float)) or not value > 0:
            problems.append(f"{name} must be a positive number, got {value!r}")
    if not _check_positive(values, "text", problems):
        return TextConfig()
    width, heads, kv = (values[n] for n in ("hidden_size", "num_attention_heads", "num_key_value_heads"))
    head_dim = width // heads
    if width % heads or fields.get("head_dim") not in (None, head_dim):
        problems.append(
            f"head_dim must be hidden_size / num_attention_heads = {width} / {heads}; "
            f"the config says {fields.get('head_dim')}"
        )
    if heads % kv:
        problems.append(f"num_attention_heads {heads} must be a multiple of num_key_value_heads {kv}")
    if not _is_list_of_ints(section) or len(section) != 3 or 2 * sum(section) != head_dim:
        problems.append(f"mrope_section {section} must be three integers with the sum head_dim / 2 = {head_dim / 2:g}")
    window = fields.get("use_sliding_window") and fields.get("sliding_window", 4096) is not None
    used = window and fields.get("max_window_layers", 80) < values["num_hidden_layers"]
    if "sliding_attention" in fields["layer_types"] if fields.get("layer_types") else used:
        problems.append("some text layers use sliding-window attention, which is not computed")
    if problems:
        return TextConfig()
    return TextConfig(
        **values, head_dim=head_dim, rope_theta=float(theta), rms_norm_eps=float(eps), mrope_section=tuple(section)
    )


def _vision(fields: Mapping[str, Any], text: TextConfig, problems: list[str]) -> VisionConfig:
    values = {name: fields.get(name, default) for name, default in _VISION.items()}
    _check_act(values.pop("hidden_act"), "vision", problems)
    rope = fields.get("rope_parameters") or {}
    if not isinstance(rope, dict) or rope.get("rope_theta", 1e4) != 1e4:
        problems.append(f"vision rope_parameters are {rope}; only rope_theta 10000 is computed")
    full = values.pop("fullatt_block_indexes")
    if not _is_list_of_ints(full):
        problems.append(f"vision fullatt_block_indexes must be a list of integers, got {full!r}")
        full = ()
    if not _check_positive(values, "vision", problems):
        return VisionConfig()
    out = values.pop("out_hidden_size")
    if out != text.hidden_size and not problems:  # else the text sizes may not be the file's
        problems.append(f"vision out_hidden_size {out} must be the text hidden_size {text.hidden_size}")
    # transformers compares block numbers with this list, so what lies beyond the depth means nothing
    config = VisionConfig(**values, fullatt_block_indexes=tuple(i for i in full if 0 <= i < values["depth"]))
    if config.hidden_size % (4 * config.num_heads):
        problems.append(f"vision hidden_size {config.hidden_size} must be a multiple of 4 * num_heads")
    if config.window < 1:
        problems.append(f"vision window_size {config.window_size} is smaller than one merged token")
    return config


def _check_act(act: Any, part: str, problems: list[str]) -> None:
    if act != "silu":
        problems.append(f"{part} hidden_act is {act!r}; only 'silu' is computed")


def _check_positive(values: Mapping[str, Any], part: str, problems: list[str]) -> bool:
    wrong = [f"{part} {n} must be a positive integer, got {v!r}" for n, v in values.items() if not _is_int(v) or v < 1]
    problems += wrong
    return not wrong


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_list_of_ints(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(map(_is_int, value))
