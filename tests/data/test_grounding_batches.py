"""Questions of a data set, and the batches that teach to answer them, read back from their tokens."""

import dataclasses
import json

import numpy as np
import pytest
from fake_batch import tiny_config
from PIL import Image

from moon_jax.config import ConfigError, GroundingConfig
from moon_jax.data import grounding, sources, tokenizer
from moon_jax.data.grounding_answers import find_box
from moon_jax.data.grounding_batches import GroundingBatches, plan_shape
from moon_jax.data.images import BoxError
from moon_jax.data.patches import patchify
from moon_jax.data.records import DataError, training_texts

SIZES = [(64, 48), (40, 40), (160, 24), (30, 90), (200, 200), (24, 24)]


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A listing and a query for every size; listing number 5 has no box; titles of very different lengths."""
    folder = tmp_path_factory.mktemp("shop")
    items, records = [], []
    for n, size in enumerate(SIZES):
        for kind in ("item", "query"):
            pixels = np.random.default_rng(n).integers(0, 255, (size[1], size[0], 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{kind}{n}.png")
        box = [size[0] // 4, size[1] // 4, size[0] // 2, size[1]]
        item = {"item_id": f"i{n}", "title": f"杯子 {n} " * 3**n, "image": f"item{n}.png", "image_bbox": box}
        items.append(item | {"image_bbox": None} if n == 5 else item)
        query = {"image": f"query{n}.png", "text": "" if n == 0 else f"cup {n}", "bbox": box}
        positive = {"item_id": f"i{n}", "title": item["title"], "images": [item["image"]]}
        records.append({"id": f"r{n}", "query": query, "positive": positive})
    for name, rows in (("items", items), ("train", records), ("test", records)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def config(shop):
    config = tiny_config(
        loss__kind="next_token", loss__ring_batches=0, eval__metric="unseen/query/IoU", data__path=str(shop),
        data__min_pixels=16 * 16, data__max_pixels=48 * 48, data__max_aspect=4.0, data__title_tokens=12,
        data__unseen_share=0.0, model__text__vocab_size=400, train__batch_size=4,
    )  # fmt: skip
    return dataclasses.replace(config, data=dataclasses.replace(config.data, grounding=GroundingConfig()))


@pytest.fixture(scope="module")
def dataset(config):
    return sources.read(config.data)


@pytest.fixture(scope="module")
def words(dataset, tmp_path_factory):
    return tokenizer.train_bpe(training_texts(dataset), tmp_path_factory.mktemp("words"), 400)


def with_data(config, **changes):
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **changes))


def read_back(batches, step):
    """(what the model reads, what it is to say) of every row of a batch of one shard."""
    arrays, words = batches[step].arrays, batches.tokenizer
    out = []
    for tokens, segments, chosen in zip(*(arrays[n][0] for n in ("tokens", "segment_ids", "chosen")), strict=True):
        assert not chosen[segments == 0].any()
        asked, said = tokens[(segments > 0) & ~chosen], tokens[chosen]
        out.append((words.decode(asked.tolist()), words.decode(said.tolist())))
    return out


def test_every_example_is_asked_once_a_lap_and_answered_with_its_box(config, dataset, words):
    batches = GroundingBatches(dataset, words, config, 1, range(1))
    assert len(batches.examples) == 11  # 6 queries, 5 listings with a box
    expected = {}
    for question in batches.examples:
        picture = Image.open(question.image.path)
        frame = grounding.Frame.of(picture.size, config.data, config.model.vision)
        title = question.title or "the main product"
        expected[question.kind, question.id] = (title, frame, question.image.box)
    seen = set()
    lap = [row for step in range(11) for row in read_back(batches, step)]
    assert len(lap) == 44  # 4 laps
    for asked, answer in lap:
        assert asked.startswith(
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
        )
        assert answer.startswith('```json\n[\n\t{"bbox_2d": [')
        assert answer.endswith('], "label": "product"}\n]\n```<|im_end|>')
        text = asked.split("<|vision_end|>")[1]
        pads = asked.count("<|image_pad|>")
        fits = []
        for key, (title, frame, box) in expected.items():
            said = text.split('"')[1]
            tokens = frame.seen[0] * frame.seen[1] // 64  # 8 x 8 px a token
            found = find_box(answer, "", frame, "absolute").box
            near = all(abs(a - b) <= frame.padded[0] / frame.seen[0] * 0.51 for a, b in zip(found, box, strict=True))
            if title.startswith(said) and tokens == pads and near:
                fits.append(key)
        assert fits, (asked, answer)
        seen |= set(fits)
    assert seen == expected.keys()


def test_batches_depend_on_the_step_alone_and_shards_are_parts_of_them(config, dataset, words):
    augmented = with_data(config, augment=True)
    whole = GroundingBatches(dataset, words, augmented, 2, range(2))
    later = GroundingBatches(dataset, words, augmented, 2, [1])
    later[0]
    for name, array in whole[3].arrays.items():
        np.testing.assert_array_equal(array[1:], later[3].arrays[name], err_msg=name)
    assert not np.array_equal(whole[3].arrays["patches"], whole[4].arrays["patches"])
    assert {array.shape for array in (whole[s].arrays["tokens"] for s in range(12))} == {(2, 2, whole.shape.row_tokens)}


def test_a_view_keeps_the_product_in_its_box(config, tmp_path, words):
    """A blue product on white: wherever a random view has it, the answer is where the blue is."""
    image = Image.new("RGB", (96, 96), "white")
    image.paste((0, 0, 255), (24, 36, 60, 84))
    image.save(tmp_path / "0.png")
    row = {"id": "r", "query": {"image": "0.png", "text": "blue", "bbox": [24, 36, 60, 84]},
           "positive": {"item_id": "i", "title": "blue", "images": []}}  # fmt: skip
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    config = with_data(config, path=str(tmp_path), augment=True, augment_area=0.3, max_pixels=96 * 96)
    batches = GroundingBatches(sources.read(config.data), words, config, 1, range(1))
    boxes = set()
    for step in range(3):
        arrays = batches[step].arrays
        white = patchify(Image.new("RGB", (8, 8), "white"), config.model.vision, 64, 64).patches[0]
        for row, (_, answer) in enumerate(read_back(batches, step)):
            units = arrays["image_slots"][0, row]
            units = units[units >= 0]  # the visual tokens of this row; pictures of others may lie in the same slot
            red = arrays["patches"][0].reshape(-1, 4, 3, 4, 4)[units, :, 0].reshape(-1, 4, 4)  # blue has none
            places = arrays["patch_positions"][0].reshape(-1, 4, 2)[units].reshape(-1, 2)
            high, wide = (4 * (places.max(0) + 1)).tolist()
            plane = np.zeros((high, wide))
            for (y, x), patch in zip(places, red, strict=True):
                plane[4 * y : 4 * y + 4, 4 * x : 4 * x + 4] = patch
            blue_y, blue_x = np.nonzero(plane < white[:16].mean() / 4)
            frame = grounding.Frame((wide, high), (wide, high), (wide, high))
            box = find_box(answer, "", frame, "absolute").box
            edges = (blue_x.min(), blue_y.min(), blue_x.max() + 1, blue_y.max() + 1)
            np.testing.assert_allclose(box, edges, atol=1.6)
            boxes.add(box)
    assert len(boxes) > 6


def test_a_title_is_cut_at_a_whole_character(words):
    text = "café 杯子 " * 20
    for limit in range(1, 30):
        part = grounding.cut(text, words, limit)
        assert text.startswith(part)
        assert len(words.encode(part)) <= limit
    assert grounding.cut("short", words, 96) == "short"
    assert len(grounding.cut("e" * 10**6, words, 4)) <= 512


def test_bad_boxes_and_settings(config, dataset, words, shop, tmp_path):
    with pytest.raises(ConfigError, match="multiple of the 3 batch shards"):
        GroundingBatches(dataset, words, config, 3, range(3))
    for path in shop.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    rows[2]["query"]["bbox"] = [1000, 1000, 1010, 1010]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    bad = with_data(config, path=str(tmp_path))
    batches = GroundingBatches(sources.read(bad.data), words, bad, 1, range(1))
    with pytest.raises(DataError, match=r"query r2: .*query2\.png: the box \(1000\.0.* holds nothing of the picture"):
        [batches[step] for step in range(3)]
    skipping = with_data(bad, on_error="skip", max_skipped_share=0.2)
    batches = GroundingBatches(sources.read(skipping.data), words, skipping, 1, range(1))
    skipped = [skip for step in range(3) for skip in batches[step].broken]
    assert {skip.reason for skip in skipped} == {BoxError.reason}
    assert [skip.message[:9] for skip in skipped][:1] == ["query r2:"]
    assert sum(batches[step].info["skipped_triplets"] for step in range(3)) == len(skipped)
    nothing = sources.read(config.data)
    nothing = dataclasses.replace(nothing, train=())
    with pytest.raises(DataError, match="no picture of the training set has a box"):
        GroundingBatches(nothing, words, config, 1, range(1))


def test_the_shape_without_a_tokenizer_is_at_least_as_large(config, words):
    known, bound = plan_shape(config, 4, words), plan_shape(config, 4)
    assert dataclasses.replace(bound, row_tokens=0) == dataclasses.replace(known, row_tokens=0)
    assert bound.row_tokens >= known.row_tokens
