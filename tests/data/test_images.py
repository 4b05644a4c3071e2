"""Pixels against transformers' own processor, and files that strangers might send."""

import dataclasses
import io
import struct
import zlib

import numpy as np
import pytest
from image_kinds import KINDS, noise
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from moon_jax.config import DataConfig, Role, VisionConfig
from moon_jax.data import grids, images, picture_files, views
from moon_jax.data.documents import Document
from moon_jax.data.patches import patchify
from moon_jax.data.records import ImageRef

VISION = VisionConfig()
LOW, HIGH = 56 * 56, 224 * 224


@pytest.fixture(scope="module")
def processor():
    """transformers' Pillow processor at our pixel budget; it needs no torch."""
    return Qwen2VLImageProcessorPil(min_pixels=LOW, max_pixels=HIGH)


def assert_equal_to(processor, ours, upright):
    expected = processor(upright, return_tensors="np")
    assert [1, *ours.grid] == expected["image_grid_thw"][0].tolist()
    frames = expected["pixel_values"].reshape(-1, 3, 2, 14 * 14)
    np.testing.assert_array_equal(frames[:, :, 0], frames[:, :, 1])
    np.testing.assert_allclose(ours.patches.reshape(-1, 3, 14 * 14), frames[:, :, 0], atol=2e-5)


SIZES = [(1, 1), (13, 17), (28, 28), (56, 56), (61, 200), (224, 224), (300, 211), (10, 1900), (640, 480), (997, 31)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_patches_equal_transformers(processor, height, width):
    image = Image.fromarray(noise(height, width))
    assert_equal_to(processor, patchify(image, VISION, LOW, HIGH), image)


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_picture_equals_transformers_on_what_it_shows(processor, tmp_path, name):
    content, shown = KINDS[name]()
    (tmp_path / name).write_bytes(content)
    loaded = picture_files.load(str(tmp_path / name))
    assert loaded.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(loaded), shown)
    assert_equal_to(processor, patchify(loaded, VISION, LOW, HIGH), Image.fromarray(shown))


def test_the_patches_of_large_pictures_are_whole(processor):
    """More lines of blocks than are made at a time, and a last part that is smaller."""
    large = Qwen2VLImageProcessorPil(min_pixels=LOW, max_pixels=10**6)
    image = Image.fromarray(noise(7 * 28, 13 * 28))
    assert_equal_to(large, patchify(image, VISION, LOW, 10**6), image)
    image = Image.fromarray(noise(1000, 300))
    assert_equal_to(large, patchify(image, VISION, LOW, 10**6), image)


DAMAGED_EXIF = {
    "no_tiff": b"Exif\0\0these are no notes",
    "cut": b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01",
    "far": b"Exif\0\0II*\0\xff\xff\xff\x7f",
    "text": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x01\0\0\0a\0\0\0\0\0\0\0",
    "nine": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x09\0\0\0\0\0\0\0",
}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")
@pytest.mark.parametrize("name", DAMAGED_EXIF)
def test_damaged_notes_do_not_lose_the_picture(tmp_path, name):
    Image.fromarray(noise(40, 60)).save(tmp_path / "photo.png", exif=DAMAGED_EXIF[name])
    np.testing.assert_array_equal(np.asarray(picture_files.load(str(tmp_path / "photo.png"))), noise(40, 60))


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


EXIF = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"  # orientation 6
XMP = b'XML:com.adobe.xmp\0\0\0\0\0<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="6"/>'


@pytest.mark.parametrize(
    ("behind", "turned"),
    [
        (chunk(b"eXIf", EXIF), True),
        (chunk(b"tEXt", b"date:create\0today") + chunk(b"eXIf", EXIF), True),
        (chunk(b"iTXt", XMP), True),
        (chunk(b"tEXt", b"date:create\0today"), False),
        (b"", False),
    ],
    ids=["EXIF", "EXIF behind a text", "XMP", "text", "nothing"],
)
def test_orientation_behind_the_pixels_of_a_png(tmp_path, behind, turned):
    out = io.BytesIO()
    Image.fromarray(noise(20, 60)).save(out, "PNG")
    content = out.getvalue()
    whole = content[:-12] + behind + content[-12:]
    (tmp_path / "a.png").write_bytes(whole)
    with Image.open(tmp_path / "a.png") as opened:
        for path in (str(tmp_path / "a.png"), whole, opened):
            assert picture_files.upright_size(path) == ((20, 60) if turned else (60, 20))
            assert picture_files.load(path).size == picture_files.upright_size(path)
    data, vision = DataConfig(min_pixels=1), VisionConfig()
    document = Document((ImageRef(str(tmp_path / "a.png")),))
    ((grid, _),) = images.grids(document, data, vision)
    (picture,) = images.pictures(document, data, vision)
    assert picture.grid == grid


