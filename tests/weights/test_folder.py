"""Model folders: what was written comes back, damage of every kind is named, a folder appears whole or not at all."""

import dataclasses
import hashlib
import json
import pathlib
from types import MappingProxyType

import ml_dtypes
import numpy as np
import pytest
import tiny_hf
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from moon_jax.config import Config, DataConfig, ModelConfig, MoEConfig, PromptConfig, TextConfig, VisionConfig
from moon_jax.data.images import patchify
from moon_jax.weights import card
from moon_jax.weights.folder import ModelFolder, assets, pieces, read_description, write_model
from moon_jax.weights.source import LM_HEAD, Leaf, WeightsError
from moon_jax.weights.spec import ModelSpec, describe, parse, preprocessor_config, read_preprocessor
from moon_jax.weights.unfinished import new_folder

SPEC = ModelSpec(
    ModelConfig(
        text=TextConfig(320, 24, 20, 3, 6, 2, 4, 5000.0, 1e-6, (1, 0, 1)),
        vision=VisionConfig(2, 16, 10, 2, 3, 3, 2, 2, 12, (1,)),
        attention="bidirectional",
        dtype="bfloat16",
    ),
    MoEConfig(experts=5, top_k=3, gate="softmax_all", guided="exclusive"),
    DataConfig(
        prompt=PromptConfig("<|im_start|>商品 |\n", " / ", "<|im_end|>"), query_prompt=PromptConfig("find: "),
        crop=False, images_per_item=3, min_pixels=72, max_pixels=1800, max_aspect=7.5, title_tokens=11,
        description=True,
    ),
    tied=False,
)  # fmt: skip


class Arrays:
    """Arrays in memory as a source, which counts what is read at a time."""

    def __init__(self, **arrays):
        self.arrays = arrays
        self.leaves = MappingProxyType({name: Leaf(a.shape, a.dtype) for name, a in arrays.items()})
        self.largest = 0

    def read(self, name, index=()):
        values = np.array(self.arrays[name][index])
        self.largest = max(self.largest, values.nbytes)
        return values


def arrays():
    rng = np.random.default_rng(0)
    make = lambda *shape: rng.standard_normal(shape).astype(ml_dtypes.bfloat16)  # noqa: E731
    return Arrays(
        **{
            "text/embed": make(320, 24),
            "text/layers/q": make(3, 24, 2, 3, 4),
            "text/layers/moe/gate": make(3, 5, 24, 20),
            "text/layers/moe/router": rng.standard_normal((3, 24, 5)).astype(np.float32),
            "text/norm": make(24),
            "vision/blocks/norm1": make(2, 16),
            "vision/merger/fc1": make(64, 64),
            LM_HEAD: make(320, 24),
        }
    )


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return tiny_hf.write(tmp_path_factory.mktemp("words") / "hf")


ORIGIN = {"kind": "hf", "name": "Qwen/X@1", "files": {"a.safetensors": "ab" * 32}, "changes": ["half of it"]}


@pytest.fixture
def written(tmp_path, words):
    with new_folder(tmp_path / "model") as folder:
        write_model(folder, arrays(), SPEC, words, lambda: ORIGIN, max_shard_bytes=20_000)
    return tmp_path / "model"


# ------------------------------------------------------------------------------------------------- there and back


def test_what_was_written_comes_back(written):
    source = arrays()
    with ModelFolder(written, verify=True) as folder:
        assert folder.leaves == source.leaves
        for name, array in source.arrays.items():
            assert folder.read(name).tobytes() == array.tobytes()
        np.testing.assert_array_equal(
            folder.read("text/layers/moe/gate", (slice(1, 2), slice(3, 5), slice(2, 9))),
            source.arrays["text/layers/moe/gate"][1:2, 3:5, 2:9],
        )
        assert folder.description.spec == SPEC
        assert folder.description.origin == ORIGIN
        numbers = sum(a.size for a in source.arrays.values())
        assert folder.description.weights == {"dtype": "bfloat16", "parameters": numbers}


def test_files_and_digests(written, words):
    files = read_description(written).files
    there = {path.name for path in written.iterdir()}
    assert there == {*files, "moon.json", "README.md"}
    assert sum(name.startswith("model-0000") for name in there) >= 3
    assert {"model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json"} < there
    for name, entry in files.items():
        data = (written / name).read_bytes()
        assert entry == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (written / name).read_bytes() == (words / name).read_bytes()


