"""Blockwise top-k against numpy's full sort and faiss; ties, blocks, devices, processes, and what it refuses."""

import hashlib
import os
import socket
import subprocess
import sys
import threading
import tracemalloc

import faiss
import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from moon_jax.evaluation import retrieval
from moon_jax.evaluation.retrieval import top_k

SMALL = (8, 64)  # block: several groups of queries, several steps of every device


def reference(queries, gallery, k):
    """Full score matrix in float64, sorted by (score descending, index ascending)."""
    scores = queries.astype(np.float64) @ gallery.astype(np.float64).T
    indices = np.lexsort((np.broadcast_to(np.arange(len(gallery)), scores.shape), -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, indices, axis=1), indices


def whole_numbers(seed, *shape, span=3):
    """Small integers: every score is exact in float32, and most are tied."""
    return np.random.default_rng(seed).integers(-span, span + 1, shape).astype(np.float32)


def unit_vectors(seed, *shape):
    rows = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def digest(found):
    return hashlib.sha256(found[0].tobytes() + found[1].tobytes()).hexdigest()


def far_apart():
    """Queries and a gallery whose scores are no whole numbers, so that another order of summation shows."""
    return unit_vectors(0, 50, 768), unit_vectors(1, 2500, 768)


@pytest.mark.parametrize("block", [(256, 8192), (7, 5), (64, 1), (1, 64), (50, 301)])
@pytest.mark.parametrize("k", [1, 10, 300])
def test_matches_a_full_sort_with_many_ties(block, k):
    queries, gallery = whole_numbers(0, 23, 6), whole_numbers(1, 300, 6)
    scores, indices = top_k(queries, gallery, k, block=block)
    expected_scores, expected = reference(queries, gallery, k)
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_array_equal(scores, expected_scores.astype(np.float32))


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_real_numbers_of_any_width_in_several_blocks(kind):
    rng = np.random.default_rng(0)
    queries, gallery = rng.normal(size=(150, 96)).astype(kind), rng.normal(size=(2000, 96)).astype(kind)
    scores, indices = top_k(queries, gallery, 20, block=(64, 256))
    expected_scores, expected = reference(queries.astype(np.float32), gallery.astype(np.float32), 20)
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5)


def test_finds_what_a_flat_faiss_index_finds():
    queries, gallery = far_apart()
    index = faiss.IndexFlatIP(gallery.shape[1])
    index.add(gallery)
    expected_scores, expected = index.search(queries, 100)
    scores, indices = top_k(queries, gallery, 100, block=SMALL)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-6)
    swapped = indices != expected  # faiss adds up in another order: neighbours whose scores agree to the last bits
    assert swapped.mean() < 0.01
    np.testing.assert_allclose(scores[swapped], expected_scores[swapped], atol=1e-6)


def test_copies_of_one_row_rank_by_index_wherever_they_lie():
    rng = np.random.default_rng(3)
    row = rng.normal(size=77).astype(np.float32)
    gallery = 0.01 * rng.normal(size=(1000, 77)).astype(np.float32)
    copies = [3, 5, 64, 130, 131, 517, 998, 999]
    gallery[copies] = row
    for block in [(16, 128), (64, 64), (256, 8192)]:
        _, indices = top_k(row[None], gallery, len(copies), block=block)
        assert indices[0].tolist() == copies


def test_negative_zero_ties_with_zero():
    gallery = np.array([[-1e-30], [0.0], [1e-30], [-0.0]], np.float32)
    scores, indices = top_k(np.array([[1e-30]], np.float32), gallery, 4)  # every product underflows to +-0
    assert indices.tolist() == [[0, 1, 2, 3]]
    assert not np.signbit(scores).any()


def test_same_bits_on_any_number_of_devices():
    queries, gallery = far_apart()
    digests = {digest(top_k(queries, gallery, 60, SMALL, jax.devices()[:n])) for n in (1, 3, 8)}
    assert digests == {digest(top_k(queries, gallery, 60, SMALL))}
    assert len({digest(top_k(queries, gallery, 60, SMALL)), digest(top_k(queries, gallery[:, ::-1], 60, SMALL))}) == 2


def test_result_does_not_depend_on_the_mesh_around_it():
    queries, gallery = whole_numbers(0, 9, 6), whole_numbers(1, 40, 6)
    alone = top_k(queries, gallery, 5)
    with jax.set_mesh(jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))):
        inside = top_k(queries, gallery, 5)
    np.testing.assert_array_equal(alone[1], inside[1])


