"""config.json of a Qwen2.5-VL checkpoint <-> our `ModelConfig`, with the defaults that transformers would fill in."""

import dataclasses
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from moon_jax.config import ModelConfig, MoEConfig, TextConfig, VisionConfig
from moon_jax.data.strict_json import unique_json
from moon_jax.weights.source import WeightsError
from moon_jax.weights.tensors import regular_file

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
_CHOICES = {  # of the object "moon", which only models have that transformers knows half of
    "experts": lambda value: _is_int(value) and value >= 0,
    "top_k": lambda value: _is_int(value) and value >= 1,
    "gate": lambda value: value in ("softmax_active", "softmax_all"),
    "guided": lambda value: value in ("add", "exclusive"),
    "attention": lambda value: value in ("causal", "bidirectional"),
}
_TOKENS = {"image": 151655, "video": 151656, "vision_start": 151652, "vision_end": 151653}


class LoadError(WeightsError):
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


def read_config(folder: str | os.PathLike[str]) -> tuple[ModelConfig, CheckpointInfo]:
    """Returns (sizes, token ids and flags) of a checkpoint folder.

    Reads the published layout (text fields flat at the root) and the nested one of transformers 5.

    Args:
        folder: holds config.json.

    Raises:
        LoadError: no such file, another kind of model, or a feature that we do not compute; all of it at once.
    """
    model, _, info = _parse(_read_root(folder), pathlib.Path(folder) / "config.json")
    return model, info


def read_moe(folder: str | os.PathLike[str]) -> MoEConfig:
    """Returns the guided mixture of a checkpoint folder that `write_config` described; 0 experts of any other folder.

    Args:
        folder: holds config.json.

    Raises:
        LoadError: as `read_config`.
    """
    return _parse(_read_root(folder), pathlib.Path(folder) / "config.json")[1]


def write_config(
    model: ModelConfig, moe: MoEConfig, info: CheckpointInfo, dtype: str, special: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Returns the config.json of a model, in the published layout, with every field of the vision tower.

    What transformers cannot compute (experts, bidirectional attention) is under the key "moon", which it ignores.

    Args:
        model: sizes and attention.
        moe: experts, top_k, gate and guided are kept.
        info: token ids and whether the head is tied.
        dtype: of the weights, "bfloat16".
        special: more of the root's fields, e.g. {"bos_token_id": 151643, "eos_token_id": 151645}.

    Raises:
        LoadError: sizes that no Qwen2.5-VL has, e.g. a head_dim that is not hidden_size / num_attention_heads.
    """
    text, vision = model.text, model.vision
    ours: dict[str, Any] = {}
    if moe.experts:
        ours |= {"experts": moe.experts, "top_k": moe.top_k, "gate": moe.gate, "guided": moe.guided}
    if model.attention != "causal":
        ours["attention"] = model.attention
    sizes = dataclasses.asdict(vision) | {"fullatt_block_indexes": list(vision.fullatt_block_indexes)}
    root = {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "torch_dtype": dtype,
        "tie_word_embeddings": info.tied,
        **{name: getattr(text, name) for name in _TEXT if name != "hidden_act"},
        "hidden_act": "silu",
        "rope_theta": text.rope_theta,
        "rope_scaling": {"type": "mrope", "mrope_section": list(text.mrope_section)},
        "max_position_embeddings": 128000,
        "use_sliding_window": False,
        "attention_dropout": 0.0,
        "use_cache": True,
        **{f"{name}_token_id": getattr(info, f"{name}_token_id") for name in _TOKENS},
        **(special or {}),
        "vision_config": {
            "model_type": "qwen2_5_vl", "hidden_act": "silu", **sizes, "out_hidden_size": text.hidden_size,
            "in_chans": vision.in_channels, "spatial_patch_size": vision.patch_size, "tokens_per_second": 2,
        },
        **({"moon": ours} if ours else {}),
    }  # fmt: skip
    _parse(root | {"head_dim": text.head_dim}, "these sizes, as the config.json of a Qwen2.5-VL,")
    return root


def _read_root(folder: str | os.PathLike[str]) -> Any:
    path = pathlib.Path(folder) / "config.json"
    try:
        return unique_json(regular_file(folder, "config.json").read_bytes())
    except FileNotFoundError:
        raise LoadError(f"there is no {path}: give the folder of a Qwen2.5-VL checkpoint") from None
    except WeightsError as error:
        raise LoadError(f"{folder}: {error}") from None
    except (OSError, ValueError) as error:
        raise LoadError(f"{path} cannot be read as JSON: {error}") from None


def _parse(root: Any, where: str | os.PathLike[str]) -> tuple[ModelConfig, MoEConfig, CheckpointInfo]:
    if not isinstance(root, dict) or root.get("model_type") != "qwen2_5_vl":
        kind = root.get("model_type") if isinstance(root, dict) else type(root).__name__
        raise LoadError(f"{where}: model_type is {kind!r}; only 'qwen2_5_vl' (Qwen2.5-VL) can be loaded")

    problems: list[str] = []
    text_fields = root if root.get("text_config") is None else root["text_config"]
    groups = {
        "text_config": text_fields,
        "vision_config": root.get("vision_config") or {},
        "moon": root.get("moon", {}),
    }
    for name, fields in groups.items():
        if not isinstance(fields, dict):
            raise LoadError(f"{where}: {name} must be an object, got {fields!r}")
    text = _text(text_fields, problems)
    vision = _vision(groups["vision_config"], text, problems)
    tokens = {f"{name}_token_id": root.get(f"{name}_token_id", default) for name, default in _TOKENS.items()}
    for name, value in tokens.items():
        if not _is_int(value):
            problems.append(f"{name} must be an integer, got {value!r}")
    ours = groups["moon"]
    problems += [
        f"moon.{name} is unknown or cannot be {value!r}"
        for name, value in ours.items()
        if name not in _CHOICES or not _CHOICES[name](value)
    ]
    if problems:
        raise LoadError(f"{where} cannot be used:\n" + "\n".join(f"  - {p}" for p in problems))
    # before transformers 5 the flag was saved inside text_config
    tied = bool(root.get("tie_word_embeddings") or text_fields.get("tie_word_embeddings"))
    dtype = root.get("dtype") or root.get("torch_dtype") or ""
    model = ModelConfig(vision=vision, text=text, attention=ours.get("attention", "causal"))
    moe = MoEConfig(**{"experts": 0} | {name: value for name, value in ours.items() if name != "attention"})
    return model, moe, CheckpointInfo(**tokens, tied=tied, dtype=str(dtype))


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
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < math.inf:
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
