"""Hostile input through the real way: reader, header check, documents, pixels, packed batch; and the page about it.

python tests/data/test_strangers.py > docs/bad_input.md      # writes the page anew
"""

import dataclasses
import json
import logging
import pathlib
import re
import sys
import tempfile
import warnings

import numpy as np
import pytest
from bad_input_page import Outcome, page
from hostile import CASES
from hostile_case import HEIGHT, PIXELS, WIDTH, Case, line
from image_kinds import png
from PIL import Image

from moon_jax.config import Config, DataConfig, ModelConfig, Role, TrainConfig, VisionConfig
from moon_jax.data import images, policy, sources, tokenizer
from moon_jax.data.patches import patchify
from moon_jax.data.pipeline import SKIP_GRACE, Batch, TrainBatches, stream
from moon_jax.data.records import DataError, Dataset
from moon_jax.data.views import pad_to_aspect

PAGE = pathlib.Path(__file__).parents[2] / "docs/bad_input.md"
VISION = VisionConfig(patch_size=4, window_size=16)
DATA = DataConfig(
    format="jsonl", unseen_share=0.0, min_pixels=64, max_pixels=40 * 64, crop_margin=0.0, title_tokens=64,
    aspect_dropout=1.0, aspect_only=0.0, modality_mix=(0, 1, 0), max_skipped_share=0.5,
)  # fmt: skip
SOUND = 3  # triplets beside the hostile one: a batch of all of them


def config(folder, **changes) -> Config:
    data = dataclasses.replace(DATA, path=str(folder), **changes)
    return Config(model=ModelConfig(vision=VISION), data=data, train=TrainConfig(batch_size=SOUND + 1, seed=3))


def write(case: Case, folder: pathlib.Path) -> None:
    """Writes a data set of sound triplets with the hostile one among them."""
    folder.mkdir()
    (folder / "sound.png").write_bytes(png(PIXELS, 8, 2))
    sound = [
        json.dumps(
            {
                "id": f"t{n}",
                "query": {"text": f"query {n}"},
                "positive": {"item_id": f"sound {n}", "title": f"sound title {n}", "image": "sound.png"},
                "negative": {"item_id": f"sound {(n + 1) % SOUND}", "title": f"sound title {(n + 1) % SOUND}"},
            }
        ).encode()
        for n in range(SOUND)
    ]
    (folder / "train.jsonl").write_bytes(b"\n".join([sound[0], case.make(folder), *sound[1:]]) + b"\n")


def run(folder, words, **changes) -> tuple[Dataset, Batch]:
    """What `moon_jax.train` does with data before the first step."""
    settings = config(folder, **changes)
    dataset = sources.read(settings.data)
    images.check(dataset, settings.data)
    return dataset, TrainBatches(dataset, words, settings, 1, range(1))[0]


def outcome(folder, words) -> Outcome:
    dataset, batch = run(folder, words, on_error="skip")
    if dataset.report["skipped"]:
        return Outcome("skipped while reading", dataset.report["skipped_examples"][0], batch, dataset)
    if batch.info["skipped_triplets"]:
        return Outcome("skipped while loading", batch.broken[0].message, batch, dataset)
    if "hostile" not in dataset.products:
        return Outcome("left out", "", batch, dataset)
    if batch.info["unused_boxes"]:
        return Outcome("used without its crop", batch.broken[0].message, batch, dataset)
    return Outcome("used", "", batch, dataset)


def listing(batch: Batch, dataset: Dataset, words) -> tuple[str, dict[Role, np.ndarray]]:
    """The title and the pixels of the hostile listing, as the model gets them."""
    shard = {name: array[0] for name, array in batch.arrays.items()}
    row = shard["positive_product"].tolist().index(dataset.numbers["hostile"])
    owner = np.take_along_axis(shard["document_of_segment"], shard["segment_ids"], axis=1)
    here = owner == shard["positive"][row]
    roles, slots = shard["roles"][here], shard["image_slots"][here]
    by_unit = shard["patches"].reshape(-1, VISION.merge_unit, VISION.patch_dim)
    pixels = {role: by_unit[slots[roles == role]].reshape(-1, VISION.patch_dim) for role in (Role.IMAGE, Role.CORE)}
    return words.decode(shard["tokens"][here][roles == Role.TITLE].tolist()), pixels


def expected_patches(shown: np.ndarray | None) -> np.ndarray:
    if shown is None:
        return np.zeros((0, VISION.patch_dim), np.float32)
    image = pad_to_aspect(Image.fromarray(shown), DATA.max_aspect)
    return patchify(image, VISION, DATA.min_pixels, DATA.max_pixels).patches


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return tokenizer.train_bpe([], tmp_path_factory.mktemp("tokenizer"), 270)  # one token a byte


@pytest.fixture(scope="module")
def outcomes():
    """Filled by the tests, for the page."""
    return {}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("number", range(len(CASES)), ids=[f"{case.group}: {case.what}"[:60] for case in CASES])
