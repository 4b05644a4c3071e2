"""Conversion: every bit arrives, there and back; a source that cannot be used leaves nothing behind."""

import hashlib
import json
import shutil

import ml_dtypes
import numpy as np
import pytest
import tiny_hf
from safetensors.numpy import load_file, save_file

from moon_jax.convert import Cast, Options, convert
from moon_jax.data.tokenizer import TokenizerError
from moon_jax.weights.folder import ModelFolder, read_description
from moon_jax.weights.source import Leaf, WeightsError

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def hf(tmp_path_factory):
    return tiny_hf.write(tmp_path_factory.mktemp("source") / "Tiny", dtype="bfloat16")


@pytest.fixture
def copy(hf, tmp_path):
    return shutil.copytree(hf, tmp_path / "source" / "Tiny")


def run(source, target, to="jax", **options):
    convert(source, target, Options(to, **options), progress=False)
    return target


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ------------------------------------------------------------------------------------------------ there and back


def test_to_jax_has_the_tensors_of_the_source(hf, tmp_path):
    target = run(hf, tmp_path / "jax", max_shard_bytes=20_000)
    theirs = load_file(hf / WEIGHTS)
    with ModelFolder(target, verify=True) as ours:
        assert len(list(target.glob("*.safetensors"))) >= 3
        assert sum(leaf.nbytes for leaf in ours.leaves.values()) == sum(a.nbytes for a in theirs.values())
        for i in range(3):
            layer = f"model.layers.{i}."
            gate = theirs[layer + "mlp.gate_proj.weight"]
            assert ours.read("text/layers/ffn/gate")[i].tobytes() == gate.T.tobytes()
            q = theirs[layer + "self_attn.q_proj.weight"].reshape(2, 3, 4, 24)
            assert ours.read("text/layers/q")[i].tobytes() == q.transpose(3, 0, 1, 2).tobytes()
        assert ours.read("text/embed").tobytes() == theirs["model.embed_tokens.weight"].tobytes()
    origin = read_description(target).origin
    assert origin["files"][WEIGHTS] == sha256(hf / WEIGHTS)
    assert origin["files"]["config.json"] == sha256(hf / "config.json")
    assert sha256(hf / WEIGHTS) in (target / "README.md").read_text()


@pytest.mark.parametrize("tied", [True, False])
def test_jax_to_hf_to_jax_is_identical_to_the_bit(tmp_path, tied):
    source = tiny_hf.write(tmp_path / "Tiny", dtype="bfloat16", tied=tied)
    first = run(source, tmp_path / "1")
    second = run(first, tmp_path / "2", to="hf")
    third = run(second, tmp_path / "3")
    assert sha256(first / WEIGHTS) == sha256(third / WEIGHTS)
    assert read_description(first).spec == read_description(third).spec
    before, after = load_file(source / WEIGHTS), load_file(second / WEIGHTS)
    assert {n: a.tobytes() for n, a in before.items()} == {n: a.tobytes() for n, a in after.items()}
    assert ("lm_head.weight" in after) == (not tied)


def test_experts_go_to_hf_and_back(hf, tmp_path):
    first = run(hf, tmp_path / "1", experts=4, noise=0.1, gate="softmax_all")
    second = run(first, tmp_path / "2", to="hf")
    third = run(second, tmp_path / "3")
    assert sha256(first / WEIGHTS) == sha256(third / WEIGHTS)
    assert read_description(third).spec == read_description(first).spec
    assert "mlp.experts.{e}.gate_proj" in (second / "README.md").read_text()
    names = load_file(second / WEIGHTS)
    with ModelFolder(first) as source:
        for layer, expert in ((0, 3), (2, 1)):
            ours = source.read("text/layers/moe/down")[layer, expert]
            assert names[f"model.layers.{layer}.mlp.experts.{expert}.down_proj.weight"].tobytes() == ours.T.tobytes()


