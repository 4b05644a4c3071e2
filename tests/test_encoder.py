"""The library's door: records of every form against transformers, in any company, from memory or files."""

import dataclasses
import io
import logging
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny_hf
from PIL import Image

import moon_jax
from moon_jax.config import ConfigError, MeshConfig, PromptConfig
from moon_jax.data.records import DataError
from moon_jax.encoder import Encoder
from moon_jax.parallel.mesh import make_mesh
from moon_jax.training import embedder
from moon_jax.weights.source import WeightsError

SIZES = [(40, 31), (59, 60), (12, 7), (90, 33), (6, 6), (200, 20)]


pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tiny_hf.write(tmp_path_factory.mktemp("hf") / "model", max_pixels=60 * 60)
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate(SIZES):
        noise = rng.integers(0, 255, (height, width, 3)).astype(np.uint8)
        Image.fromarray(noise).resize((width, height)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def one_device():
    return make_mesh(MeshConfig(data=1), jax.devices()[:1])


@pytest.fixture(scope="module")
def encoder(folder, one_device) -> Encoder:
    return moon_jax.load(folder, one_device, "float32")


@pytest.fixture(scope="module")
def records(folder):
    path = lambda number: str(folder / f"{number}.png")  # noqa: E731
    return [
        {"text": "a warm coat"},
        {"text": "蓝色 羊毛 外套 " * 20},
        {"images": [path(0)]},
        {"title": "a mug", "images": [path(1), path(2)]},
        {"text": "a strip", "images": path(5)},
        {"id": 7, "text": "café", "images": [path(3), path(4), path(0)], "category": None},
    ]


@pytest.fixture(scope="module")
def expected(encoder, records):
    return encoder.encode(records)


@pytest.fixture(scope="module")
def reference(folder):
    """(model, tokenizer, image processor) of transformers, from the same folder."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype="float32").eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder), Qwen2VLImageProcessorPil.from_pretrained(folder)


def prompt_of(reference, text, paths):
    """What transformers' model is called with for a text in which <image> stands for the next picture."""
    import torch

    model, tokenizer, processor = reference
    made = processor([Image.open(path) for path in paths], return_tensors="pt") if paths else {}
    pieces = text.split("<image>")
    for number, grid in enumerate(made.get("image_grid_thw", [])):
        pads = "<|image_pad|>" * int(grid.prod() // 4)
        pieces[number] += f"<|vision_start|>{pads}<|vision_end|>"
    ids = torch.tensor([tokenizer("".join(pieces), add_special_tokens=False)["input_ids"]])
    types = {"mm_token_type_ids": (ids == model.config.image_token_id).int()} if paths else {}
    model.model.rope_deltas = None
    return {"input_ids": ids, **types, **made}


@pytest.mark.torch
def test_plain_records_equal_the_mean_of_transformers_hidden_states(reference, expected, records):
    import torch

    for record, vector in zip(records, expected, strict=True):
        paths = [record["images"]] if isinstance(record.get("images"), str) else record.get("images", [])
        text = "<image>" * len(paths) + record.get("text", record.get("title", "")).strip()
        with torch.no_grad():
            hidden = reference[0].model(**prompt_of(reference, text, paths)).last_hidden_state[0]
        mean = hidden.mean(0)
        np.testing.assert_allclose(vector, (mean / mean.norm()).numpy(), atol=2e-6, err_msg=str(record))


def test_vectors_are_float32_of_length_one_and_differ(encoder, expected):
    assert expected.dtype == np.float32
    assert expected.shape == (6, encoder.width) == (6, 24)
    np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1, atol=1e-6)
    similarity = encoder.similarity(expected, expected)
    assert similarity.shape == (6, 6)
    np.testing.assert_allclose(similarity, expected @ expected.T, atol=1e-6)
    assert (similarity - np.eye(6)).max() < 0.999


def test_a_vector_depends_on_its_record_alone(encoder, records, expected):
    np.testing.assert_allclose(encoder.encode(records[::-1], batch_size=2)[::-1], expected, atol=1e-6)
    for number in (0, 3, 5):
        alone = encoder.encode(records[number : number + 1])
        np.testing.assert_allclose(alone[0], expected[number], atol=1e-6)
    crowd = [record for record in records for _ in range(3)] + ["word " * 9] * 11
    np.testing.assert_allclose(encoder.encode(crowd, batch_size=4)[:18:3], expected, atol=1e-6)


def test_the_same_on_eight_devices(folder, records, expected):
    mesh = MeshConfig(data=2, fsdp=2, tensor=2)
    np.testing.assert_allclose(moon_jax.load(folder, mesh, "float32").encode(records), expected, atol=1e-6)


def test_an_iterator_is_read_window_by_window_and_gives_the_same(encoder, records, expected, monkeypatch):
    monkeypatch.setattr(embedder, "WINDOW_BATCHES", 8)  # an eighth of it for an iterator
    taken, ahead = 0, []

    def endless():
        nonlocal taken
        for record in records * 4:
            taken += 1
            yield record

    monkeypatch.setattr(embedder, "_fetch", lambda *a, real=embedder._fetch: ahead.append(taken) or real(*a))
    np.testing.assert_allclose(encoder.encode(endless(), batch_size=3), np.tile(expected, (4, 1)), atol=1e-6)
    # batches of a window of 3 are handed out when at most two further windows have been read
    assert ahead[0] <= 9
    assert encoder.encode(iter([])).shape == (0, 24)


def test_pictures_in_memory_are_the_same_as_files(encoder, folder):
    path = folder / "1.png"
    turned = Image.open(path).rotate(90, expand=True)  # what a camera stores, with the note to turn it back
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = io.BytesIO()
    turned.save(stored, "PNG", exif=exif)
    opened = Image.open(io.BytesIO(stored.getvalue()))
    size = opened.size
    forms = [str(path), path, path.read_bytes(), Image.open(path), Image.open(path).convert("RGBA"), opened, opened]
    vectors = encoder.encode([{"images": [form], "boxes": [[5, 5, 40, 40]]} for form in forms])
    np.testing.assert_allclose(vectors, np.tile(vectors[0], (7, 1)), atol=1e-6)
    assert opened.size == size  # the caller's image is not turned


def test_boxes_feed_the_cut_out_product(encoder, folder):
    path, box = str(folder / "1.png"), [10, 12, 40, 43]
    cut = Image.open(path).crop((8, 10, 42, 45))  # 5% of its width and height on every side, rounded outwards
    boxed, by_hand, whole = encoder.encode(
        [{"images": [path], "boxes": [box]}, {"images": [path, cut]}, {"images": [path]}]
    )
    np.testing.assert_allclose(boxed, by_hand, atol=1e-6)
    assert np.abs(boxed - whole).max() > 1e-3


def test_kinds_have_the_prompts_and_limits_of_the_model(folder, one_device, caplog):
    encoder = moon_jax.load(folder, one_device, "float32")
    data = dataclasses.replace(
        encoder.config.data,
        prompt=PromptConfig("item:", " / ", "."), query_prompt=PromptConfig("query:", " / ", "?"), images_per_item=1,
        description=False,
    )  # fmt: skip
    encoder = Encoder(dataclasses.replace(encoder.config, data=data), one_device, encoder.tokenizer, encoder.params)
    path = str(folder / "4.png")
    record = {
        "title": "a mug", "description": "for tea", "category": ["Home", "Mugs"],
        "attributes": {"color": ["red", "blue"], "size": 3},
    }  # fmt: skip
    # The texts are tokenised one by one, but a byte-level BPE of so few merges has none across these seams.
    said = "color: red, blue; size: 3"
    plain = encoder.encode([record, {"title": "a mug\nfor tea", "category": "Home > Mugs", "attributes": said}])
    np.testing.assert_allclose(plain[0], plain[1], atol=1e-6)
    item, query = encoder.encode_item([record])[0], encoder.encode_query([record])[0]
    assert min(np.abs(a - b).max() for a, b in [(item, query), (item, plain[0]), (query, plain[0])]) > 1e-3
    np.testing.assert_allclose(encoder.encode_item([record | {"description": None}])[0], item, atol=1e-6)
    assert np.abs(encoder.encode_query([record | {"description": None}])[0] - query).max() > 1e-4
    with caplog.at_level(logging.WARNING):
        several = encoder.encode_item([{"text": "a mug", "images": [path, str(folder / "0.png")]}])
    np.testing.assert_allclose(several, encoder.encode_item([{"text": "a mug", "images": [path]}]), atol=1e-6)
    assert "1 items have pictures beyond the first 1" in caplog.text
    with caplog.at_level(logging.WARNING):
        encoder.encode_query(["long " * 200])
    assert "1 texts are longer than this model was trained to read" in caplog.text


def test_bad_records_are_named_all_at_once_before_anything_is_computed(encoder, folder):
    bad = [
        {"text": "fine"},
        {"titel": "a", "images": ["x.png"], "boxes": [[1, 2, 3]]},
        {"id": "sku-9", "text": 5, "images": ["http://x/y.png"], "category": {"a": 1}},
        {"id": 3.5, "text": "x", "title": "y", "boxes": [None]},
        {},
        17,
        {"images": [np.zeros((3, 3))]},
    ]
    with pytest.raises(DataError) as caught:
        encoder.encode(bad)
    message = str(caught.value)
    for said in (
        "6 records cannot be used",
        "record 1: unknown key 'titel'; did you mean 'title'?", "boxes[0]: must be null or four",
        "record 2 (id 'sku-9')", "text: must be a text, is 5", "is a URL", "category: must be a text",
        "record 3 (id 3.5)", "id: must be a text or a whole number", "two names of the same field", "one box or null",
        "record 4: there is nothing to embed", "record 5: a record must be a dict or a text, this is 17",
        "must be a path, a Pillow image or the bytes of a file",
    ):  # fmt: skip
        assert said in message, said
    with pytest.raises(DataError, match="put a single one into a list"):
        encoder.encode({"text": "one"})
    with pytest.raises(DataError, match="put a single one into a list"):
        encoder.encode("one")
    with pytest.raises(ValueError, match="kind is one of"):
        encoder.encode([], kind="document")
    lost = {"id": "a", "images": [str(folder / "lost.png")]}
    with pytest.raises(DataError, match=r"record 1 \(id 'a'\): .*lost\.png: no such picture"):
        encoder.encode([{"text": "x"}, lost])


def test_skipped_records_are_rows_of_nan(encoder, folder, records, expected, caplog):
    torn = folder / "torn.png"
    torn.write_bytes((folder / "1.png").read_bytes()[:300])
    bad = [{"titel": "x"}, {"images": [str(folder / "lost.png")]}, {"text": "x", "images": [str(torn)]}]
    with caplog.at_level(logging.WARNING):
        vectors = encoder.encode([bad[0], records[0], bad[1], records[3], bad[2]], on_error="skip")
    assert np.isnan(vectors[[0, 2, 4]]).all()
    np.testing.assert_allclose(vectors[[1, 3]], expected[[0, 3]], atol=1e-6)
    for said in ("record 0: unknown key 'titel'", "record 2: ", "lost.png", "record 4: ", "torn.png"):
        assert said in caplog.text


@pytest.mark.torch
def test_generate_answers_as_transformers_does(encoder, reference, folder):
    paths = [folder / "0.png", folder / "2.png"]
    asked = ["what is this?", ["see ", {"image": str(paths[0])}, {"image": Image.open(paths[1])}, " and this"], "蓝色"]
    texts = ["what is this?", "see <image><image> and this", "蓝色"]
    answers = encoder.generate(asked, 12, batch_size=2)
    model, tokenizer, _ = reference
    for text, answer in zip(texts, answers, strict=True):
        chat = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        chat += f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
        inputs = prompt_of(reference, chat, paths if "<image>" in text else [])
        eos = [tokenizer.convert_tokens_to_ids(name) for name in ("<|im_end|>", "<|endoftext|>")]
        out = model.generate(**inputs, max_new_tokens=12, do_sample=False, eos_token_id=eos, pad_token_id=eos[1])
        assert answer == tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert len(set(answers)) > 1
    with pytest.raises(DataError, match="prompt 0: a prompt is made of texts"):
        encoder.generate([[{"picture": "x"}]])


def test_dtype_mesh_and_pixels_can_be_chosen_and_are_checked(folder, one_device, records, expected):
    half = moon_jax.load(folder, one_device, "bfloat16")
    assert half.params["text"]["layers"]["q"].dtype == "bfloat16"
    cosines = (half.encode(records) * expected).sum(1)
    assert 0.99 < cosines.min() < 1 - 1e-6
    small = moon_jax.load(folder, one_device, "float32", max_pixels=12 * 12)
    assert small.config.data.max_pixels == 144
    changed = np.abs(small.encode(records) - expected).max(axis=1)
    assert changed[:2].max() < 1e-6 < 1e-3 < changed[2:4].min()
    with pytest.raises(ConfigError, match="dtype 'float16' must be one of bfloat16, float32"):
        moon_jax.load(folder, one_device, "float16")
    with pytest.raises(ConfigError, match="does not multiply to the 8 devices"):
        moon_jax.load(folder, MeshConfig(data=3))
    with pytest.raises(WeightsError, match="max_pixels"):
        moon_jax.load(folder, one_device, max_pixels=10)
    with pytest.raises(WeightsError, match="holds no model"):
        moon_jax.load(folder / "nothing")


def test_the_package_imports_jax_only_when_the_door_is_used():
    code = (
        "import sys, moon_jax, moon_jax.data.embed_records; assert 'jax' not in sys.modules; moon_jax.load; import jax"
    )
    root = pathlib.Path(moon_jax.__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": str(root)})
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        moon_jax.lod  # noqa: B018