def script(devices, processes=1):
    """Starts processes that print the digest of the search of `far_apart` over all devices; returns what they print."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{s.getsockname()[1]}"
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    command = [sys.executable, __file__, coordinator, str(processes)]
    started = [
        subprocess.Popen([*command, str(i)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for i in range(processes)
    ]
    try:
        texts = [process.communicate(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * processes, texts[0][1]
    return [out.split()[-2:] for out, _ in texts]


def test_same_bits_in_a_program_with_one_device_and_in_two_processes():
    """Where there are eight devices a CPU computes with more threads than where there is one."""
    expected = digest(top_k(*far_apart(), 60, SMALL))
    assert script(1) == [["1", expected]]
    assert script(2, processes=2) == [["4", expected]] * 2


def test_a_mapped_gallery_is_read_block_by_block(tmp_path):
    gallery = unit_vectors(0, 30_000, 64)
    np.save(tmp_path / "gallery.npy", gallery)
    queries, mapped = unit_vectors(1, 20, 64), np.load(tmp_path / "gallery.npy", mmap_mode="r")
    top_k(queries, mapped[:5000], 5, block=(32, 512))  # compiled
    tracemalloc.start()
    _, indices = top_k(queries, mapped, 5, block=(32, 512))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(indices, reference(queries, gallery, 5)[1])
    assert peak < gallery.nbytes / 4, "numpy made an array of the size of the gallery"


@pytest.mark.parametrize("room", [True, False])
def test_a_gallery_that_the_devices_have_room_for_is_read_once(monkeypatch, room):
    queries, gallery = whole_numbers(0, 40, 6), whole_numbers(1, 700, 6)
    read, rows = [], retrieval._rows

    def count(array, start, size):
        read.extend([start] if array is gallery else [])
        return rows(array, start, size)

    monkeypatch.setattr(retrieval, "_rows", count)
    monkeypatch.setattr(retrieval, "_has_room", lambda mesh, needed: room)
    monkeypatch.setattr(retrieval, "_PASS_GROUPS", 2)  # three passes of at most 16 queries
    _, indices = top_k(queries, gallery, 9, SMALL, jax.devices()[:2])
    np.testing.assert_array_equal(indices, reference(queries, gallery, 9)[1])
    assert sorted(read) == sorted([64 * i for i in range(12)] * (1 if room else 3))  # 11 blocks and one of padding


def test_groups_run_ahead_by_one_choice(monkeypatch):
    """Others take their second turn while a group is at its first; no block is read before all are done with the last
    turn but one."""
    queries, gallery = whole_numbers(0, 40, 6), whole_numbers(1, 700, 6)
    started, done, seen, ahead = {}, [], [], threading.Event()
    programs, block, ready = retrieval._programs, retrieval._Shards.block, jax.block_until_ready
    last_group = threading.local()

    def watched(mesh):
        score, choose, merge = programs(mesh)

        def note(scored, group, *rest):
            last_group.here = np.array_equal(group[0], queries[32])
            return score(scored, group, *rest)

        def start(best, scored, row, *rest):
            found, scored = choose(best, scored, row, *rest)
            started[id(found)] = found, row == 0 and last_group.here  # kept, so that ids differ
            if row:
                ahead.set()
            return found, scored

        return note, start, merge

    def finish(found):
        if started[id(found)][1]:  # the last group at the first blocks
            assert ahead.wait(60), "the groups waited for the last one"
        done.append(ready(found))
        return found

    def read(shards, step, last_pass):
        seen.append(len(done))
        return block(shards, step, last_pass)

    monkeypatch.setattr(retrieval, "_CHOICE_BLOCKS", 2)
    monkeypatch.setattr(retrieval.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(retrieval, "_programs", watched)
    monkeypatch.setattr(retrieval._Shards, "block", read)
    monkeypatch.setattr(jax, "block_until_ready", finish)
    _, indices = top_k(queries, gallery, 9, (8, 64), jax.devices()[:1])
    np.testing.assert_array_equal(indices, reference(queries, gallery, 9)[1])
    assert len(done) == 5 * 6  # groups, turns: of 11 blocks the last one is alone
    assert all(np.array(seen) >= [0, 0, 0, 0, 5, 5, 10, 10, 15, 15, 20])


def test_no_queries():
    scores, indices = top_k(np.zeros((0, 4), np.float32), np.ones((3, 4), np.float32), 2)
    assert scores.shape == indices.shape == (0, 2)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("row", [0, 699])
def test_a_gallery_row_that_is_not_finite_is_named(value, row):
    queries = whole_numbers(0, 20, 6)
    queries[0] = 0.0  # what is not finite times zero is not finite
    gallery = whole_numbers(1, 700, 6).astype(np.float64)
    gallery[row, 3] = gallery[400, 1] = value
    with pytest.raises(ValueError, match=f"2 gallery embeddings are not finite, the first is row {min(row, 400)}"):
        top_k(queries, gallery, 3, block=SMALL)


@pytest.mark.parametrize(
    ("queries", "gallery", "k", "message"),
    [
        (np.ones((2, 4)), np.ones((3, 4)), 4, "k is 4; it must lie in 1..3"),
        (np.ones((2, 4)), np.ones((3, 4)), 0, "k is 0"),
        (np.ones((2, 4)), np.ones((0, 4)), 1, "k is 1; it must lie in 1..0"),
        (np.ones((2, 4)), np.ones((3, 5)), 1, "queries have 4 dimensions, the gallery has 5"),
        (np.array([[1.0], [np.nan]]), np.ones((3, 1)), 1, "1 query embeddings are not finite, the first is row 1"),
        (np.array([[1.0], [1e30]]), np.full((3, 1), 1e30), 1, "query embedding 1 overflow float32: .* unit vectors"),
        (np.array([[1e30], [1.0]]), np.full((3, 1), 1e30), 1, "with the gallery overflow float32: .* unit vectors"),
    ],
)
def test_refuses(queries, gallery, k, message):
    with pytest.raises(ValueError, match=message):
        top_k(queries, gallery, k)


if __name__ == "__main__":
    coordinator, processes, me = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    jax.config.update("jax_platforms", "cpu")
    if processes > 1:
        jax.distributed.initialize(coordinator, processes, me)
    print(len(jax.devices()), digest(top_k(*far_apart(), 60, SMALL, jax.devices())))
