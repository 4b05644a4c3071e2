"""Every leaf against index formulas written per tensor; every layout and storage the same tree; every defect named."""

import math

import jax
import ml_dtypes
import numpy as np
import pytest
import tiny_checkpoint
from safetensors.numpy import save_file
from tiny_checkpoint import tensors, write

from moon_jax.config import ModelConfig, MoEConfig
from moon_jax.hf import load as hf_load
from moon_jax.hf.config import LoadError, read_config
from moon_jax.hf.load import HFSource, load_params
from moon_jax.hf.names import LAYOUTS, find_layout, table
from moon_jax.models.moon import abstract_params
from moon_jax.weights.source import LM_HEAD, Leaf, WeightsError, named


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
    shapes = abstract_params(model, MoEConfig(experts=0))
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
        for name, weight in zip(row.hf_names("hub"), leaf if row.stack else [leaf], strict=True):
            back[name] = row.to_hf(weight)
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


def test_a_head_is_a_parameter_where_it_differs_from_the_embedding(tmp_path, caplog):
    """Tied or not: transformers 5 ties only what is equal, so a head of its own is never lost."""
    t = tensors()
    embed, other = t["model.embed_tokens.weight"], np.ones((32, 24), np.float32)
    other[-1, -1] = 2
    for name, head, tied, kept in (
        ("untied", other, False, True),
        ("untied but equal", embed, False, True),
        ("tied", embed, True, False),
        ("tied by mistake", np.where(np.arange(32)[:, None] == 31, other, embed), True, True),
    ):
        write(tmp_path / name, t | {"lm_head.weight": head}, dtype="bfloat16")
        with HFSource(tmp_path / name, read_config(tmp_path / name)[0], tied=tied) as source:
            assert (LM_HEAD in source.leaves) == kept, name
            if kept:
                assert source.leaves[LM_HEAD] == Leaf((32, 24), np.dtype(ml_dtypes.bfloat16))
                np.testing.assert_array_equal(source.read(LM_HEAD, (slice(3, 9),)), head[3:9])
    assert "ties the output head" in caplog.text
    assert "tied by mistake" in caplog.text


def test_half_precision_stays_what_it_is_but_a_mixture_becomes_float32(tmp_path):
    mixed = {n: t.astype(np.float16) for n, t in tensors().items()}
    name = "model.layers.1.self_attn.q_proj.weight"
    mixed[name] = mixed[name].astype(np.float32) + np.float32(2**-20)
    write(tmp_path, tensors())
    save_file(mixed, tmp_path / "model.safetensors")
    with HFSource(tmp_path, read_config(tmp_path)[0]) as source:
        assert source.leaves["text/layers/k"].dtype == source.read("text/layers/k").dtype == np.float16
        assert source.leaves["text/layers/q"].dtype == np.float32
        q = source.read("text/layers/q")
    np.testing.assert_array_equal(q[1].reshape(24, 24), mixed[name].T)
    np.testing.assert_array_equal(q[2].reshape(24, 24), mixed["model.layers.2.self_attn.q_proj.weight"].T)


@pytest.mark.parametrize("piece", [1, 300, 1 << 20])
def test_any_slice_is_that_of_the_whole(tmp_path, piece, monkeypatch):
    monkeypatch.setattr(hf_load, "_PIECE_BYTES", piece)
    write(tmp_path, tensors(), shards=2, dtype="bfloat16")
    wanted = named(expected(tensors()))
    rng = np.random.default_rng(piece)
    with HFSource(tmp_path, read_config(tmp_path)[0]) as source:
        assert {name: leaf.shape for name, leaf in source.leaves.items()} == {n: w.shape for n, w in wanted.items()}
        for name, leaf in wanted.items():
            assert source.leaves[name].dtype == ml_dtypes.bfloat16
            for length in range(leaf.ndim + 1):
                bounds = [sorted(rng.integers(0, n + 1, 2)) for n in leaf.shape[:length]]
                index = tuple(slice(int(a), int(b)) for a, b in bounds)
                got = source.read(name, index)
                assert got.dtype == ml_dtypes.bfloat16
                np.testing.assert_array_equal(got.astype(np.float32), leaf[index], err_msg=f"{name} {index}")
            np.testing.assert_array_equal(source.read(name, (slice(-1, None),))[0].astype(np.float32), leaf[-1])


def experts_of(tensors, experts=4):
    """The tiny checkpoint with experts in place of every FFN, named by hand."""
    out = {n: t for n, t in tensors.items() if not (n.startswith("model.layers") and ".mlp." in n)}
    rng = np.random.default_rng(5)
    for i in range(3):
        out[f"model.layers.{i}.mlp.gate.weight"] = rng.standard_normal((experts, 24), np.float32)
        for e in range(experts):
            for n, shape in (("gate", (20, 24)), ("up", (20, 24)), ("down", (24, 20))):
                out[f"model.layers.{i}.mlp.experts.{e}.{n}_proj.weight"] = rng.standard_normal(shape, np.float32)
    return out


def test_experts_are_stacked_behind_the_layers(tmp_path):
    t = experts_of(tensors())
    write(tmp_path, t, tiny_checkpoint.flat_config(moon={"experts": 4}))
    moe = MoEConfig(experts=4)
    config, _ = read_config(tmp_path)
    params = load_params(tmp_path, config, moe)
    shapes = jax.tree.map(lambda s: s.shape, abstract_params(config, moe))
    assert jax.tree.map(np.shape, params, is_leaf=lambda x: isinstance(x, np.ndarray)) == shapes
    ours = params["text"]["layers"]["moe"]
    for i in range(3):
        np.testing.assert_array_equal(ours["router"][i], t[f"model.layers.{i}.mlp.gate.weight"].T)
        for e in range(4):
            for n in ("gate", "up", "down"):
                np.testing.assert_array_equal(ours[n][i, e], t[f"model.layers.{i}.mlp.experts.{e}.{n}_proj.weight"].T)
    with HFSource(tmp_path, config, moe) as source:
        part = source.read("text/layers/moe/down", (slice(1, 3), slice(2, 3), slice(4, 9)))
    np.testing.assert_array_equal(part, ours["down"][1:3, 2:3, 4:9])
    with pytest.raises(LoadError, match=r"layers\.2\.mlp\.experts\.3\.down_proj\.weight \[24, 20\] is left over"):
        load_params(tmp_path, config, MoEConfig(experts=3))


def test_a_config_that_asks_for_a_billion_layers_is_refused_at_once(tmp_path):
    write(tmp_path, tensors(), tiny_checkpoint.flat_config(num_hidden_layers=10**12, max_window_layers=10**12))
    with pytest.raises(LoadError, match=r"holds 68 tensors; its config needs 12000000000032"):
        load(tmp_path)


def test_files_that_cannot_be_read_are_named(tmp_path):
    write(tmp_path, tensors(), shards=2)
    shard = tmp_path / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-8])
    with pytest.raises(WeightsError, match=r"model-00002-of-00002\.safetensors is broken or cut short"):
        load(tmp_path)


def test_the_3b_model_has_the_published_counts():
    rows = table(ModelConfig())
    assert sum(len(row.hf_names("hub")) for row in rows) == 824
    assert sum(math.prod(row.shape) for row in rows) == 3_754_622_976
