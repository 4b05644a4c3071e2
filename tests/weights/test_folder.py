"""Model folders: what was written piece by piece comes back, and damage of every kind is named."""

import hashlib
import json
import pathlib
from types import MappingProxyType

import ml_dtypes
import numpy as np
import pytest
import tiny_hf
from tiny_spec import SPEC

from moon_jax.weights.folder import ModelFolder, assets, pieces, read_description, write_model
from moon_jax.weights.source import LM_HEAD, Leaf, WeightsError
from moon_jax.weights.unfinished import new_folder


class Arrays:
    """Arrays in memory as a source, which counts what is read at a time."""

    def __init__(self, **arrays):
        self.arrays = arrays
        self.leaves = MappingProxyType({name: Leaf(a.shape, a.dtype) for name, a in arrays.items()})
        self.largest = 0

    def read(self, name, index=()):
        values = np.array(self.arrays[name][index])
        self.largest = max(self.largest, values.nbytes)
        return values


def arrays():
    rng = np.random.default_rng(0)
    make = lambda *shape: rng.standard_normal(shape).astype(ml_dtypes.bfloat16)  # noqa: E731
    return Arrays(
        **{
            "text/embed": make(320, 24),
            "text/layers/q": make(3, 24, 2, 3, 4),
            "text/layers/moe/gate": make(3, 5, 24, 20),
            "text/layers/moe/router": rng.standard_normal((3, 24, 5)).astype(np.float32),
            "text/norm": make(24),
            "vision/blocks/norm1": make(2, 16),
            "vision/merger/fc1": make(64, 64),
            LM_HEAD: make(320, 24),
        }
    )


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return tiny_hf.write(tmp_path_factory.mktemp("words") / "hf")


ORIGIN = {"kind": "hf", "name": "Qwen/X@1", "files": {"a.safetensors": "ab" * 32}, "changes": ["half of it"]}


@pytest.fixture
def written(tmp_path, words):
    with new_folder(tmp_path / "model") as folder:
        write_model(folder, arrays(), SPEC, words, lambda: ORIGIN, max_shard_bytes=20_000)
    return tmp_path / "model"


# ------------------------------------------------------------------------------------------------- there and back


def test_what_was_written_comes_back(written):
    source = arrays()
    with ModelFolder(written, verify=True) as folder:
        assert folder.leaves == source.leaves
        for name, array in source.arrays.items():
            assert folder.read(name).tobytes() == array.tobytes()
        np.testing.assert_array_equal(
            folder.read("text/layers/moe/gate", (slice(1, 2), slice(3, 5), slice(2, 9))),
            source.arrays["text/layers/moe/gate"][1:2, 3:5, 2:9],
        )
        assert folder.description.spec == SPEC
        assert folder.description.origin == ORIGIN
        numbers = sum(a.size for a in source.arrays.values())
        assert folder.description.weights == {"dtype": "bfloat16", "parameters": numbers}


def test_files_and_digests(written, words):
    files = read_description(written).files
    there = {path.name for path in written.iterdir()}
    assert there == {*files, "moon.json", "README.md"}
    assert sum(name.startswith("model-0000") for name in there) >= 3
    assert {"model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json"} < there
    for name, entry in files.items():
        data = (written / name).read_bytes()
        assert entry == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (written / name).read_bytes() == (words / name).read_bytes()


def test_written_piece_by_piece(tmp_path, words):
    source, seen = arrays(), []
    with new_folder(tmp_path / "model") as folder:
        write_model(folder, source, SPEC, words, lambda: ORIGIN, progress=seen.append)
    assert sum(seen) == sum(leaf.nbytes for leaf in source.leaves.values())
    assert (
        source.largest == 320 * 24 * 2
    )  # a table of tokens in rows; one expert, not all five, of one layer, not three