def test_hostile_input_is_used_rightly_or_skipped_by_name(number, words, tmp_path, outcomes):
    case = CASES[number]
    write(case, tmp_path / "data")
    found = outcomes[number] = outcome(tmp_path / "data", words)
    assert found.becomes == case.becomes, found.message
    products = set(found.batch.arrays["positive_product"][0].tolist())
    assert {found.dataset.numbers[f"sound {n}"] for n in range(SOUND)} <= products  # nothing sound is lost
    if found.becomes == "used":
        _, strict = run(tmp_path / "data", words)
        for name, array in found.batch.arrays.items():
            np.testing.assert_array_equal(array, strict.arrays[name])
    elif found.becomes != "left out":
        with pytest.raises(DataError) as error:
            run(tmp_path / "data", words)
        for message in (found.message, str(error.value)):
            assert len(message) < 1500
            assert all(c.isprintable() or c == "\n" for c in message)
        place = "items.jsonl:2: " if "items.jsonl" in case.what else r"train\.jsonl:\d+: "
        assert re.search(place if "reading" in case.becomes else "triplet t-hostile: ", found.message)
        assert re.search(
            place if "reading" in case.becomes else "(listing hostile|triplet t-hostile): ", str(error.value)
        )
    if found.becomes.startswith("used"):
        title, pixels = listing(found.batch, found.dataset, words)
        if case.text is None:
            said = json.loads((tmp_path / "data" / "train.jsonl").read_bytes().splitlines()[1])["positive"]["title"]
            whole = words.decode(words.encode(said[:1000]))
            assert len(title) >= DATA.title_tokens // 2
            assert whole.startswith(title.rstrip("\ufffd"))
            assert found.batch.info["cut_texts"] == 1
        else:
            assert title == case.text
            assert found.batch.info["cut_texts"] == 0
        np.testing.assert_array_equal(pixels[Role.IMAGE], expected_patches(case.shown))
        np.testing.assert_array_equal(pixels[Role.CORE], expected_patches(case.core))


def damaged(folder, records=0, missing=0, beside=0, sound=20):
    """A data set with so many lines that are no records, pictures that are missing, boxes beside their picture."""
    folder.mkdir()
    (folder / "sound.png").write_bytes(png(PIXELS, 8, 2))
    lines = [line(id=f"t{n}") for n in range(sound)] + [b"no record"] * records
    lines += [
        line(id=f"m{n}", positive={"item_id": f"m{n}", "title": "x", "image": f"gone{n}.png"}) for n in range(missing)
    ]
    box = [WIDTH, 0, WIDTH + 9, HEIGHT]
    said = [{"item_id": f"b{n}", "title": "x", "image": "sound.png", "image_bbox": box} for n in range(beside)]
    lines += [line(id=f"b{n}", positive=positive) for n, positive in enumerate(said)]
    (folder / "train.jsonl").write_bytes(b"\n".join(lines))


def test_too_many_bad_records_stop_the_run_with_a_report(tmp_path, words, caplog):
    damaged(tmp_path / "data", records=5)
    dataset, _ = run(tmp_path / "data", words, on_error="skip", max_skipped_share=0.2)
    assert (dataset.report["skipped"], dataset.report["records"]) == (5, 25)
    assert re.search(r"5 of 25 records cannot be used:\n  5 for: line\nthe first:\n  .*train\.jsonl:21: ", caplog.text)
    with pytest.raises(DataError) as error:
        run(tmp_path / "data", words, on_error="skip", max_skipped_share=0.19)
    assert re.fullmatch(
        r".*/data: 5 of 25 records cannot be used, a larger share than config\.data\.max_skipped_share = 0\.19:\n"
        r"  5 for: line\nthe first:(\n  .*/train\.jsonl:2[1-5]: line: not JSON \(.*\)){5}",
        str(error.value),
    )


def test_too_many_bad_pictures_stop_the_run_before_training(tmp_path, words, caplog):
    damaged(tmp_path / "data", missing=3, beside=2, sound=5)
    with pytest.raises(
        DataError, match=r"4 of 5 pictures cannot be used, a larger share"
    ) as error:  # b0 and b1 share one
        run(tmp_path / "data", words, on_error="skip", max_skipped_share=0.7)
    report = str(error.value)
    assert "\n  3 for: no such picture\n  1 for: box beside its picture\nthe first:\n" in report
    assert re.search(r"listing m1: .*gone1\.png: no such picture", report)
    assert re.search(r"listing b0: .*sound\.png: the box \(90\.0, 0\.0, 99\.0, 70\.0\) holds nothing", report)
    run(tmp_path / "data", words, on_error="skip", max_skipped_share=0.8)
    assert "4 of 5 pictures cannot be used:" in caplog.text


