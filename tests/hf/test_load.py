"""Every leaf against index formulas written per tensor; every layout and storage the same tree; every defect named."""

import json
import math

import jax
import numpy as np
import pytest
import tiny_checkpoint
from safetensors.numpy import save_file
from tiny_checkpoint import tensors, write, write_index

from moon_jax.config import ModelConfig, MoEConfig
from moon_jax.hf.config import LoadError, read_config
from moon_jax.hf.load import load_params
from moon_jax.hf.names import LAYOUTS, find_layout, table
from moon_jax.models.moon import abstract


def load(folder):
    return load_params(folder, read_config(folder)[0])


def at(shape, pick):
    """An array of this shape whose elements are picked one by one: pick(*indices)."""
    return np.fromfunction(pick, shape, dtype=int)


def expected(t):
    """The tree of `tiny_checkpoint`, element by element; heads 2 x 3 of 4 (text) and 2 of 8 (vision)."""
    layer = lambda i, name: t[f"model.layers.{i}.{name}"]  # noqa: E731
    block = lambda i, name: t[f"visual.blocks.{i}.{name}"]  # noqa: E731
    per_layer = lambda make: np.stack([make(i) for i in range(3)])  # noqa: E731
    per_block = lambda make: np.stack([make(i) for i in range(2)])  # noqa: E731
    text = {"norm1": per_layer(lambda i: layer(i, "input_layernorm.weight"))}
    text["norm2"] = per_layer(lambda i: layer(i, "post_attention_layernorm.weight"))
    q, o = "self_attn.q_proj", "self_attn.o_proj.weight"
    text["q"] = per_layer(
        lambda i: at((24, 2, 3, 4), lambda d, k, g, h: layer(i, f"{q}.weight")[(k * 3 + g) * 4 + h, d])
    )
    text["q_bias"] = per_layer(lambda i: at((2, 3, 4), lambda k, g, h: layer(i, f"{q}.bias")[(k * 3 + g) * 4 + h]))
    for n in "kv":
        name = f"self_attn.{n}_proj"
        text[n] = per_layer(lambda i, m=name: at((24, 2, 4), lambda d, k, h: layer(i, f"{m}.weight")[k * 4 + h, d]))
        text[f"{n}_bias"] = per_layer(lambda i, m=name: at((2, 4), lambda k, h: layer(i, f"{m}.bias")[k * 4 + h]))
    text["o"] = per_layer(lambda i: at((2, 3, 4, 24), lambda k, g, h, d: layer(i, o)[d, (k * 3 + g) * 4 + h]))
    text["ffn"] = {n: per_layer(lambda i, m=n: layer(i, f"mlp.{m}_proj.weight").T) for n in ("gate", "up", "down")}
    vision = {n: per_block(lambda i, m=n: block(i, f"{m}.weight")) for n in ("norm1", "norm2")}
    vision["qkv"] = per_block(
        lambda i: at((16, 3, 2, 8), lambda d, c, h, x: block(i, "attn.qkv.weight")[c * 16 + h * 8 + x, d])
    )
    vision["qkv_bias"] = per_block(
        lambda i: at((3, 2, 8), lambda c, h, x: block(i, "attn.qkv.bias")[c * 16 + h * 8 + x])
    )
    vision["proj"] = per_block(lambda i: at((2, 8, 16), lambda h, x, d: block(i, "attn.proj.weight")[d, h * 8 + x]))
    vision["proj_bias"] = per_block(lambda i: block(i, "attn.proj.bias"))
    for n in ("gate", "up", "down"):
        vision[n] = per_block(lambda i, m=n: block(i, f"mlp.{m}_proj.weight").T)
        vision[f"{n}_bias"] = per_block(lambda i, m=n: block(i, f"mlp.{m}_proj.bias"))
    kernel = t["visual.patch_embed.proj.weight"]
    merger = lambda name: t[f"visual.merger.{name}"]  # noqa: E731
    return {
        "vision": {
            "patch_embed": at((2, 27, 16), lambda f, p, d: kernel[d, p // 9, f, p % 9 // 3, p % 3]),
            "blocks": vision,
            "merger": {
                "norm": merger("ln_q.weight"),
                "fc1": merger("mlp.0.weight").T,
                "fc1_bias": merger("mlp.0.bias"),
                "fc2": merger("mlp.2.weight").T,
                "fc2_bias": merger("mlp.2.bias"),
            },
        },
        "text": {"embed": t["model.embed_tokens.weight"], "norm": t["model.norm.weight"], "layers": text},
    }


def assert_same(ours, wanted):
    assert jax.tree.structure(ours) == jax.tree.structure(wanted)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == np.float32, path
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shards", [1, 3])
def test_every_element_is_where_it_belongs(tmp_path, dtype, shards):
    write(tmp_path, tensors(), shards=shards, dtype=dtype)
    assert_same(load(tmp_path), expected(tensors()))


@pytest.mark.parametrize("config", [tiny_checkpoint.flat_config(), tiny_checkpoint.nested_config()])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_names_decide_the_layout_whatever_the_config_looks_like(tmp_path, layout, config):
    write(tmp_path, tensors(**LAYOUTS[layout]), config)
    assert_same(load(tmp_path), expected(tensors()))


def test_the_tree_is_the_models(tmp_path):
    write(tmp_path, tensors())
    model, _ = read_config(tmp_path)
    _, shapes, _ = abstract(model, MoEConfig(experts=0))
    ours = jax.tree.map(np.shape, load(tmp_path), is_leaf=lambda x: isinstance(x, np.ndarray))
    assert ours == jax.tree.map(lambda s: s.shape, shapes)


def test_every_row_leads_back_to_the_checkpoint(tmp_path):
    write(tmp_path, tensors())
    params, back = load(tmp_path), {}
    for row in table(read_config(tmp_path)[0]):
        leaf = params
        for name in row.path:
            leaf = leaf[name]
        assert leaf.shape == row.shape
        for name, weight in zip(row.hf_names("hub"), leaf if row.layers else [leaf], strict=True):
            back[name] = row.to_hf(weight)
            assert back[name].flags.c_contiguous
    wanted = tensors()
    assert back.keys() == wanted.keys()
    for name, tensor in wanted.items():
        np.testing.assert_array_equal(back[name], tensor, err_msg=name)


def test_a_head_is_left_out_but_its_shape_is_checked(tmp_path):
    head = {"lm_head.weight": np.ones((32, 24), np.float32)}
    write(tmp_path / "a", tensors() | head)
    assert_same(load(tmp_path / "a"), expected(tensors()))
    write(tmp_path / "b", tensors() | {"lm_head.weight": np.ones((24, 32), np.float32)})
    with pytest.raises(LoadError, match=r"lm_head.weight has the shape \[24, 32\], the config needs \[32, 24\]"):
        load(tmp_path / "b")


def test_everything_that_does_not_fit_is_named_at_once(tmp_path):
    bad = tensors()
    del bad["model.norm.weight"], bad["visual.blocks.1.attn.qkv.bias"]
    bad["model.layers.3.input_layernorm.weight"] = np.ones(24, np.float32)
    bad["rotary.inv_freq"] = np.ones(4, np.float32)
    bad["model.layers.2.self_attn.o_proj.weight"] = np.ones((24, 23), np.float32)
    # the same number of elements is no excuse
    bad["visual.patch_embed.proj.weight"] = bad["visual.patch_embed.proj.weight"].reshape(16, 54)
    bad["visual.merger.mlp.2.bias"] = np.ones(24, np.float64)
    write(tmp_path, tensors())
    save_file(bad, tmp_path / "model.safetensors")
    with pytest.raises(LoadError) as error:
        load(tmp_path)
    message = str(error.value)
    for line in [
        "model.norm.weight is missing",
        "visual.blocks.1.attn.qkv.bias is missing",
        "model.layers.3.input_layernorm.weight [24] is left over",
        "rotary.inv_freq [4] is left over",
        "model.layers.2.self_attn.o_proj.weight has the shape [24, 23], the config needs [24, 24]",
        "visual.patch_embed.proj.weight has the shape [16, 54], the config needs [16, 3, 2, 3, 3]",
        "visual.merger.mlp.2.bias is stored as F64",
    ]:
        assert f"  - {line}" in message
    assert message.count("\n  - ") == 8  # these and the layout
    assert str(tmp_path) in message


def test_mixed_layouts_are_missing_and_left_over(tmp_path):
    mixed = {n: t for n, t in tensors().items() if n.startswith("visual.")}
    mixed |= {n: t for n, t in tensors(text="model.language_model.").items() if not n.startswith("visual.")}
    write(tmp_path, mixed)
    with pytest.raises(LoadError) as error:
        load(tmp_path)
    assert "  - visual.merger.ln_q.weight [16] is left over" in str(error.value)
    assert "  - model.visual.merger.ln_q.weight is missing" in str(error.value)


def test_another_model_is_told_apart_from_a_damaged_one(tmp_path):
    write(tmp_path, {"bert.encoder.weight": np.ones(3, np.float32)})
    with pytest.raises(LoadError, match=r"no tensor of Qwen2\.5-VL; it has bert\.encoder\.weight"):
        load(tmp_path)
    assert find_layout(["nothing"], table(read_config(tmp_path)[0])) is None


def test_a_file_cut_short_is_named(tmp_path):
    write(tmp_path, tensors(), shards=2)
    shard = tmp_path / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-8])
    with pytest.raises(LoadError, match=r"model-00002-of-00002\.safetensors is broken or cut short"):
        load(tmp_path)
    shard.write_bytes(b"")
    with pytest.raises(LoadError, match=r"model-00002-of-00002\.safetensors is broken or cut short"):
        load(tmp_path)
    shard.unlink()
    with pytest.raises(LoadError, match=r"model-00002-of-00002\.safetensors is not there"):
        load(tmp_path)


