"""What a model is beside its weights: sizes, experts, and the settings that decide an embedding; as JSON and back."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from moon_jax.config import Config, ConfigError, DataConfig, ModelConfig, MoEConfig, PromptConfig, resolve, to_dict
from moon_jax.config_backbone import BACKBONES
from moon_jax.data.grids import tile_limits
from moon_jax.data.patches import statistics
from moon_jax.weights.source import WeightsError

# [ours] Around a document for a model that was not trained with another prompt: one turn of Qwen's chat form.
CHAT = PromptConfig(prefix="<|im_start|>user\n", suffix="<|im_end|>\n")

# The settings that belong to a model; all others belong to a run.
_FIELDS = {
    "model": ("vision", "text", "attention", "dtype"),
    "moe": ("experts", "top_k", "gate", "guided"),
    "data": (
        "prompt", "query_prompt", "images_per_item", "description", "crop", "crop_margin", "min_pixels", "max_pixels",
        "max_aspect", "title_tokens", "category_tokens", "attribute_tokens", "grounding",
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """All that must be known to run a model on documents, beside its weights and its tokenizer.

    Attributes:
        model: sizes and attention; `dtype` is the compute type to use where nobody asks for another one.
        moe: `experts` = 0 for a dense model; capacities mean nothing here.
        data: prompts, pixels, lengths; what belongs to a training run is at its default.
        tied: the output head is text/embed; False: it is the leaf `LM_HEAD`, which may have been left out.
    """

    model: ModelConfig
    moe: MoEConfig
    data: DataConfig
    tied: bool = True


def describe(spec: ModelSpec) -> dict[str, Any]:
    """Returns the spec as JSON would have it; `parse` reads it back."""
    groups = to_dict(Config(model=spec.model, moe=spec.moe, data=spec.data))
    out = {group: {name: groups[group][name] for name in names} for group, names in _FIELDS.items()}
    return {**out, "tied": spec.tied, "pooling": "mean", "normalize": True}


def parse(values: Mapping[str, Any], where: str) -> ModelSpec:
    """Returns the spec that `describe` wrote; other keys of `values` are not looked at.

    Args:
        values: from JSON.
        where: the file, for errors.

    Raises:
        WeightsError: names every setting that is missing, unknown or cannot be used.
    """
    expected = describe(ModelSpec(ModelConfig(), MoEConfig(), DataConfig()))
    problems: list[str] = []
    _compare({name: values.get(name) for name in expected}, expected, "", problems)
    for name in ("pooling", "normalize"):
        if values.get(name) != expected[name]:
            problems.append(f"{name} is {values.get(name)!r}; only {expected[name]!r} is computed")
    if not isinstance(values.get("tied"), bool):
        problems.append(f"tied must be true or false, got {values.get('tied')!r}")
    if not problems:
        try:
            config = resolve({name: values[name] for name in _FIELDS})
            return ModelSpec(config.model, config.moe, config.data, values["tied"])
        except ConfigError as error:
            problems = [line.removeprefix("  - config.") for line in str(error).splitlines()[1:]]
    raise WeightsError(f"{where} cannot be used:\n" + "\n".join(f"  - {p}" for p in problems))


def _compare(values: Mapping[str, Any], expected: Mapping[str, Any], path: str, problems: list[str]) -> None:
    """Notes the keys that are missing or unknown: a setting that is not there must not quietly be a default."""
    problems += [f"{path}{name} is missing" for name in expected if name not in values]
    problems += [f"{path}{name} is unknown" for name in values if name not in expected]
    for name, default in expected.items():
        if isinstance(default, dict) and name in values:
            if isinstance(values[name], Mapping):
                _compare(values[name], default, f"{path}{name}.", problems)
            else:
                problems.append(f"{path}{name} must be an object, got {values[name]!r}")


def preprocessor_config(spec: ModelSpec) -> dict[str, Any]:
    """Returns the preprocessor_config.json that makes transformers' image processor give our pixels."""
    vision, data = spec.model.vision, spec.data
    if vision.kind == "internvl":
        tile = vision.intern.image_size
        fewest, most = tile_limits(data.min_pixels, data.max_pixels, tile)
        sizes = {
            "image_processor_type": "GotOcr2ImageProcessor",
            "crop_to_patches": True,
            "min_patches": fewest,
            "max_patches": most,
            "size": {"height": tile, "width": tile},
        }
    else:
        sizes = {
            "image_processor_type": "Qwen2VLImageProcessor",
            "min_pixels": data.min_pixels,
            "max_pixels": data.max_pixels,
            "size": {"shortest_edge": data.min_pixels, "longest_edge": data.max_pixels},
            "patch_size": vision.patch_size,
            "temporal_patch_size": vision.temporal_patch_size,
            "merge_size": vision.spatial_merge_size,
        }
    mean, std = statistics(vision.kind)
    return sizes | {
        "processor_class": BACKBONES[vision.kind].processor,
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean.tolist(),
        "image_std": std.tolist(),
    }


