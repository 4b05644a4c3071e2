"""Specs: JSON and back, everything wrong named; and transformers makes our pixels with our preprocessor_config.json."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from tiny_spec import SPEC
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from moon_jax.data.patches import patchify
from moon_jax.weights.source import WeightsError
from moon_jax.weights.spec import describe, parse, preprocessor_config, read_preprocessor


def test_a_spec_survives_json_and_keeps_nothing_of_a_run():
    assert parse(json.loads(json.dumps(describe(SPEC))), "x") == SPEC
    run = dataclasses.replace(
        SPEC,
        model=dataclasses.replace(SPEC.model, path="/somewhere", remat="none"),
        moe=dataclasses.replace(SPEC.moe, capacity_factor=2.0),
        data=dataclasses.replace(SPEC.data, path="/data", augment=True),
    )
    assert "/somewhere" not in json.dumps(describe(run))
    assert parse(describe(run), "x") == SPEC


def test_everything_that_is_wrong_with_a_spec_is_named():
    values = json.loads(json.dumps(describe(SPEC)))
    del values["data"]["crop"], values["moe"]
    values["model"]["text"]["head_dims"] = values["model"]["text"].pop("head_dim")
    values["data"]["prompt"] = "text"
    values["pooling"], values["tied"] = "last", "yes"
    with pytest.raises(WeightsError) as error:
        parse(values, "moon.json")
    for part in (
        "data.crop is missing", "moe must be an object", "model.text.head_dim is missing",
        "model.text.head_dims is unknown", "data.prompt must be an object", "pooling is 'last'", "tied must be",
    ):  # fmt: skip
        assert part in str(error.value)


def test_values_that_cannot_work_are_named():
    values = json.loads(json.dumps(describe(SPEC)))
    values["model"]["text"]["num_hidden_layers"] = "3"
    with pytest.raises(WeightsError, match=r"  - model\.text\.num_hidden_layers must be int"):
        parse(values, "moon.json")
    values["model"]["text"]["num_hidden_layers"] = 3
    values["moe"]["top_k"] = 9
    with pytest.raises(WeightsError, match=r"moe\.top_k is 9"):
        parse(values, "moon.json")


@pytest.mark.parametrize("size", [(5, 9), (40, 31), (100, 80)])  # grows to min_pixels, as it is, shrinks to max_pixels
def test_transformers_makes_our_pixels_with_our_preprocessor_config(size):
    settings = json.loads(json.dumps(preprocessor_config(SPEC)))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8))
    theirs = Qwen2VLImageProcessorPil.from_dict(settings)(picture, return_tensors="np")
    ours = patchify(picture, SPEC.model.vision, SPEC.data.min_pixels, SPEC.data.max_pixels)
    assert tuple(theirs["image_grid_thw"][0]) == (1, *ours.grid)
    patches = theirs["pixel_values"].reshape(-1, 3, 2, 3, 3)
    np.testing.assert_allclose(patches[:, :, 0].reshape(len(patches), -1), ours.patches, atol=2e-5)


def test_pixel_limits_of_a_preprocessor_config():
    limits = lambda settings: (lambda d: (d.min_pixels, d.max_pixels))(read_preprocessor(settings, SPEC, "p").data)  # noqa: E731
    assert limits({"min_pixels": 100, "max_pixels": 900}) == (100, 900)
    assert limits({"size": {"shortest_edge": 100, "longest_edge": 900}, "patch_size": 3}) == (100, 900)
    assert limits({}) == (72, 1800)
    with pytest.raises(WeightsError) as error:
        read_preprocessor(
            {
                "image_mean": [0.5, 0.5, 0.5], "patch_size": 14, "do_resize": False, "max_pixels": 9,
                "size": {"longest_edge": 8}, "min_pixels": "a", "rescale_factor": 1 / 255,
            },
            SPEC, "p",
        )  # fmt: skip
    for part in (
        "image_mean is [0.5",
        "patch_size is 14",
        "do_resize is False",
        "max_pixels / size",
        "min_pixels / size",
    ):
        assert part in str(error.value)
    assert "rescale_factor" not in str(error.value)