def index_of(folder):
    return json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]


def test_shards_that_disagree_with_their_index(tmp_path):
    write(tmp_path, tensors(), shards=2)
    index = index_of(tmp_path)
    name = sorted(index)[0]
    write_index(tmp_path, index | {name: "model-00002-of-00002.safetensors"})
    with pytest.raises(LoadError, match=f"{name} is not in model-00002-of-00002.safetensors, where the index has it"):
        load(tmp_path)
    write_index(tmp_path, {n: s for n, s in index.items() if n != name})
    with pytest.raises(LoadError, match=f"{name} is in model-00001-of-00002.safetensors, but not in the index"):
        load(tmp_path)


def test_a_tensor_in_two_shards(tmp_path):
    write(tmp_path, tensors(), shards=2)
    index = index_of(tmp_path)
    second = {n: t for n, t in tensors().items() if index[n].startswith("model-00002")}
    name = "visual.blocks.0.attn.qkv.bias"
    assert index[name].startswith("model-00001")
    save_file(second | {name: tensors()[name]}, tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(LoadError, match=f"{name} is in several shards: model-00001-of-00002.* model-00002"):
        load(tmp_path)


@pytest.mark.parametrize(
    "shard",
    ["../model.safetensors", "/etc/model.safetensors", "sub/model.safetensors", "..\\m.safetensors", "m.bin", 3],
)
def test_a_shard_lies_in_the_folder_and_is_safetensors(tmp_path, shard):
    write(tmp_path / "a", tensors(), shards=2)
    write(tmp_path, tensors())
    write_index(tmp_path / "a", index_of(tmp_path / "a") | {"model.norm.weight": shard})
    with pytest.raises(LoadError, match=r"the plain name of a \.safetensors file") as error:
        load(tmp_path / "a")
    assert repr(shard) in str(error.value)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 3}', '{"metadata": {}}', '{"weight_map": {"a": {}}}'])
