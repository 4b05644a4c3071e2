"""Listings of one to eight pictures all the way: detection's questions, batches, training, evaluation, encoding.

Of a listing's pictures the last has the colour that is asked for and the others are grey, so that a model finds the
listing only if it looks at all of them.
"""

import colorsys
import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest
from fake_batch import tiny_config
from PIL import Image

import moon_jax
from moon_jax import train
from moon_jax.config import Config, MeshConfig
from moon_jax.data import sources, tokenizer
from moon_jax.data.documents import item_document
from moon_jax.data.grounding import all_questions
from moon_jax.data.pipeline import TrainBatches
from moon_jax.data.records import Dataset, training_texts
from moon_jax.parallel.mesh import make_mesh

PRODUCTS, SIDE, BOX = 8, 16, [0, 0, 8, 16]

pytestmark = pytest.mark.usefixtures("quick_compilation")


def pictures_of(number: int) -> int:
    return 1 + number % 8


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> pathlib.Path:
    """Our layout, and a file of boxes for every second picture of every listing."""
    folder = tmp_path_factory.mktemp("shop")
    rng = np.random.default_rng(0)

    def save(name, color):
        pixels = np.clip(np.asarray(color) * 255 + rng.normal(0, 6, (SIDE, SIDE, 3)), 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / name)
        return name

    items, records, boxes = [], {"train": [], "test": []}, []
    for n in range(PRODUCTS):
        color = colorsys.hsv_to_rgb(n / PRODUCTS, 1, 1)
        last = pictures_of(n) - 1
        names = [save(f"{n}-{i}.png", color if i == last else (0.5,) * 3) for i in range(last + 1)]
        items.append({"item_id": f"i{n:02d}", "title": "thing", "images": names})
        boxes += [{"image": name, "title": "thing", "box": BOX, "status": "parsed"} for name in names[1::2]]
        for name, count in (("train", 4), ("test", 2)):
            for i in range(count):
                query = {"image": save(f"{name}-{n}-{i}.png", color), "text": "find it"}
                records[name].append({"id": f"{name}-{n}-{i}", "query": query, "positive": {"item_id": f"i{n:02d}",
                                      "title": "thing", "images": names}, "negative": None})  # fmt: skip
    for name, rows in {"items": items, **records, "boxes": boxes}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def config(shop) -> Config:
    return tiny_config(
        data__path=str(shop), data__boxes=str(shop / "boxes.jsonl"), data__images_per_item=8, data__slot_share=0.7,
        data__min_pixels=SIDE**2, data__max_pixels=SIDE**2, data__title_tokens=4, data__category_tokens=4,
        data__attribute_tokens=4, data__unseen_share=0.0, data__aspect_only=0.0, data__modality_mix=(1, 0, 0),
        data__crop_margin=0.0, model__attention="bidirectional", model__text__vocab_size=300,
        model__text__num_hidden_layers=1, model__vision__depth=1, model__vision__fullatt_block_indexes=(0,),
        moe__experts=4, moe__top_k=1, moe__gate="softmax_all", loss__ring_batches=0,
        mesh__data=8, train__batch_size=8, train__steps=14, train__lr=1e-2,
        train__checkpoint_every=1000, eval__every=0, eval__ks=(1, 3), eval__batch_documents=8,
        eval__metric="seen/image/R@1",
    )  # fmt: skip


@pytest.fixture(scope="module")
def dataset(config) -> Dataset:
    return sources.read(config.data)


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    return workdir, train.run(config, workdir)


def test_every_picture_is_asked_for_and_gets_its_box(config, dataset):
    asked = [q for q in all_questions(dataset) if q.kind == "listing"]
    assert len({q.image.path for q in asked}) == len(asked) == sum(map(pictures_of, range(PRODUCTS)))
    for number, product in enumerate(dataset.products.values()):
        boxes = [image.box for image in product.images]
        assert boxes == [tuple(map(float, BOX)) if i % 2 else None for i in range(pictures_of(number))]


def test_a_batch_holds_all_pictures_and_their_crops_in_fewer_slots_than_the_worst_case(config, dataset, tmp_path):
    words = tokenizer.train_bpe(training_texts(dataset), tmp_path, 300)
    batches = TrainBatches(dataset, words, config, 2, range(2))
    assert batches.shape.image_slots < batches.largest.image_slots == 4 * (2 * 12 + 1)
    batch, (rows, _) = batches[0], batches.sampler.rows(0)
    for g in range(2):
        shard = {name: array[g] for name, array in batch.arrays.items()}
        owner = np.take_along_axis(shard["document_of_segment"], shard["segment_ids"], axis=1)
        for i, row in enumerate(rows[4 * g : 4 * g + 4]):
            for name, product in (("positive", row.triplet.positive), ("negative", row.negative)):
                count = len(product.images) + sum(image.box is not None for image in product.images)
                starts = shard["tokens"][owner == shard[name][i]] == words.vision_start
                assert starts.sum() == count
        pictures = sum(len(np.unique(slot[slot > 0])) for slot in shard["patch_picture"])
        assert pictures == (shard["tokens"] == words.vision_start).sum()


def test_training_finds_the_picture_that_counts(trained):
    assert trained[1]["metrics"]["seen/image/R@1"] > 0.6
    assert trained[1]["metrics"]["seen/image/R@3"] > 0.9


def test_without_the_other_pictures_there_is_nothing_to_find(config, dataset):
    """Only the listing of a single picture differs from the others at all."""
    one = dataclasses.replace(config.data, images_per_item=1)
    shown = [np.asarray(Image.open(item_document(p, one).images[0].path)) for p in dataset.products.values()]
    assert sum(np.ptp(pixels.mean((0, 1))) > 100 for pixels in shown) == 1


def test_the_saved_model_looks_at_all_eight_and_no_further(trained, shop):
    encoder = moon_jax.load(trained[0], make_mesh(MeshConfig(data=1), jax.devices()[:1]))
    eight = [str(shop / f"7-{i}.png") for i in range(8)]
    others = [[*eight[:i], str(shop / "train-3-0.png"), *eight[i + 1 :]] for i in range(8)]
    records = [{"title": "thing", "images": images} for images in (eight, [*eight, eight[0]], *others, eight[::-1])]
    vectors = encoder.encode_item(records)
    np.testing.assert_allclose(vectors[1], vectors[0], atol=1e-6)
    assert (np.abs(vectors[2:10] - vectors[0]).max(axis=1) > 1e-3).all()
    alone = encoder.encode_item([{"title": "thing", "images": eight[:1]}])
    assert np.abs(alone - vectors[0]).max() > 1e-3
