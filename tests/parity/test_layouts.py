"""Checkpoints that transformers writes load as what is in the torch model, whatever names and storage they have."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import oracle  # noqa: E402

from moon_jax.hf.config import read_config  # noqa: E402
from moon_jax.hf.load import Tensors, load_params  # noqa: E402

pytestmark = pytest.mark.torch

TEXT = {
    "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e5, "mrope_section": [2, 1, 1]},
}  # fmt: skip
VISION = {"depth": 2, "hidden_size": 16, "intermediate_size": 20, "num_heads": 2, "fullatt_block_indexes": [0]}


@pytest.fixture(scope="module")
def model():
    return oracle.make_model(TEXT, VISION)


def load(folder):
    return load_params(folder, read_config(folder)[0])


def leaves(params):
    return {jax.tree_util.keystr(p): x for p, x in jax.tree_util.tree_leaves_with_path(params)}


@pytest.mark.parametrize("shard", ["5GB", "20KB"])
@pytest.mark.parametrize("layout", ["hub", "fresh", "v5", "base"])
def test_all_layouts_give_one_tree_and_the_oracle_reads_them_too(model, tmp_path, layout, shard):
    oracle.save(model, tmp_path / "reference", "fresh")
    oracle.save(model, tmp_path / layout, layout, max_shard_size=shard)
    assert (tmp_path / layout / "model.safetensors").exists() == (shard == "5GB")
    with Tensors(tmp_path / layout) as tensors:
        prefixes = {name.split("layers.")[0] for name in tensors.shapes if "layers." in name}
    assert prefixes == {{"v5": "model.language_model.", "base": "language_model."}.get(layout, "model.")}

    assert read_config(tmp_path / layout) == read_config(tmp_path / "reference")
    want, got = leaves(load(tmp_path / "reference")), leaves(load(tmp_path / layout))
    assert want.keys() == got.keys()
    for name, leaf in want.items():
        np.testing.assert_array_equal(got[name], leaf, err_msg=name)
    again = oracle.load(tmp_path / layout)
    for (name, a), b in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_stored_half_precision_is_read_exactly(tmp_path, dtype):
    half = oracle.make_model(TEXT, VISION).to(dtype)
    oracle.save(half, tmp_path / "half")
    oracle.save(half.float(), tmp_path / "float")
    assert read_config(tmp_path / "half")[1].dtype == str(dtype).removeprefix("torch.")
    want, got = leaves(load(tmp_path / "float")), leaves(load(tmp_path / "half"))
    for name, leaf in want.items():
        np.testing.assert_array_equal(got[name], leaf, err_msg=name)


def test_an_untied_head_is_left_out(tmp_path):
    untied = oracle.make_model(TEXT, VISION, tie_word_embeddings=False)
    oracle.save(untied, tmp_path)
    config, info = read_config(tmp_path)
    assert not info.tied
    embed = untied.get_input_embeddings().weight.detach().numpy()
    np.testing.assert_array_equal(load_params(tmp_path, config)["text"]["embed"], embed)