def read_preprocessor(settings: Mapping[str, Any], spec: ModelSpec, where: str) -> ModelSpec:
    """Returns the spec with the pixel limits of a preprocessor_config.json.

    Args:
        settings: of the file; what it does not name is at transformers' default, which is what we compute.
        spec: sizes of the model.
        where: the file, for errors.

    Raises:
        WeightsError: names every setting that asks for other pixels than ours.
    """
    ours, tiled = preprocessor_config(spec), spec.model.vision.kind == "internvl"
    free = ("min_pixels", "max_pixels", "image_processor_type", "processor_class")
    # InternVLProcessor cuts tiles whatever the file of its image processor says
    free += ("min_patches", "max_patches", "crop_to_patches") if tiled else ("size",)
    fixed = [n for n in ours if n not in free]
    problems = [
        f"{name} is {settings[name]!r}; the model needs or computes {ours[name]!r}"
        for name in fixed
        if name in settings and not _same(settings[name], ours[name])
    ]
    if tiled:
        return _with_tiles(settings, spec, problems, where)
    size = settings.get("size") or {}
    limits = {}
    for name, edge in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
        given = [
            v for v in (settings.get(name), size.get(edge) if isinstance(size, Mapping) else size) if v is not None
        ]
        if any(type(v) is not int or v < 1 for v in given) or len(set(given)) > 1:
            problems.append(f"{name} / size.{edge} must be one positive integer, got {given}")
        limits[name] = given[0] if given else getattr(spec.data, name)
    if not problems and not limits["min_pixels"] <= limits["max_pixels"]:
        problems.append(f"min_pixels {limits['min_pixels']} is more than max_pixels {limits['max_pixels']}")
    if problems:
        raise WeightsError(f"{where} cannot be used:\n" + "\n".join(f"  - {p}" for p in problems))
    return dataclasses.replace(spec, data=dataclasses.replace(spec.data, **limits))


def _with_tiles(settings: Mapping[str, Any], spec: ModelSpec, problems: list[str], where: str) -> ModelSpec:
    """Returns the spec with a budget of pixels that gives the numbers of tiles of a preprocessor_config.json."""
    fewest, most = settings.get("min_patches", 1), settings.get("max_patches", 12)
    if type(fewest) is not int or type(most) is not int or not 1 <= fewest <= most:
        problems = [*problems, f"min_patches and max_patches must be 1 <= min <= max, got {fewest!r} and {most!r}"]
    if problems:
        raise WeightsError(f"{where} cannot be used:\n" + "\n".join(f"  - {p}" for p in problems))
    area = spec.model.vision.intern.image_size**2
    data = dataclasses.replace(spec.data, min_pixels=fewest * area, max_pixels=most * area)
    return dataclasses.replace(spec, data=data)


def _same(a: Any, b: Any) -> bool:
    if isinstance(b, dict):
        return isinstance(a, Mapping) and a.keys() == b.keys() and all(_same(a[name], b[name]) for name in b)
    if isinstance(b, list):
        return isinstance(a, list) and len(a) == len(b) and all(map(_same, a, b))
    if isinstance(b, bool):
        return a is b
    return isinstance(a, (int, float)) and not isinstance(a, bool) and abs(a - b) <= 1e-6 * abs(b)
