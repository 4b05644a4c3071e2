"""The command line: a file of records in, vectors out; killed and started again, the same files to the last bit."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny_hf
from PIL import Image

import moon_jax
from moon_jax import embed

ROOT = pathlib.Path(moon_jax.__file__).parents[1]
OUTPUTS = ("embeddings.npy", "ids.json", "settings.json")


pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_hf.write(tmp_path_factory.mktemp("hf") / "model", max_pixels=30 * 30)


def write_records(folder, records, ending="\n"):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "records.jsonl"
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + ending if isinstance(r, dict) else r for r in records))
    return path


def picture(folder, name, number):
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(number).integers(0, 255, (6 + number % 25, 9 + number % 31, 3))
    Image.fromarray(noise.astype(np.uint8)).save(folder / name)


def run(model, path, output, **settings):
    """Runs the command in this process, on one device unless asked otherwise; returns nothing or exits."""
    embed.FLAGS.parse(**{"model": model, "input": path, "output": output, "dtype": "float32", **settings})
    embed.main([])


def refused(model, path, output, **settings) -> str:
    with pytest.raises(SystemExit) as caught:
        run(model, path, output, **settings)
    return str(caught.value)


def test_vectors_ids_and_settings(model, tmp_path, monkeypatch, capsys):
    """Records of every kind on eight devices, against encode on them; pictures beside the file are found."""
    folder = tmp_path / "data"
    picture(folder / "img", "a.png", 3)
    records = [
        {"id": "a", "title": "a mug", "images": ["img/a.png"], "boxes": [[2, 2, 9, 8]]},
        "\n",
        {"id": 5, "text": "café 蓝色", "category": ["Home", "Mugs"]},
        {"text": "no id", "attributes": {"color": ["red", "blue"]}},
        {"id": "a", "images": [str(folder / "img" / "a.png")], "id2": None} | {},
    ]
    records[4].pop("id2")
    path = write_records(folder, records)
    monkeypatch.chdir(tmp_path)
    run(model, path, tmp_path / "out", kind="item", batch_size=2)
    vectors = np.load(tmp_path / "out" / "embeddings.npy")
    monkeypatch.chdir(folder)
    encoder = moon_jax.load(model, None, "float32")
    expected = encoder.encode_item([r for r in records if isinstance(r, dict)])
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    assert vectors.dtype == np.float32
    assert json.loads((tmp_path / "out" / "ids.json").read_text()) == ["a", 5, None, "a"]
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings["identity"]["kind"] == "item"
    assert settings["identity"]["mesh"] == {"data": 8, "fsdp": 1, "expert": 1, "tensor": 1}
    assert settings["input"]["repeated_ids"] == 1
    assert settings["skipped"] == []
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(OUTPUTS)
    assert "1 records have an id that an earlier record has" in capsys.readouterr().err
    run(model, path, tmp_path / "out", kind="item", batch_size=2)
    assert "is finished already" in capsys.readouterr().err
    message = refused(model, path, tmp_path / "out", kind="query", batch_size=2)
    assert "kind was 'item', is 'query'" in message
    with path.open("a") as file:
        file.write('{"text": "one more"}\n')
    message = refused(model, path, tmp_path / "out", kind="item", batch_size=2)
    assert "input was" in message
    assert "records was 4, is 5" in message
    other = tiny_hf.write(tmp_path / "other", seed=1)
    assert "weights was" in refused(other, path, tmp_path / "out", kind="item", batch_size=2)


def test_a_missing_picture_stops_a_run_that_can_go_on_without_it(model, tmp_path):
    path = write_records(tmp_path / "in", [{"id": 1, "text": "x"}, {"id": 2, "images": ["lost.png"]}])
    message = refused(model, path, tmp_path / "out")
    assert "lost.png: no such" in message
    assert "--on_error=skip" in message
    run(model, path, tmp_path / "out", on_error="skip", max_skipped_share=0.5)
    assert np.isnan(np.load(tmp_path / "out" / "embeddings.npy")).any(1).tolist() == [False, True]
    (tmp_path / "file").write_text("mine")
    assert "is a file" in refused(model, path, tmp_path / "file")


def test_bad_records_stop_the_run_or_are_skipped(model, tmp_path, capsys):
    folder = tmp_path / "data"
    picture(folder, "a.png", 1)
    (folder / "torn.png").write_bytes((folder / "a.png").read_bytes()[:200])
    records = [
        {"id": "x", "text": "fine"},
        "not json\n",
        {"id": "bad", "titel": "x"},
        {"id": "lost", "images": ["lost.png"]},
        {"id": "torn", "text": "y", "images": ["torn.png"]},
        {"id": "z", "images": ["a.png"]},
    ]
    path = write_records(folder, records)
    message = refused(model, path, tmp_path / "out", mesh="data=8")
    assert message.startswith("DataError: 2 records cannot be used")
    assert "records.jsonl:2: line: not JSON" in message
    assert "records.jsonl:3 (id 'bad'): unknown key 'titel'" in message
    assert not (tmp_path / "out").exists()
    assert "--max_skipped_share = 0.5" in refused(
        model, path, tmp_path / "out", mesh="data=8", on_error="skip", max_skipped_share=0.5
    )
    run(model, path, tmp_path / "out", mesh="data=8", on_error="skip", max_skipped_share=0.9)
    vectors = np.load(tmp_path / "out" / "embeddings.npy")
    np.testing.assert_array_equal(np.isnan(vectors).any(1), [False, True, True, True, True, False])
    np.testing.assert_allclose(np.linalg.norm(vectors[[0, 5]], axis=1), 1, atol=1e-6)
    assert json.loads((tmp_path / "out" / "ids.json").read_text()) == ["x", None, "bad", "lost", "torn", "z"]
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert [entry["row"] for entry in settings["skipped"]] == [1, 2, 3, 4]
    for entry, said in zip(settings["skipped"], ("not JSON", "titel", "lost.png: no such", "torn.png"), strict=True):
        assert said in entry["reason"]
    assert "4 of them skipped" in capsys.readouterr().err
    pictures = write_records(tmp_path / "two", [{"images": [str(folder / "lost.png")]}])
    assert "records.jsonl:1: " in refused(model, pictures, tmp_path / "out2", mesh="data=8")


def test_mistakes_of_the_user_are_one_plain_message(model, tmp_path):
    path = write_records(tmp_path, [{"text": "a"}])
    assert "AXIS=SIZE; the axes are data, fsdp" in refused(model, path, tmp_path / "out", mesh="fdsp=2")
    assert "does not multiply to the 8 devices" in refused(model, path, tmp_path / "out", mesh="data=3")
    assert "there is no file" in refused(model, tmp_path / "no.jsonl", tmp_path / "out")
    assert "holds no model" in refused(tmp_path / "none", path, tmp_path / "out")
    assert "--batch_size must be" in refused(model, path, tmp_path / "out", batch_size=0)
    assert "max_pixels" in refused(model, path, tmp_path / "out", max_pixels=5)
    assert not (tmp_path / "out").exists()


def test_an_empty_file_gives_no_rows(model, tmp_path):
    run(model, write_records(tmp_path, ["\n"]), tmp_path / "out")
    assert np.load(tmp_path / "out" / "embeddings.npy").shape == (0, 24)
    assert json.loads((tmp_path / "out" / "ids.json").read_text()) == []


def test_killed_at_any_time_it_goes_on_and_gives_the_same_bytes(model, tmp_path):
    """SIGKILL in the middle, twice; then to the end, against a run that nobody disturbed."""
    folder = tmp_path / "data"
    records = []
    for number in range(420):
        record = {"id": number, "text": "word " * (number % 13 + 1)}
        if number % 20 == 0:
            picture(folder, f"{number}.png", number)
            record["images"] = [f"{number}.png"] if number else ["lost.png"]
        records.append(record)
    path = write_records(folder, records)
    settings = {"batch_size": 1, "on_error": "skip", "mesh": "data=8"}
    output = tmp_path / "killed"
    said = {"model": model, "input": path, "output": output, "dtype": "float32", **settings}
    command = [sys.executable, "-m", "moon_jax.embed", *(f"--{name}={value}" for name, value in said.items())]
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}  # as here, or other bits
    positions = [(0, 0)]
    for _ in range(2):
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
        while True:
            assert process.poll() is None, process.stderr.read()
            position = _position(output)
            if position > positions[-1]:
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        positions.append(_position(output))
        assert not (output / "embeddings.npy").exists()
    assert positions[0] < positions[1] < positions[2]
    progress = json.loads((output / "progress.json").read_text())
    assert 0 < progress["counts"]["records"] < 420
    run(model, path, output, **settings)
    run(model, path, tmp_path / "whole", **settings)
    for name in OUTPUTS:
        assert (output / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert not (output / "progress.json").exists()
    vectors = np.load(output / "embeddings.npy")
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(vectors).any(1)), [0])


def _position(output):
    try:
        progress = json.loads((output / "progress.json").read_text())
        return progress["window"], progress["batch"]
    except FileNotFoundError:
        return 0, 0
