"""Training to ground, detecting with what was trained, and training's data with the boxes that were found.

All products are at the same place of pictures of one size, so that a tiny model learns the answer in a few steps.
"""

import dataclasses
import json
import os
import pathlib
import signal

import jax
import numpy as np
import pytest
from fake_batch import tiny_config
from PIL import Image

import moon_jax
from moon_jax import detect as command
from moon_jax import train
from moon_jax.config import Config, DataConfig, MeshConfig
from moon_jax.data import sources
from moon_jax.data.grounding import Frame
from moon_jax.data.grounding_answers import find_box
from moon_jax.data.records import DataError
from moon_jax.parallel.mesh import make_mesh
from moon_jax.training.log import Log

SIZE, BOX = (64, 48), [16, 12, 48, 36]
PRODUCTS = 14

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """Listings of one picture with its box, a query each; the pictures of the queries have boxes too."""
    folder = tmp_path_factory.mktemp("shop")
    rng = np.random.default_rng(0)
    for number in range(2 * PRODUCTS):
        pixels = rng.integers(0, 255, (SIZE[1], SIZE[0], 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    write(folder, BOX)
    return folder


def write(folder: pathlib.Path, box, pictures: str = ""):
    """Our layout; `box` None = as it is before detection."""
    items = [
        {"item_id": f"i{n}", "title": f"mug {n}", "image": f"{pictures}{n}.png", "image_bbox": box}
        for n in range(PRODUCTS)
    ]
    records = [
        {
            "id": f"r{n}",
            "query": {"image": f"{pictures}{PRODUCTS + n}.png", "text": f"cup {n}", "bbox": box},
            "positive": {"item_id": f"i{n}", "title": f"mug {n}", "images": [f"{pictures}{n}.png"]},
            "negative": None,
        }
        for n in range(PRODUCTS)
    ]
    for name, rows in (("items", items), ("train", records), ("test", records[:3])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def config(folder) -> Config:
    config = tiny_config(
        loss__kind="next_token", loss__ring_batches=0, eval__metric="unseen/query/IoU", eval__every=0,
        eval__batch_documents=4, data__path=str(folder), data__min_pixels=16 * 16, data__max_pixels=32 * 32,
        data__title_tokens=4, data__crop=False, data__unseen_share=0.3, model__text__vocab_size=320,
        model__text__num_hidden_layers=1, model__vision__depth=1, model__vision__fullatt_block_indexes=(0,),
        moe__experts=4, moe__top_k=1, moe__gate="softmax_all", mesh__data=2, mesh__fsdp=2, mesh__expert=2,
        train__steps=40, train__lr=1e-2, train__log_every=1, train__checkpoint_every=1000,
    )  # fmt: skip
    short = dataclasses.replace(config.data.grounding, system="", prompt="{title}", answer="{box}", max_new_tokens=20)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, grounding=short))


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained")
    return workdir, train.run(config, workdir)


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def test_the_model_learns_where_the_products_are(config, trained):
    workdir, results = trained
    frame = Frame.of(SIZE, config.data, config.model.vision)
    assert frame.seen == (32, 24)
    for name in ("seen/query", "seen/listing", "unseen/query", "unseen/listing"):
        assert results["metrics"][f"{name}/valid"] == 1
        assert results["metrics"][f"{name}/IoU"] == 1  # 8, 6, 24, 18 in the model's pixels: nothing is rounded
    by_method = {row["method"]: row["IoU"] for row in results["rows"] if (row["set"], row["kind"]) == ("seen", "query")}
    assert by_method == pytest.approx({"model": 1, "whole picture": 0.25, "mean box": 1})
    assert abs(losses(workdir)[1] - np.log(320)) < 1  # before anything is learned


@pytest.mark.slow
def test_a_stopped_run_on_another_mesh_goes_on(config, trained, tmp_path, monkeypatch):
    write_step = Log.write_step

    def write_and_stop(log, step, metrics):
        write_step(log, step, metrics)
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Log, "write_step", write_and_stop)
        assert train.run(dataclasses.replace(config, mesh=MeshConfig(1, 4, 1, 2)), tmp_path) == {}
    other = losses(tmp_path)
    assert list(other) == [1, 2, 3]
    straight = losses(trained[0])
    np.testing.assert_allclose([other[n] for n in other], [straight[n] for n in other], rtol=1e-4)


def detect(model, data, output, **settings):
    """Runs the command in this process, on all eight devices."""
    command.FLAGS.parse(model=model, input=data, output=output, mesh="fsdp=4", **settings)
    command.main([])


def refused(*args, **settings) -> str:
    with pytest.raises(SystemExit) as caught:
        detect(*args, **settings)
    return str(caught.value)


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def plain(folder, tmp_path_factory):
    """The same data without boxes, its pictures in another folder."""
    plain = tmp_path_factory.mktemp("plain")
    (plain / "pictures").symlink_to(folder)
    write(plain, None, "pictures/")
    return plain