def test_written_piece_by_piece(tmp_path, words):
    source, seen = arrays(), []
    with new_folder(tmp_path / "model") as folder:
        write_model(folder, source, SPEC, words, lambda: ORIGIN, progress=seen.append)
    assert sum(seen) == sum(leaf.nbytes for leaf in source.leaves.values())
    assert (
        source.largest == 320 * 24 * 2
    )  # a table of tokens in rows; one expert, not all five, of one layer, not three


def test_rows_of_a_large_table_and_every_place_of_a_stack():
    half, single = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32)
    table = [(i[0].start, i[0].stop, place) for i, place in pieces("text/embed", Leaf((151936, 2048), half))]
    assert all((stop - start) * 4096 <= 32 << 20 and place == start for start, stop, place in table)
    assert [start for start, *_ in table[1:]] == [stop for _, stop, _ in table[:-1]]
    assert (table[0][0], table[-1][1]) == (0, 151936)
    expected = {
        ("text/layers/moe/up", (2, 3, 4, 5), half): [(a, b) for a in range(2) for b in range(3)],
        ("text/layers/moe/router", (2, 4, 3), single): [(0,), (1,)],
        ("vision/blocks/qkv", (2, 4, 3, 2, 2), half): [(0,), (1,)],
        ("vision/merger/fc2", (5120, 2048), half): [()],
    }
    for (name, shape, dtype), places in expected.items():
        found = list(pieces(name, Leaf(shape, dtype)))
        assert [place for _, place in found] == places
        assert [index for index, _ in found] == [tuple(slice(i, i + 1) for i in place) for place in places]


def test_assets_of_a_training_checkpoint(tmp_path, words):
    for name, data in assets(SPEC, words, {"kind": "random"}).items():
        (tmp_path / name).write_bytes(data)
    described = read_description(tmp_path)
    assert (described.spec, described.weights, described.files) == (SPEC, {}, {})
    with pytest.raises(WeightsError, match="without weights"):
        ModelFolder(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_that_is_not_whole(tmp_path, words, name):
    for path in words.iterdir():
        if path.name != name:
            (tmp_path / path.name).symlink_to(path)
    with pytest.raises(WeightsError, match="leads out of the folder"):
        assets(SPEC, tmp_path, ORIGIN)
    for path in words.glob("tokenizer*"):
        (tmp_path / path.name).unlink(missing_ok=True)
        if path.name != name:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(WeightsError, match=f"{name} is missing"):
        assets(SPEC, tmp_path, ORIGIN)


# ------------------------------------------------------------------------------------------------------- damage


def test_damaged_files_are_all_named(written):
    shards = sorted(written.glob("model-*.safetensors"))
    shards[0].unlink()
    shards[1].write_bytes(shards[1].read_bytes()[:-1])
    (written / "model.safetensors").write_bytes(b"")
    with pytest.raises(WeightsError) as error:
        ModelFolder(written)
    for part in (f"{shards[0].name} is missing", f"{shards[1].name} has", "model.safetensors is not among the files"):
        assert part in str(error.value)


def test_a_flipped_bit_is_found_when_asked(written):
    path = max(written.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))
    ModelFolder(written).__exit__()
    with pytest.raises(WeightsError, match=rf"{path.name} has changed"):
        ModelFolder(written, verify=True)


def test_files_that_lead_out(written, tmp_path):
    path = written / "tokenizer.json"
    path.rename(tmp_path / "elsewhere.json")
    path.symlink_to(tmp_path / "elsewhere.json")
    edit(written, lambda values: values["files"].update({"../x": {"bytes": 1, "sha256": ""}}))
    with pytest.raises(WeightsError) as error:
        ModelFolder(written)
    assert "tokenizer.json is a link that leads out" in str(error.value)
    assert "'../x' is no plain file name" in str(error.value)


def edit(folder: pathlib.Path, change) -> None:
    values = json.loads((folder / "moon.json").read_text())
    change(values)
    (folder / "moon.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(version=2), "version 2; this program reads version 1"),
        (lambda v: v.update(format="other"), "not the description of a model"),
        (lambda v: v.update(files=[]), "is damaged"),
        (lambda v: v["files"].update({"x": {"bytes": "1"}}), "is damaged"),
        (lambda v: v.pop("weights"), "without weights"),
    ],
)
def test_a_moon_json_that_cannot_be_used(written, change, message):
    edit(written, change)
    with pytest.raises(WeightsError, match=message):
        ModelFolder(written)