def test_rows_of_a_large_table_and_every_place_of_a_stack():
    half, single = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32)
    table = [(i[0].start, i[0].stop, place) for i, place in pieces("text/embed", Leaf((151936, 2048), half))]
    assert all((stop - start) * 4096 <= 32 << 20 and place == start for start, stop, place in table)
    assert [start for start, *_ in table[1:]] == [stop for _, stop, _ in table[:-1]]
    assert (table[0][0], table[-1][1]) == (0, 151936)
    expected = {
        ("text/layers/moe/up", (2, 3, 4, 5), half): [(a, b) for a in range(2) for b in range(3)],
        ("text/layers/moe/router", (2, 4, 3), single): [(0,), (1,)],
        ("vision/blocks/qkv", (2, 4, 3, 2, 2), half): [(0,), (1,)],
        ("vision/merger/fc2", (5120, 2048), half): [()],
    }
    for (name, shape, dtype), places in expected.items():
        found = list(pieces(name, Leaf(shape, dtype)))
        assert [place for _, place in found] == places
        assert [index for index, _ in found] == [tuple(slice(i, i + 1) for i in place) for place in places]


def test_assets_of_a_training_checkpoint(tmp_path, words):
    for name, data in assets(SPEC, words, {"kind": "random"}).items():
        (tmp_path / name).write_bytes(data)
    described = read_description(tmp_path)
    assert (described.spec, described.weights, described.files) == (SPEC, {}, {})
    with pytest.raises(WeightsError, match="without weights"):
        ModelFolder(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_that_is_not_whole(tmp_path, words, name):
    for path in words.iterdir():
        if path.name != name:
            (tmp_path / path.name).symlink_to(path)
    with pytest.raises(WeightsError, match="leads out of the folder"):
        assets(SPEC, tmp_path, ORIGIN)
    for path in words.glob("tokenizer*"):
        (tmp_path / path.name).unlink(missing_ok=True)
        if path.name != name:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(WeightsError, match=f"{name} is missing"):
        assets(SPEC, tmp_path, ORIGIN)


# ------------------------------------------------------------------------------------------------------- damage


def test_damaged_files_are_all_named(written):
    shards = sorted(written.glob("model-*.safetensors"))
    shards[0].unlink()
    shards[1].write_bytes(shards[1].read_bytes()[:-1])
    (written / "model.safetensors").write_bytes(b"")
    with pytest.raises(WeightsError) as error:
        ModelFolder(written)
    for part in (f"{shards[0].name} is missing", f"{shards[1].name} has", "model.safetensors is not among the files"):
        assert part in str(error.value)


def test_a_flipped_bit_is_found_when_asked(written):
    path = max(written.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))
    ModelFolder(written).__exit__()
    with pytest.raises(WeightsError, match=rf"{path.name} has changed"):
        ModelFolder(written, verify=True)


def test_files_that_lead_out(written, tmp_path):
    path = written / "tokenizer.json"
    path.rename(tmp_path / "elsewhere.json")
    path.symlink_to(tmp_path / "elsewhere.json")
    edit(written, lambda values: values["files"].update({"../x": {"bytes": 1, "sha256": ""}}))
    with pytest.raises(WeightsError) as error:
        ModelFolder(written)
    assert "tokenizer.json is a link that leads out" in str(error.value)
    assert "'../x' is no plain file name" in str(error.value)


def test_a_folder_of_the_time_when_there_was_one_backbone(written):
    before = ModelFolder(written).description.spec
    edit(written, lambda v: [v["model"]["vision"].pop(name) for name in ("kind", "intern")])
    with pytest.raises(WeightsError, match=r"model\.vision\.kind is missing"):
        ModelFolder(written)
    edit(written, lambda v: v.update(version=1))
    assert ModelFolder(written).description.spec == before


def edit(folder: pathlib.Path, change) -> None:
    values = json.loads((folder / "moon.json").read_text())
    change(values)
    (folder / "moon.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(version=3), "version 3; this program reads up to version 2"),
        (lambda v: v.update(format="other"), "not the description of a model"),
        (lambda v: v.update(files=[]), "is damaged"),
        (lambda v: v["files"].update({"x": {"bytes": "1"}}), "is damaged"),
        (lambda v: v.pop("weights"), "without weights"),
    ],
)
def test_a_moon_json_that_cannot_be_used(written, change, message):
    edit(written, change)
    with pytest.raises(WeightsError, match=message):
        ModelFolder(written)


def test_a_moon_json_that_is_cut_or_missing(written):
    path = written / "moon.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(WeightsError, match="cannot be read as JSON"):
        ModelFolder(written)
    path.unlink()
    with pytest.raises(WeightsError, match=r"there is no .*moon\.json"):
        ModelFolder(written)