@pytest.fixture(scope="module")
def detected(trained, plain, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "boxes.jsonl"
    detect(trained[0], plain, out, batch_size=3, sheet=6)
    return out


def test_every_picture_gets_a_line(detected, trained, plain):
    lines = read(detected)
    listings = {(f"pictures/{n}.png", f"mug {n}", f"i{n}", None) for n in range(PRODUCTS)}
    queries = {(f"pictures/{PRODUCTS + n}.png", f"cup {n}", None, f"r{n}") for n in range(PRODUCTS)}
    assert {(x["image"], x["title"], x.get("listing"), x.get("query")) for x in lines} == listings | queries
    assert len(lines) == 2 * PRODUCTS
    assert all(line["status"] == "parsed" and line["box"] == BOX for line in lines)
    assert Image.open(detected.with_suffix(".png")).width > 1000
    settings = json.loads(detected.with_suffix(".settings.json").read_text())
    assert settings["counts"] == {"parsed": 2 * PRODUCTS, "whole_image": 0, "shipped": 0, "unreadable": 0}
    encoder = moon_jax.load(trained[0], make_mesh(MeshConfig(data=1), jax.devices()[:1]))
    for line in lines[:2]:
        prompt = [{"image": str(plain / line["image"])}, line["title"]]
        assert encoder.generate([prompt], 20, system="") == [line["answer"]]
        frame = Frame.of(SIZE, encoder.config.data, encoder.config.model.vision)
        assert list(find_box(line["answer"], "", frame, "absolute").box) == line["box"]


def test_a_run_cut_off_anywhere_goes_on_to_the_same_file(detected, trained, plain, tmp_path, capsys):
    whole, out = detected.read_bytes(), tmp_path / "boxes.jsonl"
    out.with_suffix(".settings.json").write_text(detected.with_suffix(".settings.json").read_text())
    ends = [i for i, byte in enumerate(whole) if byte == ord("\n")]
    (tmp_path / "boxes.jsonl.unfinished").write_bytes(whole[: ends[7] + 30])  # in a batch, in a line
    settings = {"batch_size": 3, "sheet": 0}
    detect(trained[0], plain, out, **settings)
    assert f"{2 * PRODUCTS} pictures: {2 * PRODUCTS} parsed" in capsys.readouterr().out
    assert out.read_bytes() == whole
    detect(trained[0], plain, out, **settings)
    assert "is finished already" in capsys.readouterr().err
    assert out.read_bytes() == whole
    assert "data.max_pixels was 1024, is 256" in refused(trained[0], plain, out, **settings, max_pixels=256)


def test_the_boxes_feed_training(detected, plain, folder):
    given = DataConfig(path=str(plain), boxes=str(detected))
    with_boxes, without = sources.read(given), sources.read(dataclasses.replace(given, boxes=""))
    shipped = sources.read(DataConfig(path=str(folder)))
    assert [p.images[0].box for p in with_boxes.products.values()] == [tuple(map(float, BOX))] * PRODUCTS
    for a, b in zip(with_boxes.train, shipped.train, strict=True):
        assert (a.query.image.box, a.positive.images[0].box) == (b.query.image.box, b.positive.images[0].box)
    assert with_boxes.report["boxes_parsed"] == 2 * PRODUCTS + 3  # the test set asks again
    assert with_boxes.fingerprint != without.fingerprint


def test_shipped_boxes_unreadable_pictures_and_mistakes(trained, folder, tmp_path):
    shop, out = tmp_path / "shop", tmp_path / "b.jsonl"
    shop.mkdir()
    for path in folder.iterdir():
        (shop / path.name).write_bytes(path.read_bytes())
    items = [json.loads(line) for line in (shop / "items.jsonl").read_text().splitlines()]
    items[0]["image_bbox"], items[1]["image_bbox"] = [1, 2, 30, 40], None
    (shop / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (shop / items[1]["image"]).write_bytes(b"<html>not a picture</html>")
    message = refused(trained[0], shop, out, sheet=3)
    assert "listing i1: " in message
    assert "--on_error=skip leaves it out" in message
    detect(trained[0], shop, out, sheet=3, on_error="skip", max_skipped_share=0.1)
    lines = {line.get("listing", line.get("query")): line for line in read(out)}
    assert (lines["i0"]["status"], lines["i0"]["box"]) == ("shipped", [1, 2, 30, 40])
    assert (lines["i1"]["status"], lines["i1"]["box"]) == ("unreadable", None)
    assert "cannot be read as a picture" in lines["i1"]["reason"]
    assert lines["r1"]["status"] == "shipped"
    few = refused(trained[0], shop, tmp_path / "c.jsonl", on_error="skip", max_skipped_share=0.001)
    assert "more than --max_skipped_share = 0.001 of the 28 pictures" in few
    assert "holds no model" in refused("/nowhere", shop, tmp_path / "d.jsonl")


def test_shipped_boxes_can_be_checked(trained, folder, tmp_path, capsys):
    detect(trained[0], folder, tmp_path / "b.jsonl", shipped="check", sheet=0)
    assert all(line["status"] == "parsed" and line["shipped"] == BOX for line in read(tmp_path / "b.jsonl"))
    assert "against 28 shipped boxes: mean IoU 1.000, at least 0.5 for 100.0%" in capsys.readouterr().out


def test_an_unfinished_file_of_boxes_is_refused(plain, tmp_path):
    (tmp_path / "b.jsonl.unfinished").write_text("")
    with pytest.raises(DataError, match="not finished yet"):
        sources.read(DataConfig(path=str(plain), boxes=str(tmp_path / "b.jsonl")))
