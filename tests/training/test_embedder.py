"""An embedding depends on its document alone: not on order, neighbours, padding, mesh or what training does."""

import dataclasses

import jax
import numpy as np
import pytest
from fake_batch import tiny_config
from jax.sharding import NamedSharding

from moon_jax.config import MeshConfig, Role
from moon_jax.data import catalogue, sources, tokenizer
from moon_jax.data.documents import aspect_document, item_document, query_document
from moon_jax.data.records import training_texts
from moon_jax.models import moon
from moon_jax.parallel.mesh import make_mesh
from moon_jax.training.embedder import Embedder


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    catalogue.write(folder / "drawn", 12, seed=1, size_px=48)
    config = tiny_config(
        data__format="catalogue",
        data__path=str(folder / "drawn"),
        data__max_pixels=24 * 24,
        data__min_pixels=8 * 8,
        data__title_tokens=8,
        data__images_per_item=2,
        model__text__vocab_size=320,
        moe__capacity_factor=0.25,  # training would drop most of the routes
        moe__guided_capacity=0.01,
        moe__router_noise=5.0,
        eval__batch_documents=3,
    )
    dataset = sources.read(config.data)
    words = tokenizer.train_bpe(training_texts(dataset), folder / "tokenizer", 320)
    triplet = next(t for t in dataset.train if t.query.image is not None and t.query.text)
    documents = [
        query_document(triplet.query, "image"),
        query_document(triplet.query, "text"),
        query_document(triplet.query, "both"),
        item_document(triplet.positive, config.data),
        item_document(triplet.positive, config.data, aspects=False),
        aspect_document("Home > Mugs", Role.CATEGORY),
        aspect_document("color: red", Role.ATTRIBUTE),
    ]
    return config, words, documents


def encode(setting, shape, documents, **settings):
    config, words, _ = setting
    config = dataclasses.replace(config, **settings)
    mesh = make_mesh(MeshConfig(*shape), jax.devices()[: int(np.prod(shape))])
    params = moon.build(config.model, config.moe, jax.random.key(0))[1]
    specs = moon.abstract(config.model, config.moe, mesh)[2]
    placed = jax.tree.map(lambda p, s: jax.device_put(np.asarray(p), NamedSharding(mesh, s)), params, specs)
    return Embedder(config, mesh, words).embed(placed, documents)


def test_the_same_vectors_on_every_mesh_in_any_order_and_company(setting):
    documents = setting[2]
    expected = encode(setting, (1, 1, 1, 1), documents)
    assert expected.shape == (7, 32)
    assert expected.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1, atol=1e-6)
    assert np.abs(expected - expected[0]).max(axis=1)[1:].min() > 1e-2  # the documents do differ
    np.testing.assert_allclose(encode(setting, (1, 2, 2, 2), documents[::-1])[::-1], expected, atol=1e-5)
    for number in (1, 3):
        alone = encode(setting, (1, 1, 1, 1), documents[number : number + 1])
        np.testing.assert_allclose(alone[0], expected[number], atol=1e-6)


def test_routing_is_dropless_and_without_noise_whatever_training_has(setting):
    quiet = dataclasses.replace(setting[0].moe, capacity_factor=0.0, guided_capacity=0.0, router_noise=0.0)
    expected = encode(setting, (1, 1, 1, 1), setting[2], moe=quiet)
    np.testing.assert_array_equal(encode(setting, (1, 1, 1, 1), setting[2]), expected)


def test_nothing_to_embed_gives_no_vectors(setting):
    assert encode(setting, (1, 1, 1, 1), []).shape == (0, 32)