def test_an_index_that_is_none(tmp_path, text):
    write(tmp_path, tensors(), shards=2)
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(LoadError, match="is no index of shards"):
        load(tmp_path)


def test_a_folder_without_anything_to_read(tmp_path):
    write(tmp_path, tensors())
    config, _ = read_config(tmp_path)
    single = tmp_path / "model.safetensors"
    single.rename(tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(LoadError, match=r"has model-00001-of-00002.safetensors, but neither"):
        load_params(tmp_path, config)
    (tmp_path / "model-00001-of-00002.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(LoadError, match=r"only pickle files \(pytorch_model.bin\)"):
        load_params(tmp_path, config)
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(LoadError, match="neither"):
        load_params(tmp_path, config)
    with pytest.raises(LoadError, match="is not a folder"):
        load_params(tmp_path / "nowhere", config)


def test_two_models_in_one_folder(tmp_path):
    write(tmp_path, tensors(seed=1))
    write(tmp_path, tensors(), shards=2)
    with pytest.raises(LoadError, match="which may be two models"):
        load(tmp_path)


def test_links_into_a_download_cache_are_followed(tmp_path):
    write(tmp_path / "blobs", tensors())
    (tmp_path / "snapshot").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "snapshot" / name).symlink_to(tmp_path / "blobs" / name)
    assert_same(load(tmp_path / "snapshot"), expected(tensors()))


def test_the_3b_model_has_the_published_counts():
    rows = table(ModelConfig())
    assert sum(len(row.hf_names("hub")) for row in rows) == 824
    assert sum(math.prod(row.shape) for row in rows) == 3_754_622_976
