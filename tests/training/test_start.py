"""A run starts from exactly the checkpoint's weights, under its sizes; what does not fit is refused by name."""

import dataclasses
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
import tiny_hf
from meshes import mesh_of

from moon_jax import config as c
from moon_jax.config import ConfigError, MoEConfig, resolve, to_dict
from moon_jax.data import catalogue, sources
from moon_jax.data.documents import aspect_document, item_document, query_document
from moon_jax.models import moon
from moon_jax.training.checkpoint import Checkpoints
from moon_jax.training.embedder import Embedder
from moon_jax.training.pretrained import open_pretrained
from moon_jax.training.start import adopt, assets, find
from moon_jax.training.state import Trainer
from moon_jax.weights.source import WeightsError, named, place


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint of Qwen2.5-VL in bfloat16 with a head of its own, and its tokenizer."""
    return tiny_hf.write(tmp_path_factory.mktemp("hf") / "qwen", dtype="bfloat16", tied=False)


def config_of(folder, **changes):
    d = c.to_dict(c.Config())
    d["model"]["path"] = str(folder)
    d["data"] |= {"min_pixels": 8 * 8, "max_pixels": 18 * 18, "title_tokens": 8}
    d["train"]["batch_size"] = 8
    for name, value in changes.items():
        group, _, key = name.rpartition("__")
        target = d
        for part in group.split("__") if group else ():
            target = target[part]
        target[key] = value
    return resolve(d)


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    drawn = tmp_path_factory.mktemp("catalogue") / "drawn"
    catalogue.write(drawn, 12, seed=1, size_px=32)
    data = c.DataConfig(format="catalogue", path=str(drawn), title_tokens=8)
    triplet = next(t for t in sources.read(data).train if t.query.image is not None and t.query.text)
    return [
        query_document(triplet.query, "image"),
        query_document(triplet.query, "text"),
        item_document(triplet.positive, data),
        item_document(triplet.negative or triplet.positive, data),
        aspect_document("Home > Mugs", c.Role.CATEGORY),
        aspect_document("color: red", c.Role.ATTRIBUTE),
    ]


def embed(config, mesh, params, folder, documents):
    config = dataclasses.replace(config, eval=dataclasses.replace(config.eval, batch_documents=3))
    return Embedder(config, mesh, open_pretrained(folder).load_tokenizer()).embed(params, documents)


def test_the_first_embeddings_are_the_dense_models(folder, documents):
    """With experts, on eight devices, through the state of the trainer; the dense model on one."""
    start = find(config_of(folder, moe__experts=4))
    dense = dataclasses.replace(start.config, moe=MoEConfig(experts=0))
    one = mesh_of((1, 1, 1, 1))
    _, shapes, specs = moon.abstract(dense.model, dense.moe, one)
    expected = embed(dense, one, place(open_pretrained(folder).source, shapes, specs, one), folder, documents)
    assert np.abs(expected - expected[0]).max(axis=1)[1:].min() > 1e-2, "the documents do differ"
    mesh = mesh_of((1, 2, 2, 2))
    state = Trainer(start.config, mesh).start(start.source)
    np.testing.assert_allclose(embed(start.config, mesh, state.params, folder, documents), expected, rtol=0, atol=2e-6)


def test_every_weight_is_the_checkpoints(folder):
    start = find(config_of(folder, moe__experts=0))
    assert start.source is start.pretrained.source, "nothing is made of it"
    state = Trainer(start.config, mesh_of((2, 2, 2, 1))).start(start.source)
    for name, leaf in named(state.params).items():
        expected = start.source.read(name)
        assert expected.dtype == ml_dtypes.bfloat16
        assert leaf.dtype == np.float32
        np.testing.assert_array_equal(leaf, expected.astype(np.float32), err_msg=name)
    tensor = tiny_hf.tensors()["model.layers.2.mlp.gate_proj.weight"]
    np.testing.assert_array_equal(state.params["text"]["layers"]["ffn"]["gate"][2], tensor.T)


def test_experts_start_as_copies_with_the_noise_and_seed_of_the_config(folder):
    plain, noisy, other = (
        find(config_of(folder, **changes)).source
        for changes in ({}, {"moe__upcycle_noise": 0.5}, {"moe__upcycle_noise": 0.5, "train__seed": 1})
    )
    name = "text/layers/moe/up"
    weight = open_pretrained(folder).source.read("text/layers/ffn/up").astype(np.float32)
    copies = [source.read(name).astype(np.float32) - weight[:, None] for source in (plain, noisy, other)]
    assert not copies[0].any()
    assert np.std(copies[1][0]) / np.std(weight[0]) == pytest.approx(0.5, rel=0.1)
    assert np.abs(copies[1] - copies[2]).max() > 0.1


def test_sizes_are_the_checkpoints(folder):
    config = find(config_of(folder)).config
    assert (config.model.text.hidden_size, config.model.vision.depth) == (24, 2)
    assert config.model.text.rope_theta == 5000.0
    assert config.model.vision.fullatt_block_indexes == (1,)
    assert config.moe == MoEConfig()
    assert config.model.dtype == "float32", "the compute type is the run's"
    assert find(config_of(folder, model__text__hidden_size=24, model__vision__depth=2)).config == config
    assert find(config_of(folder, model__attention="bidirectional")).config.model.attention == "bidirectional"


def test_sizes_that_differ_are_all_named(folder):
    wrong = config_of(
        folder, model__text__num_hidden_layers=5, model__text__vocab_size=320, model__vision__depth=40,
        model__text__rms_norm_eps=1e-5,
    )  # fmt: skip
    with pytest.raises(ConfigError) as error:
        find(wrong)
    for line in (
        "config.model.text.num_hidden_layers is 5, the checkpoint's is 3",
        "config.model.vision.depth is 40, the checkpoint's is 2",
        "config.model.text.rms_norm_eps is 1e-05, the checkpoint's is 1e-06",
    ):
        assert f"  - {line}" in str(error.value)
    assert str(error.value).count("\n  - ") == 3
    assert str(folder) in str(error.value)


def test_the_rules_hold_for_the_sizes_of_the_checkpoint(folder):
    spec = open_pretrained(folder).spec
    vision = dataclasses.replace(spec.model.vision, patch_size=25)
    spec = dataclasses.replace(spec, model=dataclasses.replace(spec.model, vision=vision))
    with pytest.raises(ConfigError, match=r"max_pixels must hold at least one merged token \(50x50\)"):
        adopt(config_of(folder, data__max_pixels=30 * 30), spec)


def test_experts_must_be_those_of_the_checkpoint(folder):
    spec = open_pretrained(folder).spec
    moe = MoEConfig(experts=4, top_k=1, gate="softmax_all", guided="exclusive", capacity_factor=1.25)
    trained = dataclasses.replace(spec, moe=moe, model=dataclasses.replace(spec.model, attention="bidirectional"))
    with pytest.raises(ConfigError) as error:
        adopt(config_of(folder, moe__upcycle_noise=0.1), trained)
    for line in (
        "config.moe.experts is 8, the checkpoint's is 4",
        "config.moe.top_k is 2, the checkpoint's is 1",
        "config.moe.gate is 'softmax_active', the checkpoint's is 'softmax_all'",
        "config.moe.guided is 'add', the checkpoint's is 'exclusive'",
        "config.moe.upcycle_noise is for dense weights",
    ):
        assert f"  - {line}" in str(error.value)
    with pytest.raises(ConfigError, match=r"config\.moe\.experts is 0, the checkpoint's is 4"):
        adopt(config_of(folder, moe__experts=0), trained)
    same = {"moe__experts": 4, "moe__top_k": 1, "moe__gate": "softmax_all", "moe__guided": "exclusive"}
    adopted = adopt(config_of(folder, **same), trained)
    assert adopted.model.attention == "bidirectional"
    assert adopted.moe.capacity_factor == 0, "how training drops tokens is the run's own"


def test_what_the_log_says(folder):
    (line,) = find(config_of(folder)).notes()
    assert line == f"starting from the weights of {folder}, every FFN copied to 8 experts"
    assert find(config_of(folder, moe__experts=0)).notes() == [f"starting from the weights of {folder}"]
    _, warning = find(config_of(folder, moe__gate="softmax_all")).notes()
    assert "does not start at the dense model" in warning
    _, attention = find(config_of(folder, model__attention="bidirectional")).notes()
    assert attention == "the checkpoint's attention is causal; it becomes bidirectional"
    assert find(c.Config()).notes() == []


def test_without_a_path_nothing_is_opened():
    start = find(c.Config())
    assert (start.config, start.source, start.weights()) == (c.Config(), None, None)


def test_a_path_that_is_no_checkpoint(tmp_path):
    with pytest.raises(WeightsError, match="nowhere"):
        find(config_of(tmp_path / "nowhere"))


def test_a_resumed_run_does_without_the_folder(folder, tmp_path):
    """Its own checkpoint has the sizes and where they came from; while the folder is there, it is compared."""
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    begun = find(config_of(moved, moe__experts=4))
    weights = begun.weights()
    assert weights["tied"] is False
    assert weights["origin"]["kind"] == "hf"
    assert weights["origin"]["changes"] == ["every FFN copied to 4 experts (seed 0)"]
    saved = {"config": to_dict(begun.config), "weights": weights}
    again = find(config_of(moved, moe__experts=4), saved)
    assert (again.config, again.weights()) == (begun.config, weights)
    elsewhere = moved.rename(tmp_path / "elsewhere")
    without = find(config_of(moved, moe__experts=4), saved)
    assert (without.config, without.weights(), without.source) == (begun.config, weights, None)
    assert find(config_of(elsewhere, moe__experts=4), saved).weights() == weights, "the same weights at another place"
    other = tiny_hf.write(tmp_path / "other", seed=1)
    assert find(config_of(other, moe__experts=4), saved).weights()["fingerprint"] != weights["fingerprint"]


def test_a_run_starts_from_the_checkpoint_of_another_run(folder, tmp_path):
    """To the bit, experts and all; its model card knows where the first one came from."""
    begun = find(config_of(folder, moe__experts=4, moe__top_k=1, moe__gate="softmax_all", name="first"))
    trainer = Trainer(begun.config, mesh_of((2, 2, 2, 1)))
    state = trainer.start(begun.source)
    meta = {"config": to_dict(begun.config), "weights": begun.weights()}
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        checkpoints.save(7, state, meta, assets(begun.config, folder, meta, 7))
    next_config = config_of(tmp_path / "run", moe__experts=4, moe__top_k=1, moe__gate="softmax_all", name="second")
    start = find(next_config)
    assert dataclasses.replace(start.config, name="first", model=begun.config.model) == begun.config
    second = Trainer(start.config, mesh_of((1, 2, 2, 2))).start(start.source)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(state.params), jax.tree.leaves(second.params), strict=True
    ):
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))
    assert not start.upcycles
    weights = start.weights()
    assert (weights["tied"], weights["origin"]["kind"], weights["origin"]["step"]) == (False, "training", 7)
    assert weights["origin"]["origin"] == meta["weights"]["origin"]
    card = assets(start.config, folder, {"weights": weights}, 9)["README.md"].decode()
    for words in ("`second`, step 9", "step 7", "`qwen`", "every FFN copied to 4 experts"):
        assert words in card
