"""`python -m moon_jax.describe` as users call it, its numbers counted again from the files."""

import collections
import json
import os
import pathlib
import subprocess
import sys

import pytest
from PIL import Image

from moon_jax import describe
from moon_jax.config import ConfigError
from moon_jax.data import catalogue

LISTINGS = 30


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn") / "shop"
    catalogue.write(folder, LISTINGS, seed=1)
    return folder


def run(capsys=None, **given):
    """Runs with these flags; returns what was printed."""
    describe.FLAGS.parse(**given)
    describe.run()
    return capsys.readouterr().out if capsys else ""


def test_the_drawn_catalogue(drawn, tmp_path, capsys):
    printed = run(capsys, input=str(drawn), output=str(tmp_path), pictures=40)
    found = json.loads((tmp_path / "describe.json").read_text())
    assert found["format"][0]["format"] == "catalogue"
    items = [json.loads(line) for line in (drawn / "items.jsonl").read_text().splitlines()]
    rows = [json.loads(line) for n in ("train", "test") for line in (drawn / f"{n}.jsonl").read_text().splitlines()]
    counts = found["counts"]
    assert counts["listings"] == LISTINGS == len(items)
    assert counts["listing_pictures"] == sum(len(item["images"]) for item in items)
    assert sum(counts["triplets"].values()) == len(rows)
    assert counts["query_kinds"] == collections.Counter(row["query"]["kind"] for row in rows)
    assert found["fields"]["listings"]["description"] == sum(bool(item["description"]) for item in items)
    levels = [collections.Counter(item["category"][level] for item in items) for level in ("industry", "cate1")]
    assert [level["distinct"] for level in found["categories"][:2]] == [len(level) for level in levels]
    colors = [item["attributes"]["color"] for item in items if "color" in item["attributes"]]
    assert found["attributes"]["color"]["listings"] == len(colors)
    assert sum(found["attributes"]["color"]["most_frequent"].values()) <= len(colors)
    titles = next(one for one in found["histograms"] if one["name"] == "title, characters")
    assert titles["largest"] == max(len(item["title"].strip()) for item in items)
    sides = next(one for one in found["histograms"] if one["name"].startswith("longer side"))
    assert sum(sides["counts"]) == found["pictures"]["looked_at"] == 40
    assert "the folder bears the stamp" in printed
    assert f"fields of {LISTINGS} listings" in printed
    for name in ("histograms.png", "contact_sheet.png"):
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 200


def test_bad_records_and_pictures_are_shown_and_do_not_stop(tmp_path, capsys):
    Image.new("RGB", (300, 100)).save(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_text("<html>")
    rows = "id,title,image,Bildgröße\n1,Coat,a.jpg,x\n2,Hat,b.jpg,x\n3,,,x\n4,Lost,c.jpg,x\n"
    (tmp_path / "shop.csv").write_text(rows, encoding="utf-8")
    printed = run(capsys, input=str(tmp_path / "shop.csv"), output=str(tmp_path / "out"))
    assert "records: 4, of them skipped: 1" in printed
    assert "shop.csv:4: row: has neither a title nor a picture" in printed
    assert "columns not read: ('Bildgröße',)" in printed
    assert "pictures: 3 of 3 looked at, 2 broken" in printed
    assert "c.jpg: no such picture" in printed
    assert "--image_folder says" in printed
    found = json.loads((tmp_path / "out/describe.json").read_text())
    assert found["counts"]["listings"] == 3
    assert "attributes" in found["fields"]["listings"]
    assert not found["fields"]["listings"]["category"]


def test_nothing_printed_commands_a_terminal(tmp_path, capsys):
    bad = "\x1b[31mred\x07\u202e"
    row = {"title": "t", "category": [bad], "attributes": {bad: [bad]}, bad: 1}
    (tmp_path / "shop.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row | {"title": 7}) + "\n")
    printed = run(capsys, input=str(tmp_path / "shop.jsonl"))
    assert printed.count(r"\x1b[31mred\x07\u202e") >= 4
    assert all(line.isprintable() for line in printed.split("\n"))


def test_a_pixel_budget_for_nothing_is_refused(drawn):
    for pixels in (0, -1, 100):
        with pytest.raises(ConfigError, match=r"--max_pixels must be at least 3136"):
            run(input=str(drawn), max_pixels=pixels)


def test_limit_and_flags_that_cannot_be(drawn, tmp_path):
    run(input=str(drawn), output=str(tmp_path), limit=3, pictures=2, sheet=0)
    found = json.loads((tmp_path / "describe.json").read_text())
    assert found["report"]["records"] == 9  # of three files
    assert not (tmp_path / "contact_sheet.png").exists()
    with pytest.raises(ConfigError, match="must not be negative"):
        run(input=str(drawn), limit=-1)
    with pytest.raises(ConfigError, match="--columns: 'title' is no OURS=THEIRS"):
        run(input=str(drawn), columns=["title"])


def test_mistakes_end_with_one_plain_message(tmp_path):
    root = pathlib.Path(describe.__file__).parents[1]
    command = [sys.executable, "-m", "moon_jax.describe", f"--input={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=os.environ, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"DataError: {tmp_path}: no known format. There is no files")
    assert "Traceback" not in done.stderr


def test_real_data(moon_data, tmp_path, capsys):
    run(capsys, input=str(moon_data), output=str(tmp_path), pictures=20, limit=250)  # items.jsonl has 193
    found = json.loads((tmp_path / "describe.json").read_text())
    items = [json.loads(line) for line in (moon_data / "items.jsonl").read_text(encoding="utf-8").splitlines()]
    assert found["counts"]["parts"]["luma"]["listings"] == sum(i["item_id"].startswith("luma:") for i in items)
    several = sum(
        isinstance(i["attributes"].get("material"), list) and len(i["attributes"]["material"]) > 1 for i in items
    )
    assert found["attributes"]["material"]["with_several_values"] == several
    assert found["fields"]["queries"]["a box"] < found["fields"]["queries"]["image"]
