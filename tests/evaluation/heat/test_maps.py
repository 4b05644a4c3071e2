"""Maps of documents against transformers' attention matrices, alone and packed together, on one device and on eight."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny_hf
from PIL import Image

from moon_jax.config import MeshConfig, Role
from moon_jax.data.documents import Document, Segment
from moon_jax.data.records import DataError, ImageRef
from moon_jax.encoder import from_pretrained
from moon_jax.evaluation.heat.maps import AttentionMapper, even_attention, visual_runs
from moon_jax.parallel.mesh import make_mesh
from moon_jax.training.pretrained import open_pretrained

pytestmark = pytest.mark.usefixtures("quick_compilation")

SPLIT_HEADS = MeshConfig(fsdp=2, expert=2, tensor=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tiny_hf.write(tmp_path_factory.mktemp("hf") / "model", max_pixels=60 * 60)
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate([(40, 31), (24, 60)]):
        Image.fromarray(rng.integers(0, 255, (height, width, 3)).astype(np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def documents(folder):
    first, second = (ImageRef(str(folder / f"{n}.png")) for n in range(2))
    title = Segment(Role.TITLE, "a red mug for the kitchen")
    return [
        Document(
            (dataclasses.replace(first, box=(3.0, 4.0, 29.0, 30.0)),), (title, Segment(Role.CATEGORY, "Home > Mugs"))
        ),
        Document((second, first), (title,), "plain"),
        Document((second,)),
        Document((), (title, Segment(Role.ATTRIBUTE, "color: 蓝色"))),
        Document((), (Segment(Role.TITLE, "word " * 40),), "query"),
    ]


def maps(folder, documents, mesh, method="attention", batch_documents=1, **model):
    found = open_pretrained(folder)
    found = dataclasses.replace(
        found, spec=dataclasses.replace(found.spec, model=dataclasses.replace(found.spec.model, **model))
    )
    encoder = from_pretrained(found, mesh, "float32")
    mapper = AttentionMapper(encoder.config, encoder.mesh, encoder.tokenizer, method)
    made = dict(mapper.maps(encoder.params, documents, batch_documents))
    return [made[number] for number in range(len(documents))]


@pytest.fixture(scope="module")
def one_device():
    return make_mesh(MeshConfig(data=1), jax.devices()[:1])


@pytest.fixture(scope="module")
def alone(folder, documents, one_device):
    return maps(folder, documents, one_device)


@pytest.fixture(scope="module")
def rolled(folder, documents, one_device):
    return maps(folder, documents, one_device, "rollout")


@pytest.fixture(scope="module")
def eager(folder):
    """transformers' model, which gives whole attention matrices."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    load = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained
    return load(folder, dtype="float32", attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def matrices(eager, folder, documents, alone):
    """Per document float64 [layers, heads, queries, keys] of transformers, from its own processing of the pictures."""
    import torch
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    from moon_jax.evaluation.heat.sheet import views

    processor, data, out = Qwen2VLImageProcessorPil.from_pretrained(folder), open_pretrained(folder).spec.data, []
    for document, attention in zip(documents, alone, strict=True):
        ids = torch.from_numpy(attention.tokens).long()[None]
        made = {"input_ids": ids, "output_attentions": True}
        if document.images:
            made |= processor(views(document, data), return_tensors="pt")
            made["mm_token_type_ids"] = (ids == eager.config.image_token_id).int()
        eager.model.rope_deltas = None
        with torch.no_grad():
            out.append(np.stack([a[0].double().numpy() for a in eager.model(**made).attentions]))
    return out


@pytest.mark.torch
def test_maps_are_the_mean_rows_of_transformers_attention_matrices(alone, matrices):
    for attention, matrix in zip(alone, matrices, strict=True):
        assert attention.weights.shape == (3, 6, len(attention.tokens))
        np.testing.assert_allclose(attention.weights, matrix.mean(2), atol=2e-6)
    spread = alone[0].weights.std(-1).mean() / alone[0].weights.mean()
    assert spread > 0.3  # far from even: heads or layers in another order would show
    assert np.abs(alone[0].weights[:, [1, 0, 2, 3, 4, 5]] - alone[0].weights).max() > 1e-3


@pytest.mark.torch
def test_rollout_is_the_product_of_transformers_attention_matrices(rolled, matrices):
    for attention, matrix in zip(rolled, matrices, strict=True):
        product = np.eye(len(attention.tokens))
        for layer in matrix.mean(1):
            product = (layer + np.eye(len(layer))) / 2 @ product
        assert attention.weights.shape == (1, 1, len(layer))
        np.testing.assert_allclose(attention.weights[0, 0], product.mean(0), atol=2e-6)


@pytest.mark.parametrize("method", ["attention", "rollout"])
def test_the_same_on_eight_devices_and_in_company(folder, documents, alone, rolled, method):
    expected = {"attention": alone, "rollout": rolled}[method][:3]
    found = maps(folder, documents[:3] * 3, SPLIT_HEADS, method, batch_documents=2)
    for one, other in zip(expected * 3, found, strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)
        np.testing.assert_array_equal(one.roles, other.roles)
        assert one.pictures == other.pictures
        np.testing.assert_allclose(other.weights, one.weights, atol=1e-6)


def test_weights_add_up_and_pictures_are_runs_of_visual_tokens(alone, documents):
    for attention in alone:
        np.testing.assert_allclose(attention.weights.sum(-1), 1, atol=1e-5)
    assert [[(grid, role) for grid, role in attention.pictures] for attention in alone] == [
        [((7, 5), Role.IMAGE), ((5, 5), Role.CORE)],
        [((4, 10), Role.IMAGE), ((7, 5), Role.IMAGE)],
        [((4, 10), Role.IMAGE)], [], [],
    ]  # fmt: skip
    for attention in alone:
        runs = visual_runs(attention)
        assert len(runs) == len(attention.pictures)
        for run, ((high, wide), role) in zip(runs, attention.pictures, strict=True):
            assert set(attention.roles[run]) == {role}
            assert run.stop - run.start == high * wide
        visual = np.isin(attention.roles, (Role.IMAGE, Role.CORE))
        assert visual.sum() == sum(run.stop - run.start for run in runs)


def test_pictures_that_do_not_fit_the_tokens_are_refused(alone):
    wrong = dataclasses.replace(alone[0], pictures=alone[0].pictures[:1])
    with pytest.raises(ValueError, match="do not fit pictures"):
        visual_runs(wrong)


@pytest.mark.parametrize(
    ("attention", "method"), [("causal", "attention"), ("causal", "rollout"), ("bidirectional", "attention")]
)
def test_even_attention_is_what_a_model_without_queries_has(folder, documents, one_device, attention, method):
    """With q = 0 all scores are equal; then the map is known without a model."""
    encoder = from_pretrained(open_pretrained(folder), one_device, "float32")
    layers = encoder.params["text"]["layers"]
    layers["q"], layers["q_bias"] = 0 * layers["q"], 0 * layers["q_bias"]
    config = dataclasses.replace(encoder.config, model=dataclasses.replace(encoder.config.model, attention=attention))
    mapper = AttentionMapper(config, one_device, encoder.tokenizer, method)
    for _, found in mapper.maps(encoder.params, documents[3:], 2):
        even = even_attention(len(found.tokens), attention == "causal", 3 if method == "rollout" else 0)
        np.testing.assert_allclose(found.weights, np.broadcast_to(even, found.weights.shape), atol=1e-6)


def test_even_attention_by_hand():
    np.testing.assert_allclose(even_attention(3, False), [1 / 3] * 3)
    np.testing.assert_allclose(even_attention(3, True), [(1 + 1 / 2 + 1 / 3) / 3, (1 / 2 + 1 / 3) / 3, 1 / 9])
    np.testing.assert_allclose(even_attention(2, True, 1), [(1 / 2 + 3 / 4) / 2, (1 / 2 + 1 / 4) / 2])


def test_a_picture_that_cannot_be_read_is_named(folder, documents, one_device, tmp_path):
    broken = Document((ImageRef(str(tmp_path / "none.png")),), name="records.jsonl:1")
    with pytest.raises(DataError, match=r"records.jsonl:1.*none.png"):
        maps(folder, [*documents, broken], one_device)
