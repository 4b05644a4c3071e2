"""config.json of a checkpoint <-> our `ModelConfig`, with the defaults that transformers would fill in."""

import dataclasses
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from moon_jax.config import ModelConfig, MoEConfig, TextConfig, VisionConfig
from moon_jax.config_backbone import BACKBONES
from moon_jax.data.strict_json import unique_json
from moon_jax.hf import vision_config
from moon_jax.hf.fields import check_act, check_positive, is_int, is_list_of_ints
from moon_jax.weights.source import WeightsError
from moon_jax.weights.tensors import regular_file

# Class defaults of transformers 5 (configuration_qwen2_5_vl.py, configuration_qwen2_vl.py).
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
_QWEN2 = _TEXT | {  # configuration_qwen2.py: the language model of InternVL
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "rms_norm_eps": 1e-6,
}
_CHOICES = {  # of the object "moon", which only models have that transformers knows half of
    "experts": lambda value: is_int(value) and value >= 0,
    "top_k": lambda value: is_int(value) and value >= 1,
    "gate": lambda value: value in ("softmax_active", "softmax_all"),
    "guided": lambda value: value in ("add", "exclusive"),
    "attention": lambda value: value in ("causal", "bidirectional"),
}
_INTERN = {  # of the root of an InternVL, all of it at the defaults of transformers
    "projector_hidden_act": "gelu",
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "default",
}
_TOKENS = {"image": 151655, "video": 151656, "vision_start": 151652, "vision_end": 151653}


class LoadError(WeightsError):
    """A checkpoint folder that cannot be used; the message names the file and everything that is wrong with it."""