@pytest.mark.torch
def test_transformers_computes_the_same_from_what_comes_back(hf, tmp_path):
    import torch
    from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

    back = run(run(hf, tmp_path / "1"), tmp_path / "2", to="hf")
    hidden = []
    for folder in (hf, back):
        model, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True
        )
        assert not any(report.values()), report
        ids = AutoTokenizer.from_pretrained(folder)("a red mug 红色", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            hidden.append(model.model(input_ids=ids).last_hidden_state.numpy())
    np.testing.assert_array_equal(*hidden)
    assert np.abs(hidden[0]).max() > 0.1


# ------------------------------------------------------------------------------------------- experts and dtypes


def test_experts_are_copies_and_routers_small(hf, tmp_path):
    target = run(hf, tmp_path / "moe", experts=5, top_k=3, seed=4)
    theirs = load_file(hf / WEIGHTS)
    with ModelFolder(target) as ours:
        for name in ("gate", "up", "down"):
            experts = ours.read(f"text/layers/moe/{name}")
            for i in range(3):
                dense = theirs[f"model.layers.{i}.mlp.{name}_proj.weight"].T.tobytes()
                assert all(experts[i, e].tobytes() == dense for e in range(5))
        router = ours.read("text/layers/moe/router")
        assert (router.dtype, router.shape) == (np.float32, (3, 24, 5))
        assert 0.018 < router.std() < 0.022
        assert "text/layers/ffn/gate" not in ours.leaves
        moe = ours.description.spec.moe
        assert (moe.experts, moe.top_k, moe.gate) == (5, 3, "softmax_active")
        assert ours.description.origin["changes"][0].startswith("every FFN copied to 5 experts")
    other = run(hf, tmp_path / "other", experts=5, top_k=3, seed=5)
    with ModelFolder(other) as ours:
        assert not np.array_equal(ours.read("text/layers/moe/router"), router)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_another_dtype(hf, tmp_path, dtype):
    target = run(hf, tmp_path / "cast", dtype=dtype)
    theirs = load_file(hf / WEIGHTS)["model.norm.weight"]
    with ModelFolder(target) as ours:
        assert {leaf.dtype.name for leaf in ours.leaves.values()} == {dtype}
        np.testing.assert_array_equal(ours.read("text/norm"), theirs.astype(dtype))
        assert ours.description.weights["dtype"] == dtype
        assert ours.description.origin["changes"] == [f"weights rounded or widened from bfloat16 to {dtype}"]


def test_rounding_is_to_the_nearest():
    class One:
        leaves = {"w": Leaf((4,), np.dtype(np.float32))}  # noqa: RUF012

        def read(self, name, index=()):
            return np.array([1 + 2**-8, 1 + 3 * 2**-8, np.inf, 3e38], np.float32)

    bits = Cast(One(), "bfloat16").read("w").view(np.uint16)
    assert bits[:3].tolist() == [0x3F80, 0x3F82, 0x7F80]  # ties go to the even one; an infinity stays one
    with pytest.raises(WeightsError, match="w has numbers beyond the range of float16"):
        Cast(One(), "float16").read("w")


# ---------------------------------------------------------------------------------------------------- refusals


def drop(tensors):
    del tensors["model.layers.1.self_attn.q_proj.weight"]


def add(tensors):
    tensors["model.layers.7.extra"] = np.zeros(3, np.float32)


def reshape(tensors):
    tensors["visual.merger.mlp.0.weight"] = np.zeros((64, 63), np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, r"model\.layers\.1\.self_attn\.q_proj\.weight is missing"),
        (add, r"model\.layers\.7\.extra \[3\] is left over"),
        (reshape, r"visual\.merger\.mlp\.0\.weight has the shape \[64, 63\]"),
    ],
)
def test_tensors_that_do_not_fit(copy, tmp_path, change, message):
    tensors = load_file(copy / WEIGHTS)
    change(tensors)
    save_file(tensors, copy / WEIGHTS)
    refused(copy, tmp_path, WeightsError, message)


