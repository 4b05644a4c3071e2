"""Vectors that another system made: the documents go out and the vectors come back to the same places."""

import dataclasses
import json
import pathlib
import re

import numpy as np
import pytest
from page_input import dataset

from moon_jax import evaluate
from moon_jax.config import Config, DataConfig, Role, resolve
from moon_jax.data import catalogue
from moon_jax.data.documents import Document, Segment
from moon_jax.data.embed_records import Reader
from moon_jax.data.picture_files import ImageError
from moon_jax.data.records import DataError, ImageRef
from moon_jax.evaluation import embedded, tasks
from moon_jax.evaluation.baselines import Baseline
from moon_jax.evaluation.benchmark import build
from moon_jax.evaluation.given import GivenVectors, write_documents
from moon_jax.evaluation.vectors import digest
from moon_jax.training.inputs import open_dataset


def documents(folder):
    return build(dataset(folder / "pictures", 8), Config()).documents


def write(folder, ids, vectors):
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "embeddings.npy", vectors)
    (folder / "ids.json").write_text(json.dumps(ids))
    return folder


@pytest.fixture
def given(tmp_path):
    """Documents, a unit vector for each, and the folder that another system made of the written documents."""
    asked = documents(tmp_path)
    vectors = np.random.default_rng(0).standard_normal((len(asked), 6)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    by_id = {digest(document): vector for document, vector in zip(asked, vectors, strict=True)}
    counts = write_documents(asked, tmp_path / "documents")
    assert sum(counts.values()) == len(asked) == len(by_id)
    for name in counts:
        ids = [json.loads(line)["id"] for line in (tmp_path / "documents" / name).read_text().splitlines()][::-1]
        write(tmp_path / "given" / name.removesuffix(".jsonl"), ids, np.stack([by_id[one] for one in ids]))
    return asked, vectors, tmp_path / "given"


def test_the_written_records_are_the_documents(tmp_path):
    """As `moon_jax.embed` reads them."""
    box = ImageRef(str(tmp_path / "boxed.png"), (1.0, 2.0, 3.0, 4.0))
    texts = (Segment(Role.TITLE, "tea\u2028pot"), Segment(Role.CATEGORY, "a > b"), Segment(Role.ATTRIBUTE, "c: d"))
    asked = [*documents(tmp_path), Document((box,), texts, "query"), Document((), texts[1:])]
    counts = write_documents(asked, tmp_path / "out")
    assert counts.keys() == {"item.jsonl", "query.jsonl"}
    read = {}
    for name in counts:
        reader = Reader(name.removesuffix(".jsonl"), DataConfig(), pathlib.Path("/nowhere"))
        with (tmp_path / "out" / name).open() as file:
            for line in file:
                record = json.loads(line)
                read[record["id"]] = reader.document(record)
    assert [read[digest(document)] for document in asked] == asked


def test_vectors_come_back_to_their_documents(given, tmp_path):
    asked, vectors, folder = given
    found = GivenVectors("mine", folder)
    assert isinstance(found, Baseline)
    method = embedded.embed_with_baseline("mine", found, asked, tmp_path / "saved", Config())
    np.testing.assert_array_equal(method.take(np.arange(len(asked))), vectors)
    assert method.about["about"] == {"given": "given", "rows": len(asked)}


def test_vectors_of_any_length_and_precision_are_made_unit(given, tmp_path):
    asked, vectors, _ = given
    for scale, dtype in ((7.0, np.float64), (0.01, np.float16)):
        write(tmp_path / "one", list(map(digest, asked)), (vectors * scale).astype(dtype))
        found = GivenVectors("mine", tmp_path / "one").embed(asked)
        np.testing.assert_allclose(found, vectors, atol=1e-6 if dtype == np.float64 else 2e-3)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_other_vectors_have_another_fingerprint(given):
    _, _, folder = given
    before = GivenVectors("mine", folder).fingerprint
    assert GivenVectors("yours", folder).fingerprint == before
    write(
        folder / "query",
        json.loads((folder / "query/ids.json").read_text()),
        1 + np.load(folder / "query/embeddings.npy"),
    )
    assert GivenVectors("mine", folder).fingerprint != before


def test_the_command_writes_documents_and_scores_what_comes_back(tmp_path, capsys, quick_compilation):
    catalogue.write(tmp_path / "drawn", 14, seed=3, size_px=32)
    settings = {"config": "configs/eval.py:catalogue", "workdir": str(tmp_path / "w")}
    changed = {"data.path": str(tmp_path / "drawn"), "eval.bootstrap_samples": 5}

    def command(**flags):
        evaluate.FLAGS.parse(**settings, **flags)
        evaluate.CONFIG.value.update_from_flattened_dict(changed)
        evaluate.main([])

    command(documents=str(tmp_path / "documents"))
    assert re.search(r"documents: item\.jsonl with \d+ records, query\.jsonl with \d+ records", capsys.readouterr().out)
    ids = [json.loads(line)["id"] for path in (tmp_path / "documents").iterdir() for line in path.open()]
    vectors = np.random.default_rng(1).standard_normal((len(ids), 4)).astype(np.float32)
    command(embeddings=f"mine={write(tmp_path / 'given', ids, vectors)}")
    results = json.loads((tmp_path / "w/results.json").read_text())
    assert results["methods"].keys() == {"mine", "color_histogram"}

    config = resolve(evaluate.CONFIG.value)
    data, found = open_dataset(config.data, tmp_path / "w")
    config = dataclasses.replace(config, data=data)
    benchmark = build(found, config)
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = np.array([ids.index(digest(document)) for document in benchmark.documents])
    expected = tasks.score(benchmark, {"mine": tasks.Method(units, rows)}, found, config)
    assert [row for row in results["rows"] if row["method"] == "mine"] == json.loads(json.dumps(expected["rows"]))

    for name in ("clip", "model", "a/b", ""):
        with pytest.raises(SystemExit, match=f"--embeddings: '{name}' cannot be the name of a method"):
            command(embeddings=f"{name}={tmp_path / 'given'}")
    with pytest.raises(SystemExit, match="--embeddings: a name is given twice"):
        command(embeddings="a=x,a=y")
    with pytest.raises(SystemExit, match=r"DataError: there is no embeddings\.npy in .*nowhere"):
        command(embeddings=f"a={tmp_path / 'nowhere'}")


def test_what_is_missing_or_does_not_fit_is_named(given, tmp_path):
    asked, vectors, folder = given
    ids = list(map(digest, asked))

    def refused(match, ids=ids, vectors=vectors, place=tmp_path / "bad"):
        write(place, ids, vectors)
        with pytest.raises(DataError, match=match) as caught:
            GivenVectors("mine", tmp_path / "bad").embed(asked)
        return caught.value

    with pytest.raises(DataError, match=r"no embeddings\.npy in .*none"):
        GivenVectors("mine", tmp_path / "none")
    refused(rf"lacks the vectors of 2 of {len(asked)} documents, the first with the id {ids[0]}", ids[2:], vectors[2:])
    refused(f"the id '{ids[0]}' is there twice", [*ids, ids[0]], vectors[[*range(len(ids)), 0]])
    refused(rf"ids\.json has {len(ids) - 1} ids for {len(ids)} vectors", ids[1:])
    refused(r"ids\.json must be a list of ids", [None, *ids[1:]])
    refused("must hold a table of floating-point numbers", vectors=vectors.astype(int))
    refused("must hold a table of floating-point numbers", vectors=vectors[0])
    for number, match, kind in ((np.nan, "has NaN", ImageError), (np.inf, "is zero or infinite", DataError)):
        bad = vectors.copy()
        bad[3, 1] = number
        assert type(refused(f"the vector of id {ids[3]} {match}", vectors=bad)) is kind
    refused(f"the vector of id {ids[3]} is zero", vectors=vectors * (np.arange(len(ids)) != 3)[:, None])
    (tmp_path / "bad/ids.json").write_text("[")
    with pytest.raises(DataError, match=r"ids\.json cannot be read"):
        GivenVectors("mine", tmp_path / "bad")
    (tmp_path / "bad/embeddings.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(DataError, match=r"embeddings\.npy cannot be read"):
        GivenVectors("mine", tmp_path / "bad")
    write(
        folder / "query",
        json.loads((folder / "query/ids.json").read_text()),
        np.load(folder / "query/embeddings.npy")[:, :4],
    )
    with pytest.raises(DataError, match=r"query.embeddings\.npy has vectors of width 4, .*item.embeddings\.npy of 6"):
        GivenVectors("mine", folder)


def test_pictures_that_are_no_files_are_refused(tmp_path):
    with pytest.raises(DataError, match="no file that another system could open"):
        write_documents([Document((ImageRef(b"bytes"),))], tmp_path)
