"""Our encoder in mteb: with its own small tasks where the package is installed, the rest with batches like its own."""

import importlib.util

import jax
import numpy as np
import pytest
import tiny_hf
from PIL import Image

import moon_jax
from moon_jax.config import MeshConfig
from moon_jax.data.records import DataError
from moon_jax.evaluation.mteb_adapter import MtebEncoder
from moon_jax.parallel.mesh import make_mesh

HAS_MTEB = importlib.util.find_spec("mteb") is not None

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tiny_hf.write(tmp_path_factory.mktemp("hf") / "model", max_pixels=30 * 30)
    return moon_jax.load(folder, make_mesh(MeshConfig(data=1), jax.devices()[:1]), "float32")


def picture(number):
    return Image.fromarray(np.random.default_rng(number).integers(0, 255, (20, 24 + number, 3), np.uint8))


def test_batches_become_records_of_the_kind_that_was_asked_for(encoder):
    model = MtebEncoder(encoder)
    batches = [{"text": ["a mug", "café"], "id": ["1", "2"]}, {"text": ["blue shoes"], "id": ["3"]}]
    texts = ["a mug", "café", "blue shoes"]
    for prompt_type, kind in ((None, "plain"), ("query", "query"), ("document", "item")):
        found = model.encode(iter(batches), prompt_type=prompt_type, task_metadata=None, hf_split="test", hf_subset="x")
        np.testing.assert_allclose(found, encoder.encode(texts, kind=kind), atol=1e-6)
    several = [{"image": [picture(0), [picture(1), picture(2)]], "text": ["one", "two"]}, {"image": [picture(3)]}]
    records = [
        {"text": "one", "images": picture(0)},
        {"text": "two", "images": [picture(1), picture(2)]},
        {"images": picture(3)},
    ]
    np.testing.assert_allclose(model.encode(several, batch_size=2), encoder.encode(records), atol=1e-6)
    with pytest.raises(DataError, match="the task gives audio"):
        model.encode([{"audio": [1]}])


def test_similarities_are_cosines(encoder):
    model, (a, b) = MtebEncoder(encoder), np.random.default_rng(0).normal(size=(2, 4, 8))
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    np.testing.assert_allclose(model.similarity(a, b), a @ b.T, atol=1e-6)
    np.testing.assert_allclose(model.similarity(a[0], b[1]), [[a[0] @ b[1]]], atol=1e-6)
    np.testing.assert_allclose(model.similarity_pairwise(a, b), (a * b).sum(1), atol=1e-6)


def test_without_mteb_the_error_says_what_to_install(encoder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "mteb.models.model_meta", None)
    with pytest.raises(ImportError, match="pip install 'mteb>=2'"):
        _ = MtebEncoder(encoder).mteb_model_meta


if HAS_MTEB:
    import mteb
    from mteb import mocks
    from mteb.models.models_protocols import EncoderProtocol

    def test_tasks_of_mteb_run_offline(encoder):
        model = MtebEncoder(encoder, "me/tiny")
        assert isinstance(model, EncoderProtocol)
        tasks = [
            mocks.MockRetrievalTask(), mocks.MockAny2AnyRetrievalT2ITask(), mocks.MockSTSTask(),
            mocks.MockClassificationTask(), mocks.MockImageClassificationTask(), mocks.MockPairClassificationTask(),
        ]  # fmt: skip
        done = mteb.evaluate(model, tasks, cache=None, co2_tracker=False, show_progress_bar=False)
        scores = {one.task_name: one.get_score() for one in done.task_results}
        assert len(scores) == len(tasks)
        assert all(0 <= abs(score) <= 1 for score in scores.values()), scores
        assert done.model_name == "me/tiny"

    def test_the_score_of_a_retrieval_task_is_ours(encoder):
        """mteb's recall at 1 against the nearest document by our own vectors."""
        task = mocks.MockRetrievalTask()
        task.load_data()
        data = task.dataset["default"]["test"]
        queries, corpus, relevant = list(data["queries"]), list(data["corpus"]), data["relevant_docs"]
        result = mteb.evaluate(MtebEncoder(encoder), task, cache=None, co2_tracker=False, show_progress_bar=False)
        texts = [f"{row.get('title') or ''} {row['text']}".strip() for row in corpus]
        scores = encoder.encode_query([row["text"] for row in queries]) @ encoder.encode_item(texts).T
        nearest = [corpus[place]["id"] for place in scores.argmax(axis=1)]
        recalls = []
        for query, found in zip(queries, nearest, strict=True):
            right = {name for name, grade in relevant[query["id"]].items() if grade > 0}
            recalls.append((found in right) / len(right))
        assert len(recalls) > 0
        assert result.task_results[0].scores["test"][0]["recall_at_1"] == pytest.approx(np.mean(recalls), abs=1e-5)