def test_a_moon_json_that_is_cut_or_missing(written):
    path = written / "moon.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(WeightsError, match="cannot be read as JSON"):
        ModelFolder(written)
    path.unlink()
    with pytest.raises(WeightsError, match=r"there is no .*moon\.json"):
        ModelFolder(written)


# --------------------------------------------------------------------------------------------------------- spec


def test_a_spec_survives_json_and_keeps_nothing_of_a_run():
    assert parse(json.loads(json.dumps(describe(SPEC))), "x") == SPEC
    run = dataclasses.replace(
        SPEC,
        model=dataclasses.replace(SPEC.model, path="/somewhere", remat=False),
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


# --------------------------------------------------------------------------------------------------------- card


def test_the_card_says_what_decides_an_embedding():
    text = card.markdown(SPEC, {"dtype": "bfloat16", "parameters": 1234567}, ORIGIN)
    assert text.startswith("---\nlibrary_name: moon_jax\n")
    for part in (
        "1,234,567 in bfloat16", 'moon_jax.load("PATH_OF_THIS_FOLDER")', "encode_query", "mean of the last hidden",
        '| query | `"find: "` | `"\\n"` | `""` |', '| item | `"<\\|im_start\\|>商品 \\|\\n"` | `" / "` |',
        "bidirectional", "72 to 1800", "the first 3", "7.5 : 1", "5: 3 general ones of which a token visits 3",
        "exclusive", "softmax_all", "Qwen/X@1", "ab" * 32, "- half of it", "Qwen Research License", "its own",
    ):  # fmt: skip
        assert part in text, part


def test_the_card_follows_the_origin_to_its_root():
    chain = {"kind": "training", "name": "shop", "step": 700, "origin": ORIGIN}
    text = card.markdown(SPEC, None, chain)
    assert text.index("a training run `shop`, step 700") < text.index("Which was made from a Hugging Face folder")
    assert "Qwen Research License" in text
    alone = card.markdown(SPEC, None, {"kind": "training", "name": "shop", "step": 1, "origin": {"kind": "random"}})
    assert "Qwen Research License" not in alone
    assert "no other model's licence" in alone
    for spec, words in (
        (SPEC, "not its experts"),
        (dataclasses.replace(SPEC, moe=MoEConfig(experts=0)), "attends causally"),
        (ModelSpec(ModelConfig(), MoEConfig(experts=0), Config().data), "Prompts, pooling and norm are then yours"),
    ):
        assert words in card.markdown(spec, None, ORIGIN, layout="hf")


# --------------------------------------------------------------------------------------------------- unfinished


def test_an_error_leaves_nothing(tmp_path):
    with pytest.raises(FileNotFoundError), new_folder(tmp_path / "a" / "model") as folder:
        (folder / "x").write_text((folder / "y").read_text())
    assert list((tmp_path / "a").iterdir()) == []


def test_a_target_that_is_there_is_left_alone(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").write_text("text")
    for target, message in (("model", "is there already"), ("link", "is there already"), ("file/x", "is not a folder")):
        with pytest.raises(WeightsError, match=message), new_folder(tmp_path / target):
            pass
    assert {p.name for p in tmp_path.iterdir()} == {"model", "link", "file"}


def test_a_target_that_comes_up_meanwhile_is_not_replaced(tmp_path):
    with pytest.raises(WeightsError, match="is there already"), new_folder(tmp_path / "model"):
        (tmp_path / "model").mkdir()
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_what_killed_programs_left_is_removed_but_not_what_is_being_written(tmp_path):
    for name in (".model.unfinished-1", ".model2.unfinished-1", ".model.unfinished"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text("x")
    with new_folder(tmp_path / "model") as folder:
        assert folder.parent == tmp_path
        assert not (tmp_path / ".model.unfinished-1").exists()
        with pytest.raises(WeightsError, match="is being written by another process"), new_folder(tmp_path / "model"):
            pass
        assert folder.exists()
    assert {p.name for p in tmp_path.iterdir()} == {"model", ".model2.unfinished-1", ".model.unfinished"}