def test_too_many_bad_triplets_stop_training_with_a_report(tmp_path, words):
    damaged(tmp_path / "data", missing=2, beside=2, sound=20)
    settings = config(tmp_path / "data", on_error="skip", max_skipped_share=0.01, check_pictures=False)
    batches = TrainBatches(sources.read(settings.data), words, settings, 1, range(1))
    steps = 0
    with pytest.raises(DataError) as error:  # noqa: PT012, the count of steps is what is checked
        for _ in stream(batches, 0, 10_000, 0, 2):
            steps += 1
    found = re.match(
        r".*/data: (\d+) of (\d+) triplets that this process read cannot be used, a larger share than", str(error.value)
    )
    bad, seen = map(int, found.groups())
    assert seen == (steps + 1) * (SOUND + 1)
    assert bad > 0.01 * max(seen, SKIP_GRACE) >= bad - 2 * (SOUND + 1)  # the batch that went over it, spares included
    counts = {reason: int(count) for count, reason in re.findall(r"\n  (\d+) for: (.*)", str(error.value))}
    assert counts.keys() == {"no such picture", "box beside its picture"}
    assert sum(counts.values()) == bad
    assert re.search(r"triplet m\d: .*gone\d\.png: no such picture", str(error.value))
    assert re.search(
        r"triplet b\d: .*sound\.png: the box .* holds nothing of the picture, so that its crop", str(error.value)
    )


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_hosts_and_workers_make_the_same_global_batches_of_damaged_data(tmp_path, words, workers):
    damaged(tmp_path / "data", missing=3, beside=3, sound=20)
    settings = config(tmp_path / "data", on_error="skip", augment=True, aspect_dropout=0.5)
    dataset = sources.read(settings.data)

    def batches(hosts, host):
        shards = 4 // hosts
        return TrainBatches(dataset, words, settings, 4, range(shards * host, shards * (host + 1)))

    whole = [batches(1, 0)[step] for step in range(6)]
    assert sum(batch.info["skipped_triplets"] for batch in whole) >= 2
    assert sum(batch.info["unused_boxes"] for batch in whole) >= 2
    # Each stream starts its processes anew: with workers, one host of several stands for all.
    for hosts in {0: (1, 2, 4), 1: (2,), 2: (4,)}[workers]:
        skipped = [[] for _ in whole]
        for host in range(hosts) if not workers else (hosts - 1,):
            for step, batch in stream(batches(hosts, host), 0, len(whole), workers, prefetch=3):
                own = slice(4 // hosts * host, 4 // hosts * (host + 1))
                for name, array in batch.arrays.items():
                    np.testing.assert_array_equal(array, whole[step].arrays[name][own], err_msg=f"{hosts}, {name}")
                skipped[step] += batch.broken
        if not workers:
            assert [sorted(found) for found in skipped] == [sorted(batch.broken) for batch in whole]


def test_long_texts_are_cut_by_characters_where_tokens_would_cut_them(words, tmp_path):
    from moon_jax.data.documents import Document, Segment, encode

    spaced = "red dress \u7ea2\u8272 " * 3000
    for text in (spaced, "a" * 40_000, "\u7ea2" * 20_000, "e\u0301" * 20_000):
        document = encode(Document((), (Segment(Role.TITLE, text),)), words, (), DATA, VISION)
        assert document.tokens.tolist() == words.encode(text)[: DATA.title_tokens]
        assert document.cut_texts == 1
        whole = encode(Document((), (Segment(Role.TITLE, text),), "plain"), words, (), DATA, VISION)
        assert whole.tokens.tolist() == words.encode(text)
    greedy = tokenizer.train_bpe(["a" * 4096] * 9, tmp_path, 300)  # tokens of a thousand characters
    document = encode(Document((), (Segment(Role.TITLE, "a" * 20_000),)), greedy, (), DATA, VISION)
    assert document.tokens.tolist() == greedy.encode("a" * DATA.title_tokens * policy.CHARACTERS_PER_TOKEN)
    assert len(document.tokens) < DATA.title_tokens
    assert document.cut_texts == 1


def test_the_page_says_what_happened(outcomes):
    if len(outcomes) < len(CASES):
        pytest.fail("run the whole file: the page has a line for every case")
    written = PAGE.read_text(encoding="utf-8")
    assert written == page(CASES, outcomes), "python tests/data/test_strangers.py > docs/bad_input.md writes it anew"


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable()
    with tempfile.TemporaryDirectory() as folder:
        words = tokenizer.train_bpe([], pathlib.Path(folder) / "tokenizer", 270)
        found = {}
        for number, case in enumerate(CASES):
            (pathlib.Path(folder) / str(number)).mkdir()
            write(case, pathlib.Path(folder) / str(number) / "data")
            found[number] = outcome(pathlib.Path(folder) / str(number) / "data", words)
    sys.stdout.write(page(CASES, found))


if __name__ == "__main__":
    main()
