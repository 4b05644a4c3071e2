"""Every kind of folder through the one door: the same weights and settings come out, and what is wrong is named."""

import dataclasses
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tiny_hf
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from moon_jax import convert
from moon_jax.config import DataConfig, MoEConfig, PromptConfig
from moon_jax.data.tokenizer import TokenizerError
from moon_jax.hf.load import load_params
from moon_jax.models import moon
from moon_jax.training.checkpoint import Checkpoints
from moon_jax.training.pretrained import open_pretrained
from moon_jax.training.saved_params import SavedParams
from moon_jax.weights.folder import assets
from moon_jax.weights.source import LM_HEAD, WeightsError, named, nested
from moon_jax.weights.spec import CHAT, ModelSpec


@pytest.fixture(scope="module")
def hf(tmp_path_factory):
    return tiny_hf.write(tmp_path_factory.mktemp("hf") / "Tiny", dtype="bfloat16")


@pytest.fixture
def copy(hf, tmp_path):
    return shutil.copytree(hf, tmp_path / "Tiny")


@pytest.fixture(scope="module")
def run(hf, tmp_path_factory):
    """The work folder of a training run with experts: steps 3 and 7."""
    found = open_pretrained(hf)
    data = DataConfig(prompt=PromptConfig("item: "), query_prompt=PromptConfig("query: "), path="/data", augment=True)
    spec = ModelSpec(found.spec.model, MoEConfig(experts=4), data)
    folder = tmp_path_factory.mktemp("runs") / "shop"
    beside = assets(spec, hf, {"kind": "training", "name": "?", "origin": {"kind": "random"}})
    with Checkpoints(folder / "checkpoints") as checkpoints:
        for step in (3, 7):
            checkpoints.save(step, {"step": jnp.int32(step), "params": params(spec, step)}, {}, beside)
    (folder / "config.json").write_text("{}")  # of the run: no Hugging Face folder
    return folder, spec


def params(spec, seed):
    mesh = jax.make_mesh((2, 2), ("fsdp", "expert"), axis_types=(AxisType.Explicit,) * 2, devices=jax.devices()[:4])

    def draw(name, shape):
        values = np.random.default_rng([seed, len(name)]).standard_normal(shape.shape).astype(np.float32)
        axes = (None, "expert", "fsdp") if "moe/gate" in name else (None, "fsdp") if name[5:] == "layers/q" else ()
        return jax.device_put(values, NamedSharding(mesh, P(*axes)))

    return nested(
        {name: draw(name, shape) for name, shape in named(moon.abstract_params(spec.model, spec.moe)).items()}
    )


# -------------------------------------------------------------------------------------------------- what comes out


def test_a_hugging_face_folder_as_it_is(hf):
    found = open_pretrained(hf)
    assert (found.kind, found.tokenizer_folder) == ("hf", hf)
    spec = found.spec
    assert (spec.model.text.vocab_size, spec.model.vision.patch_size, spec.moe.experts) == (tiny_hf.VOCAB, 3, 0)
    assert (spec.model.attention, spec.model.dtype, spec.tied) == ("causal", "bfloat16", True)
    assert (spec.data.prompt, spec.data.query_prompt) == (CHAT, CHAT)
    assert (spec.data.images_per_item, spec.data.description) == (8, True)  # all that an untrained model can be shown
    expected = named(load_params(hf, spec.model))
    assert set(found.source.leaves) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found.source.read(name).astype(np.float32), array)
    assert found.load_tokenizer().special["<|im_end|>"] > 0


def test_files_are_closed(hf, run, copy):
    count = lambda: len(list(pathlib.Path("/proc/self/fd").iterdir()))  # noqa: E731
    before = count()
    with open_pretrained(hf):
        assert count() > before
    with open_pretrained(run[0]):
        pass
    convert.convert(hf, copy / "model", convert.Options("jax"), progress=False)
    values = json.loads((copy / "model" / "moon.json").read_text())
    values["model"]["text"]["intermediate_size"] = 21
    (copy / "model" / "moon.json").write_text(json.dumps(values))
    with pytest.raises(WeightsError, match="of another model"):
        open_pretrained(copy / "model")
    assert count() == before