def test_a_png_without_notes_is_not_decoded_for_its_size(monkeypatch):
    out = io.BytesIO()
    Image.fromarray(noise(20, 60)).save(out, "PNG")
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", lambda _: pytest.fail("it was decoded"))
    assert picture_files.upright_size(out.getvalue()) == (60, 20)


def jpeg(size=(200, 200)):
    out = io.BytesIO()
    Image.fromarray(noise(*size)).save(out, "JPEG")
    return out.getvalue()


def png_header(width, height):
    """A PNG that claims a size and holds pixels that cannot be decoded."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"garbage") + chunk(b"IEND", b"")


HOSTILE = {
    "empty.jpg": (b"", "cannot be read"),
    "truncated.jpg": (jpeg()[:2000], "truncated"),
    "page.jpg": (b"<!DOCTYPE html><html><body>404</body></html>", "cannot be read"),
    "bomb.png": (png_header(9000, 9000), "9000x9000 px is more than the limit"),
    "giant.png": (png_header(60000, 60000), "cannot be read"),  # Pillow itself refuses
    "garbage.png": (png_header(50, 50), "cannot be read"),
    "script.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", "cannot be read"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_by_name(tmp_path, name):
    content, message = HOSTILE[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(picture_files.ImageError, match=message) as error:
        picture_files.load(str(tmp_path / name))
    assert name in str(error.value)


def test_missing_files_and_folders_are_refused_by_name(tmp_path):
    with pytest.raises(picture_files.ImageError, match=r"nothing\.jpg: no such picture"):
        picture_files.load(str(tmp_path / "nothing.jpg"))
    with pytest.raises(picture_files.ImageError, match="cannot be read"):
        picture_files.load(str(tmp_path))


def test_crop_takes_the_box_with_its_margin_inside_the_picture():
    image = Image.fromarray(noise(100, 80))
    pixels = np.asarray(image)
    np.testing.assert_array_equal(views.crop(image, (10.0, 20.0, 50.0, 60.0), 0.0), pixels[20:60, 10:50])
    np.testing.assert_array_equal(views.crop(image, (10.0, 20.0, 50.0, 60.0), 0.1), pixels[16:64, 6:54])
    np.testing.assert_array_equal(views.crop(image, (-30.0, 50.0, 40.0, 900.0), 0.0), pixels[50:, :40])


@pytest.mark.parametrize(
    "box",
    [
        (50.0, 20.0, 10.0, 60.0), (10.0, 20.0, 10.0, 60.0), (90.0, 20.0, 120.0, 60.0), (0.0, 0.0, float("nan"), 5.0),
        (0.0, 0.0, float("inf"), 5.0), (3.0, 3.0, 3.4, 3.9),
    ],
)  # fmt: skip
def test_degenerate_boxes_give_no_crop(box):
    assert views.crop(Image.fromarray(noise(100, 80)), box, 0.05) is None


@pytest.mark.parametrize(
    ("box", "area"),
    [
        ((100.0, 100.0, 1e5, 1e5), (90, 90, 200, 200)),
        ((-1e5, 50.0, 100.0, 150.0), (0, 40, 110, 160)),
        ((-1e6, -1e6, 1e6, 1e6), (0, 0, 200, 200)),
    ],
)
def test_the_margin_is_that_of_the_part_inside_the_picture(box, area):
    assert views.crop_area((200, 200), box, 0.1) == area


def test_pictures_are_originals_followed_by_their_crops(tmp_path):
    Image.fromarray(noise(120, 160)).save(tmp_path / "a.png")
    Image.fromarray(noise(90, 90, seed=1)).save(tmp_path / "b.png")
    a, b = str(tmp_path / "a.png"), str(tmp_path / "b.png")
    refs = (ImageRef(a, (30.0, 20.0, 100.0, 90.0)), ImageRef(b), ImageRef(b, (5.0, 5.0, 1.0, 1.0)))
    data = DataConfig(max_pixels=HIGH, crop_margin=0.0, on_error="skip")
    out = images.pictures(Document(refs), data, VISION)
    (unused,) = images.unused_boxes(refs, out, data)
    assert "b.png: the box (5.0, 5.0, 1.0, 1.0) holds nothing" in unused.message
    strict = dataclasses.replace(data, on_error="raise")
    for read in (images.pictures, images.grids):
        with pytest.raises(images.BoxError, match=r"b\.png: the box \(5\.0, 5\.0, 1\.0, 1\.0\) holds nothing"):
            read(Document(refs), strict, VISION)
    assert [p.role for p in out] == [Role.IMAGE, Role.CORE, Role.IMAGE, Role.IMAGE]
    with Image.open(a) as image:
        expected = patchify(image.crop((30, 20, 100, 90)), VISION, LOW, HIGH)
    np.testing.assert_array_equal(out[1].patches, expected.patches)
    plain = images.pictures(Document(refs), DataConfig(max_pixels=HIGH, crop=False), VISION)
    assert [p.role for p in plain] == [Role.IMAGE] * 3


def test_strips_are_padded_with_white_to_the_longest_aspect(tmp_path):
    Image.new("RGB", (3000, 9), (255, 0, 0)).save(tmp_path / "strip.png")
    data = DataConfig(max_pixels=HIGH, max_aspect=16.0)
    (strip,) = images.pictures(Document((ImageRef(str(tmp_path / "strip.png")),)), data, VISION)
    assert strip.grid[1] <= 16 * (strip.grid[0] + 2)
    assert strip.patches.shape[0] // 4 <= grids.max_picture_tokens(data, VISION)
    padded = np.asarray(views.pad_to_aspect(Image.new("RGB", (3000, 9), (255, 0, 0)), 16.0))
    assert padded.shape == (188, 3000, 3)
    assert (padded[(188 - 9) // 2 : (188 - 9) // 2 + 9] == (255, 0, 0)).all()
    assert (padded[0] == 255).all()
    image = Image.new("RGB", (160, 10))
    assert views.pad_to_aspect(image, 16.0) is image


def red_extent(view):
    """The left, top, right and bottom of what is red in a picture."""
    pixels = np.asarray(view).astype(int)
    rows, columns = np.nonzero(pixels[..., 0] - pixels[..., 1] > 60)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


@pytest.fixture
def red_product():
    """A picture whose only red is the product, 35 x 50 pixels, and the product's box."""
    pixels = np.full((120, 90, 3), 255, np.uint8)
    pixels[30:80, 20:55] = (200, 0, 0)
    return Image.fromarray(pixels), (20.0, 30.0, 55.0, 80.0)