def cut(folder):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-5])


def pickle(folder):
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def family(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))


def split_image_token(folder):
    state = json.loads((folder / "tokenizer.json").read_text())
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] != "<|image_pad|>"]
    (folder / "tokenizer.json").write_text(json.dumps(state))


def no_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


def no_tokenizer_config(folder):
    (folder / "tokenizer_config.json").unlink()


def escape(folder):
    tiny_hf.tiny_checkpoint.write_index(folder, {"model.norm.weight": "../other.safetensors"})
    (folder / WEIGHTS).unlink()


def link_out(folder):
    (folder / WEIGHTS).rename(folder.parent / WEIGHTS)
    (folder / WEIGHTS).symlink_to(folder.parent / WEIGHTS)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (cut, WeightsError, "broken or cut short"),
        (pickle, WeightsError, "only pickle files"),
        (family, WeightsError, "model_type is 'llama'"),
        (split_image_token, TokenizerError, r"no special token <\|image_pad\|>"),
        (no_tokenizer, TokenizerError, r"no tokenizer\.json"),
        (no_tokenizer_config, WeightsError, r"tokenizer_config\.json is missing"),
        (escape, WeightsError, r"\.\./other\.safetensors"),
        (link_out, WeightsError, "leads out of the folder"),
    ],
)
def test_sources_that_are_refused(copy, tmp_path, change, error, message):
    change(copy)
    refused(copy, tmp_path, error, message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experts": 2}, "one is for category"),
        ({"experts": 4, "top_k": 3}, "moe.top_k is 3"),
        ({"experts": 4, "noise": float("nan")}, "noise is nan"),
        ({"top_k": 2, "noise": 0.1}, "top_k, noise: of use only with a number of experts"),
    ],
)
def test_options_that_cannot_work(copy, tmp_path, options, message):
    refused(copy, tmp_path, WeightsError, message, **options)


def refused(source, tmp_path, error, message, **options):
    """Neither the target nor the folders above it are made."""
    for to in ("jax", "hf"):
        with pytest.raises(error, match=message):
            run(source, tmp_path / "a" / "b" / "target", to=to, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_changed_model_folder_is_not_converted_further(hf, tmp_path):
    model = run(hf, tmp_path / "model")
    data = bytearray((model / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (model / WEIGHTS).write_bytes(bytes(data))
    with pytest.raises(WeightsError, match="has changed since it was written"):
        run(model, tmp_path / "out", to="hf")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_source_that_fails_half_way_leaves_nothing(hf, tmp_path, monkeypatch):
    from moon_jax.hf.load import HFSource

    real, reads = HFSource.read, []

    def read(self, name, index=()):
        reads.append(name)
        if len(reads) == 40:
            raise WeightsError(f"{name} cannot be read")
        return real(self, name, index)

    monkeypatch.setattr(HFSource, "read", read)
    for to in ("jax", "hf"):
        reads.clear()
        with pytest.raises(WeightsError, match="cannot be read"):
            run(hf, tmp_path / "out", to=to)
    assert list(tmp_path.iterdir()) == []


def test_numbers_survive_whatever_their_bits(copy, tmp_path):
    """NaNs with a payload, infinities, subnormals and negative zeros are copied, not computed with."""
    tensors = load_file(copy / WEIGHTS)
    name = "model.layers.0.mlp.up_proj.weight"
    bits = np.arange(480, dtype=np.uint16).reshape(20, 24) * 136 + 1
    tensors[name] = bits.view(ml_dtypes.bfloat16)
    save_file(tensors, copy / WEIGHTS)
    back = run(run(copy, tmp_path / "1"), tmp_path / "2", to="hf")
    np.testing.assert_array_equal(load_file(back / WEIGHTS)[name].view(np.uint16), bits)