def test_pixels_of_a_hugging_face_folder(copy):
    (copy / "preprocessor_config.json").write_text(json.dumps({"min_pixels": 36, "max_pixels": 3600, "patch_size": 3}))
    data = open_pretrained(copy).spec.data
    assert (data.min_pixels, data.max_pixels) == (36, 3600)
    (copy / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "merge_size": 3}))
    with pytest.raises(WeightsError, match=r"merge_size is 3(.|\n)*image_mean is") as error:
        open_pretrained(copy)
    assert "preprocessor_config.json" in str(error.value)


def test_pixels_of_a_processor_that_transformers_5_saved(copy):
    settings = {"image_processor": {"size": {"shortest_edge": 36, "longest_edge": 3600}}, "processor_class": "x"}
    (copy / "processor_config.json").write_text(json.dumps(settings))
    data = open_pretrained(copy).spec.data
    assert (data.min_pixels, data.max_pixels) == (36, 3600)


@pytest.mark.parametrize(
    ("says", "is_there", "tied"), [(True, False, True), (False, False, False), (True, True, False)]
)
def test_whether_the_head_is_the_embedding(tmp_path, says, is_there, tied):
    folder = tiny_hf.write(tmp_path / "Tiny", tied=not is_there)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": says}))
    found = open_pretrained(folder)
    assert (found.spec.tied, LM_HEAD in found.source.leaves) == (tied, is_there)
    convert.convert(folder, tmp_path / "model", convert.Options("jax"), progress=False)
    assert open_pretrained(tmp_path / "model").spec.tied == tied


@pytest.mark.parametrize("part", ["", "checkpoints", "checkpoints/00000007", "checkpoints/00000003"])
def test_a_training_run(run, part):
    folder, spec = run
    step = 3 if part.endswith("3") else 7
    found = open_pretrained(folder / part)
    assert (found.kind, found.tokenizer_folder.name) == ("training", f"{step:08d}")
    kept = dataclasses.replace(spec.data, path="", augment=False)
    assert found.spec == dataclasses.replace(spec, data=kept)
    expected = named(params(spec, step))
    assert set(found.source.leaves) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found.source.read(name), array)
    cut = (slice(1, 3), slice(0, 3), slice(5, 20))
    gate = np.asarray(expected["text/layers/moe/gate"])
    np.testing.assert_array_equal(found.source.read("text/layers/moe/gate", cut), gate[cut])
    found.load_tokenizer()
    origin = found.origin()
    assert (origin["kind"], origin["name"], origin["step"], origin["origin"]) == (
        "training",
        "shop",
        step,
        {"kind": "random"},
    )
    assert list(origin["files"]) == ["manifest.json"]


def test_a_model_folder(hf, tmp_path):
    convert.convert(hf, tmp_path / "model", convert.Options("jax"), progress=False)
    found, before = open_pretrained(tmp_path / "model", verify=True), open_pretrained(hf)
    assert (found.kind, found.spec) == ("model", before.spec)
    assert found.source.leaves == before.source.leaves
    for name in before.source.leaves:
        assert found.source.read(name).tobytes() == before.source.read(name).tobytes()
    assert found.origin()["origin"] == before.origin() | {"changes": []}


def test_a_folder_that_we_exported_keeps_its_prompts(run, tmp_path):
    convert.convert(run[0], tmp_path / "out", convert.Options("hf"), progress=False)
    found = open_pretrained(tmp_path / "out")
    assert found.kind == "hf"
    assert (found.spec.data.prompt.prefix, found.spec.moe.experts) == ("item: ", 4)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    config["rms_norm_eps"], config["moon"]["top_k"] = 1e-5, 1
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    files = json.loads((tmp_path / "out" / "moon.json").read_text())
    del files["files"]["config.json"]
    (tmp_path / "out" / "moon.json").write_text(json.dumps(files))
    with pytest.raises(WeightsError, match="two models") as error:
        open_pretrained(tmp_path / "out")
    assert "model.text.rms_norm_eps is 1e-06 in moon.json and 1e-05" in str(error.value)
    assert "moe.top_k is 2 in moon.json and 1" in str(error.value)