def test_augmented_views_hold_the_box_and_repeat_by_key(red_product):
    image, box = red_product
    seen = set()
    for key in range(60):
        view, moved = views.augment(image, box, (7, key))
        again, moved_again = views.augment(image, box, (7, key))
        np.testing.assert_array_equal(view, again)
        assert moved == moved_again
        assert red_extent(view) == moved
        assert (moved[2] - moved[0], moved[3] - moved[1]) == (35, 50)
        seen.add((view.size, moved))
    assert len(seen) > 30


@pytest.mark.parametrize("least_box", [0.0, 0.5])
def test_close_ups_hold_a_part_of_the_box_and_say_which(red_product, least_box):
    image, box = red_product
    sides, cut = [], {"top": 0, "bottom": 0}
    for key in range(400):
        view, moved = views.augment(image, box, (7, key), 0.05, least_box)
        assert red_extent(view) == moved
        sides.append((moved[2] - moved[0], moved[3] - moved[1]))
        cut["top"] += sides[-1][1] < 50 and moved[1] == 0
        cut["bottom"] += sides[-1][1] < 50 and moved[3] == view.height
    assert (np.array(sides) >= np.maximum(least_box * np.array([35, 50]), 2)).all()
    assert (np.min(sides, axis=0) < (least_box + 0.25) * np.array([35, 50])).all()
    assert sides.count((35, 50)) > 40
    assert min(cut.values()) > 60, cut


@pytest.mark.parametrize("least_box", [0.0, 0.3, 0.99])
def test_close_ups_of_boxes_of_every_size_and_place_show_a_usable_part(least_box):
    rng, usable = np.random.default_rng(0), 0
    for key in range(1000):
        width, height = (int(x) for x in rng.integers(1, 80, 2))
        x1, y1 = rng.uniform(-20, width), rng.uniform(-20, height)
        x2, y2 = x1 + rng.choice([rng.uniform(0, 4), 30, 200]), y1 + rng.choice([rng.uniform(0, 4), 30, 200])
        box = (x1, y1, x2, y2)
        white = Image.new("RGB", (width, height), (255, 255, 255))
        view, moved = views.augment(white, box, (1, key), rng.choice([0.01, 0.35, 1.0]), least_box)
        assert np.asarray(view).min() > 60, "black is what lies outside"
        if views.crop_area(white.size, box, 0.0) is not None:
            usable += 1
            assert views.crop_area(view.size, moved, 0.0) is not None
    assert usable > 200
    # x2 - (x2 - x1) is less than x1 here.
    box = (53.72060968446292, 0.4022176624419088, 55.18815526440101, 2.0353671765307517)
    view, moved = views.augment(Image.new("RGB", (57, 37)), box, (1, 0), 0.35, least_box)
    np.testing.assert_allclose(np.subtract(moved[2:], moved[:2]), np.subtract(box[2:], box[:2]))


@pytest.mark.parametrize("least_box", [0.0, 0.5, 1.0])
def test_views_of_pictures_whose_box_is_none_or_strange(red_product, least_box):
    image, _ = red_product
    for strange in [None, (-50.0, -9.0, 999.0, 999.0), (float("nan"), 0.0, 5.0, 5.0), (80.0, 80.0, 10.0, 10.0)]:
        view, moved = views.augment(image, strange, (1, 2), 0.05, least_box)
        assert min(view.size) >= 2
        assert (moved is None) == (strange is None)