@dataclasses.dataclass(frozen=True)
class CheckpointInfo:
    """What config.json says beside the sizes."""

    image_token_id: int
    video_token_id: int | None  # None: the family's config.json does not say it
    vision_start_token_id: int | None
    vision_end_token_id: int | None
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
        LoadError: sizes that no published model has, e.g. a head_dim that is not hidden_size / num_attention_heads.
    """
    text, kind = model.text, model.vision.kind
    ours: dict[str, Any] = {}
    if moe.experts:
        ours |= {"experts": moe.experts, "top_k": moe.top_k, "gate": moe.gate, "guided": moe.guided}
    if model.attention != "causal":
        ours["attention"] = model.attention
    sizes = {
        **{name: getattr(text, name) for name in _TEXT if name != "hidden_act"},
        "hidden_act": "silu",
        "rope_theta": text.rope_theta,
        "use_sliding_window": False,
        "attention_dropout": 0.0,
        "use_cache": True,
    }
    root = {
        "architectures": [BACKBONES[kind].architecture],
        "model_type": kind,
        "torch_dtype": dtype,
        "tie_word_embeddings": info.tied,
    }
    if kind == "internvl":
        sizes |= {"model_type": "qwen2", "max_position_embeddings": 32768}
        root |= {
            "image_token_id": info.image_token_id,
            "image_seq_length": model.vision.tile_tokens**2,
            "downsample_ratio": 1 / model.vision.spatial_merge_size,
            **_INTERN,
            "text_config": sizes | dict(special or {}),
        }
    else:
        root |= sizes | {
            "rope_scaling": {"type": "mrope", "mrope_section": list(text.mrope_section)},
            "max_position_embeddings": 128000,
            **{f"{name}_token_id": getattr(info, f"{name}_token_id") for name in _TOKENS},
            **(special or {}),
        }
    root |= {"vision_config": vision_config.write(model), **({"moon": ours} if ours else {})}
    said = {"head_dim": text.head_dim}
    nested = {"text_config": root["text_config"] | said} if kind == "internvl" else said
    _parse(root | nested, f"these sizes, as the config.json of a {BACKBONES[kind].title},")
    return root


def _read_root(folder: str | os.PathLike[str]) -> Any:
    path = pathlib.Path(folder) / "config.json"
    try:
        return unique_json(regular_file(folder, "config.json").read_bytes())
    except FileNotFoundError:
        raise LoadError(f"there is no {path}: give the folder of a Hugging Face checkpoint") from None
    except WeightsError as error:
        raise LoadError(f"{folder}: {error}") from None
    except (OSError, ValueError) as error:
        raise LoadError(f"{path} cannot be read as JSON: {error}") from None


def _parse(root: Any, where: str | os.PathLike[str]) -> tuple[ModelConfig, MoEConfig, CheckpointInfo]:
    kind = root.get("model_type") if isinstance(root, dict) else type(root).__name__
    if not isinstance(root, dict) or not isinstance(kind, str) or kind not in BACKBONES:
        known = ", ".join(f"{name!r} ({backbone.title})" for name, backbone in BACKBONES.items())
        raise LoadError(f"{where}: model_type is {kind!r}; what can be loaded is {known}")

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
    text = _text(text_fields, problems, plain=kind == "internvl")
    vision = vision_config.read(kind, groups["vision_config"], text, problems)
    tokens = {f"{name}_token_id": root.get(f"{name}_token_id", default) for name, default in _TOKENS.items()}
    if kind == "internvl":
        tokens = dict.fromkeys(tokens) | {"image_token_id": root.get("image_token_id", 151667)}
        _check_intern(root, vision, problems)
    for name, value in tokens.items():
        if not is_int(value) and (name == "image_token_id" or kind != "internvl"):
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
    tied = bool(root.get("tie_word_embeddings", kind == "internvl") or text_fields.get("tie_word_embeddings"))
    dtype = root.get("dtype") or root.get("torch_dtype") or ""
    model = ModelConfig(vision=vision, text=text, attention=ours.get("attention", "causal"))
    moe = MoEConfig(**{"experts": 0} | {name: value for name, value in ours.items() if name != "attention"})
    return model, moe, CheckpointInfo(**tokens, tied=tied, dtype=str(dtype))


def _check_intern(root: Mapping[str, Any], vision: VisionConfig, problems: list[str]) -> None:
    wanted = _INTERN | {"downsample_ratio": 1 / vision.spatial_merge_size, "image_seq_length": vision.tile_tokens**2}
    usual = {"downsample_ratio": 0.5, "image_seq_length": 256}
    problems += [
        f"{name} is {root.get(name)!r}; only {value!r} is computed with these sizes"
        for name, value in wanted.items()
        if root.get(name, usual.get(name, value)) != value
    ]


def _text(fields: Mapping[str, Any], problems: list[str], plain: bool) -> TextConfig:
    """Returns the sizes of the language model; `plain`: Qwen2's own config, whose positions are plain places."""
    values = {name: fields.get(name, default) for name, default in (_QWEN2 if plain else _TEXT).items()}
    if plain and fields.get("model_type", "qwen2") != "qwen2":
        problems.append(f"text_config.model_type is {fields['model_type']!r}; only 'qwen2' is computed")
    if values["num_key_value_heads"] is None:
        values["num_key_value_heads"] = values["num_attention_heads"]
    check_act(values.pop("hidden_act"), "text", problems)
    rope = fields.get("rope_scaling") or fields.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        problems.append(f"rope_scaling / rope_parameters must be an object, got {rope!r}")
        rope = {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    # "dynamic" is the plain one up to max_position_embeddings (32768); only beyond it transformers stretches it
    if kind not in ("default", "dynamic" if plain else "mrope"):
        problems.append(f"rope type {kind!r} is not computed; only 'default' (with mrope_section)")
    theta = rope.get("rope_theta", fields.get("rope_theta", 1e4 if plain else 1e6))
    section = rope.get("mrope_section", (16, 24, 24))
    eps = values.pop("rms_norm_eps")
    for name, value in (("rope_theta", theta), ("rms_norm_eps", eps)):
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < math.inf:
            problems.append(f"{name} must be a positive number, got {value!r}")
    if not check_positive(values, "text", problems):
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
    if plain:
        section = (head_dim // 2, 0, 0)
    if not is_list_of_ints(section) or len(section) != 3 or 2 * sum(section) != head_dim:
        problems.append(f"mrope_section {section} must be three integers with the sum head_dim / 2 = {head_dim / 2:g}")
    window = fields.get("use_sliding_window") and fields.get("sliding_window", 4096) is not None
    used = window and fields.get("max_window_layers", 28 if plain else 80) < values["num_hidden_layers"]
    if "sliding_attention" in fields["layer_types"] if fields.get("layer_types") else used:
        problems.append("some text layers use sliding-window attention, which is not computed")
    if problems:
        return TextConfig()
    return TextConfig(
        **values, head_dim=head_dim, rope_theta=float(theta), rms_norm_eps=float(eps), mrope_section=tuple(section)
    )
