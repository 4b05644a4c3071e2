"""Packing: nothing is lost or mixed up, windows are HF's, and shapes planned for the worst case hold for every case."""

import dataclasses

import numpy as np
import pytest

from moon_jax.config import DataConfig, Role, VisionConfig
from moon_jax.data import grids, packing, positions, slots
from moon_jax.data.documents import EncodedDocument
from moon_jax.data.patches import Picture

VISION = VisionConfig(patch_size=2, window_size=16)  # windows of 4 x 4 units, 64 patches
DATA = DataConfig(min_pixels=4 * 16, max_pixels=30 * 16, title_tokens=12, category_tokens=6, attribute_tokens=8)


def picture(rng, grid, role=Role.IMAGE):
    n = grid[0] * grid[1]
    return Picture(rng.standard_normal((n, VISION.patch_dim), dtype=np.float32), grid, role)


def document(rng, grids_=(), text=5):
    pictures = tuple(picture(rng, grid, (Role.IMAGE, Role.CORE)[i % 2]) for i, grid in enumerate(grids_))
    roles = [Role.OTHER]
    for p in pictures:
        roles += [p.role] * (len(p.patches) // VISION.merge_unit) + [Role.OTHER]
    roles += [Role.TITLE] * text
    return EncodedDocument(rng.integers(1, 999, len(roles)).astype(np.int32), np.array(roles, np.int32), pictures)


def some_documents(seed, count=9):
    rng = np.random.default_rng(seed)
    sizes = [(2, 2), (8, 8), (2, 10), (6, 10), (10, 12), (4, 4), (14, 6)]
    chosen = [[sizes[i] for i in rng.integers(0, len(sizes), rng.integers(0, 4))] for _ in range(count)]
    return [document(rng, grids_, int(rng.integers(1, 20))) for grids_ in chosen]


def room_for(documents):
    longest = max(len(d.tokens) for d in documents)
    count = sum(len(d.pictures) for d in documents)
    return packing.BatchShape(len(documents), 2 * longest, max(1, count), 4 * VISION.window_patches, len(documents))


@pytest.mark.parametrize("seed", range(8))
def test_unpacking_gives_every_document_back(seed):
    documents = some_documents(seed)
    shard = packing.pack(documents, room_for(documents), VISION)
    owner = np.take_along_axis(shard["document_of_segment"], shard["segment_ids"], axis=1)
    np.testing.assert_array_equal(owner == -1, shard["segment_ids"] == 0)
    by_unit = shard["patches"].reshape(-1, VISION.merge_unit, VISION.patch_dim)
    position_of_unit = shard["patch_positions"].reshape(-1, VISION.merge_unit, 2)
    for index, expected in enumerate(documents):
        rows, columns = np.nonzero(owner == index)
        assert len(set(rows)) == 1
        np.testing.assert_array_equal(np.diff(columns), 1)
        np.testing.assert_array_equal(shard["tokens"][rows, columns], expected.tokens)
        np.testing.assert_array_equal(shard["roles"][rows, columns], expected.roles)
        is_image = np.isin(expected.roles, [Role.IMAGE, Role.CORE])
        grids_ = [p.grid for p in expected.pictures]
        np.testing.assert_array_equal(
            shard["positions"][:, rows, columns], positions.mrope_positions(is_image, grids_, 2)
        )
        slot = shard["image_slots"][rows, columns]
        np.testing.assert_array_equal(slot >= 0, is_image)
        start = 0
        for p in expected.pictures:
            units = slot[is_image][start : start + len(p.patches) // VISION.merge_unit]
            start += len(units)
            np.testing.assert_array_equal(by_unit[units].reshape(p.patches.shape), p.patches)
            np.testing.assert_array_equal(position_of_unit[units].reshape(-1, 2), positions.patch_positions(p.grid, 2))
    for name, empty in [("tokens", 0), ("roles", Role.PADDING), ("image_slots", -1)]:
        assert (shard[name][owner == -1] == empty).all()
    assert not shard["patches"][shard["patch_picture"] == 0].any()
    assert not shard["patch_window"][shard["patch_picture"] == 0].any()
    used = shard["image_slots"][shard["image_slots"] >= 0]
    assert len(np.unique(used)) == len(used)
    assert (shard["segment_ids"] == 2).any()
    assert (shard["patch_picture"] == 2).any()


@pytest.mark.parametrize("seed", range(4))
def test_pictures_and_windows_group_exactly_the_patches_they_should(seed):
    """The attention masks that follow from the fields, against the definition applied to each picture's grid."""
    documents = some_documents(seed)
    shape = room_for(documents)
    shard = packing.pack(documents, shape, VISION)
    number = np.full((shape.image_slots * shape.slot_patches // VISION.merge_unit, VISION.merge_unit), -1)
    window = number.copy()
    owner = np.take_along_axis(shard["document_of_segment"], shard["segment_ids"], axis=1)
    for i, (index, p) in enumerate([(d, p) for d, e in enumerate(documents) for p in e.pictures]):
        ordinal = i - sum(len(e.pictures) for e in documents[:index])
        units = shard["image_slots"][(owner == index) & (shard["image_slots"] >= 0)]
        skip = sum(len(q.patches) // VISION.merge_unit for q in documents[index].pictures[:ordinal])
        units = units[skip : skip + len(p.patches) // VISION.merge_unit]
        rows, columns = positions.patch_positions(p.grid, 2).T // 2 // VISION.window
        number[units] = i
        window[units] = (i * 10000 + rows * 100 + columns).reshape(-1, VISION.merge_unit)
    for fields, truth in [(("patch_picture",), number), (("patch_picture", "patch_window"), window)]:
        truth = truth.reshape(shape.image_slots, -1)
        same = np.logical_and.reduce([shard[f][:, :, None] == shard[f][:, None, :] for f in fields])
        np.testing.assert_array_equal(same, truth[:, :, None] == truth[:, None, :])
    chunk = np.arange(shape.slot_patches) // VISION.window_patches
    for windows in shard["patch_window"]:
        for w in np.unique(windows[windows > 0]):
            assert len(np.unique(chunk[windows == w])) == 1, "a window crosses a chunk"


def all_grids(data):
    bounds = grids.picture_bounds(data, VISION)
    short_long = [(a, b) for a, longest in enumerate(bounds, start=1) for b in range(a, longest + 1)]
    return [(2 * h, 2 * w) for a, b in short_long for h, w in ((a, b), (b, a))]


@pytest.mark.parametrize("tokens", [7, 16, 30, 64, 150])
@pytest.mark.parametrize("window_size", [8, 16, 20])
def test_slot_bound_is_the_maximum_over_all_grids(tokens, window_size):
    vision = dataclasses.replace(VISION, window_size=window_size)
    data = dataclasses.replace(DATA, max_pixels=tokens * 16)
    needed = [len(slots.layout(grid, vision).groups) for grid in all_grids(data)]
    assert slots.max_picture_chunks(data, vision) == max(needed)


def test_ragged_windows_share_a_chunk():
    # 5 x 5 units: 16 + 4 + 4 + 1, which would take four chunks one by one
    assert slots.layout((10, 10), VISION).groups == (16, 9)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("row_tokens", [0, 200, 333])
def test_planned_shape_holds_for_every_mixture_within_its_bounds(seed, row_tokens):
    rng = np.random.default_rng(seed)
    data = dataclasses.replace(DATA, row_tokens=row_tokens)
    bounds = [
        packing.document_bound(7, data, VISION, pictures=2),
        packing.document_bound(5, data, VISION, pictures=1, texts=1),
        packing.document_bound(6, data, VISION, pictures=0, texts=1),
    ]
    shape = packing.plan_shape(bounds, data, VISION)
    largest = max(all_grids(data), key=lambda g: (len(slots.layout(g, VISION).groups), g[0] * g[1]))
    for fill in (0.2, 0.9, 1.0):
        documents = []
        for bound in bounds:
            for _ in range(bound.count):
                full = rng.random() < fill
                grids_ = [largest if full else (4, 4)] * (
                    bound.pictures if full else rng.integers(0, bound.pictures + 1)
                )
                without_text = len(document(rng, grids_, 0).tokens)
                text = bound.tokens - without_text
                documents.append(document(rng, grids_, text if full else int(rng.integers(0, text + 1))))
        rng.shuffle(documents)
        shard = packing.pack(documents, shape, VISION)
        assert len(np.unique(shard["document_of_segment"])) == 1 + len(documents)


def test_mixed_lengths_in_a_bad_order_need_no_more_rows_than_planned():
    """In the order given, first-fit would leave 10 tokens of both rows empty and have none for the last document."""
    data = dataclasses.replace(DATA, row_tokens=100)
    shape = packing.plan_shape([packing.Bound(2, 50, 0), packing.Bound(5, 20, 0)], data, VISION)
    assert shape.rows == 2
    rng = np.random.default_rng(0)
    documents = [document(rng, text=length - 1) for length in (50, 20, 20, 50, 20, 20, 20)]
    assert (packing.pack(documents, shape, VISION)["segment_ids"] > 0).all()


def test_worst_case_takes_one_row_a_document_and_one_slot_a_picture():
    shape = packing.batch_shape(6, DATA, VISION)
    longest = 2 * (2 + 30) + 12 + 6 + 8 + 2  # two pictures, three texts, two separators
    assert (shape.rows, shape.row_tokens, shape.image_slots, shape.documents) == (6, longest, 12, 6)
    assert packing.batch_shape(6, dataclasses.replace(DATA, row_tokens=3 * longest), VISION).rows == 2
    text = packing.plan_shape([packing.document_bound(4, DATA, VISION, 0, texts=1)], DATA, VISION)
    assert (text.row_tokens, text.image_slots) == (14, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": 1}, r"config.data.rows to at least 3 "),
        ({"row_tokens": 20}, r"config.data.row_tokens"),
        ({"image_slots": 2}, r"config.data.image_slots to at least 3 "),
        ({"slot_patches": 64}, r"config.data.max_pixels"),
        ({"documents": 2}, r"3 documents do not fit into a batch shard of 2"),
    ],
)
def test_what_does_not_fit_names_the_setting(change, message):
    rng = np.random.default_rng(0)
    documents = [document(rng, [(10, 12)], 30) for _ in range(3)]
    shape = packing.BatchShape(rows=3, row_tokens=80, image_slots=3, slot_patches=3 * 64, documents=3)
    packing.pack(documents, shape, VISION)
    with pytest.raises(packing.PackingError, match=message):
        packing.pack(documents, dataclasses.replace(shape, **change), VISION)


def test_no_documents_give_padding_only():
    shard = packing.pack([], packing.batch_shape(2, DATA, VISION), VISION)
    assert not any(shard[name].any() for name in shard if name not in ("image_slots", "document_of_segment"))
    assert (shard["image_slots"] == -1).all()
    assert (shard["document_of_segment"] == -1).all()