def test_the_name_in_a_download_cache(hf, tmp_path):
    folder = tmp_path / "models--Qwen--Tiny" / "snapshots" / "abc"
    blobs = tmp_path / "models--Qwen--Tiny" / "blobs"
    folder.mkdir(parents=True)
    blobs.mkdir()
    for path in hf.iterdir():
        shutil.copy(path, blobs / path.name)
        (folder / path.name).symlink_to(f"../../blobs/{path.name}")
    assert open_pretrained(folder).origin()["name"] == "Qwen/Tiny@abc"


# --------------------------------------------------------------------------------------------------- saved params


def test_a_damaged_newest_step_is_passed_over_and_refused_by_name(run, tmp_path):
    folder = shutil.copytree(run[0], tmp_path / "run")
    path = max((folder / "checkpoints" / "00000007" / "d").iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    assert open_pretrained(folder).origin()["step"] == 3
    with pytest.raises(WeightsError, match=r"00000007.*changed since"):
        open_pretrained(folder / "checkpoints" / "00000007")


def test_half_precision_and_shards_read_in_slices(tmp_path):
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Explicit,) * 2, devices=jax.devices())
    values = np.random.default_rng(0).standard_normal((8, 6, 5)).astype(ml_dtypes.bfloat16)
    array = jax.device_put(values, NamedSharding(mesh, P("a", "b")))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"params": {"text": {"w": array, "n": jnp.ones(3)}}, "other": jnp.ones(2)}, {})
    source = SavedParams(tmp_path / "00000001")
    assert {name: leaf.shape for name, leaf in source.leaves.items()} == {"text/n": (3,), "text/w": (8, 6, 5)}
    for cut in [(), (slice(3, 5),), (slice(0, 1), slice(2, 6), slice(4, 5)), (slice(7, 7),)]:
        read = source.read("text/w", cut)
        assert read.dtype == values.dtype
        assert read.tobytes() == values[cut].tobytes()
        assert source.read("text/n").tolist() == [1, 1, 1]


# -------------------------------------------------------------------------------------------------------- refusals


def test_a_step_without_a_description(tmp_path):
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(1, {"params": {"w": jnp.ones(3)}}, {})
    with pytest.raises(WeightsError, match=r"has no moon\.json"):
        open_pretrained(tmp_path)


def test_a_run_without_a_checkpoint(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(WeightsError, match="has no finished checkpoint yet"):
        open_pretrained(tmp_path)


def test_folders_that_hold_no_model(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"")
    for folder, there in ((tmp_path / "photos", "cat.jpg"), (tmp_path / "nowhere", "no folder")):
        with pytest.raises(WeightsError) as error:
            open_pretrained(folder)
        for part in (there, "Looked for", "config.json", "moon.json", "checkpoints/", "manifest.json"):
            assert part in str(error.value)


def test_pickle_files_are_refused(copy):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"only pickle files \(pytorch_model\.bin\)"):
        open_pretrained(copy)


def test_a_tokenizer_of_another_model(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"image_token_id": 7, "vision_end_token_id": 8}))
    with pytest.raises(TokenizerError, match=r"image_token_id is 7, .*vision_end_token_id is 8"):
        open_pretrained(copy).load_tokenizer()


def test_weights_that_do_not_fit_their_description(hf, tmp_path):
    convert.convert(hf, tmp_path / "model", convert.Options("jax"), progress=False)
    path = tmp_path / "model" / "moon.json"
    values = json.loads(path.read_text())
    values["model"]["text"]["intermediate_size"] = 21
    values["model"]["text"]["num_hidden_layers"] = 2
    path.write_text(json.dumps(values))
    with pytest.raises(
        WeightsError, match=r"text/layers/q has the shape \[3,(.|\n)*text/layers/ffn/gate has the shape"
    ):
        open_pretrained(tmp_path / "model")
