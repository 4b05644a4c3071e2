"""config.json is read as transformers reads it (its config classes need no torch)."""

import copy
import json

import pytest
import tiny_checkpoint
from transformers import InternVLConfig, Qwen2_5_VLConfig, Qwen2VLConfig

from moon_jax.config import ModelConfig, MoEConfig
from moon_jax.hf.config import LoadError, read_config, write_config

# The published 3B config, as far as it matters: most vision fields are absent, two have names that nothing reads.
HUB_3B = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"], "attention_dropout": 0.0, "bos_token_id": 151643,
    "eos_token_id": 151645, "vision_start_token_id": 151652, "vision_end_token_id": 151653,
    "vision_token_id": 151654, "image_token_id": 151655, "video_token_id": 151656, "hidden_act": "silu",
    "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 11008, "max_position_embeddings": 128000,
    "max_window_layers": 70, "model_type": "qwen2_5_vl", "num_attention_heads": 16, "num_hidden_layers": 36,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768,
    "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_cache": True, "use_sliding_window": False,
    "vision_config": {
        "hidden_size": 1280, "in_chans": 3, "out_hidden_size": 2048, "spatial_patch_size": 14,
        "tokens_per_second": 2, "model_type": "qwen2_5_vl",
    },
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "vocab_size": 151936,
}  # fmt: skip


def write(folder, config):
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def change(config, **changes):
    """A copy with dotted keys changed; None removes the key."""
    config = copy.deepcopy(config)
    for path, value in changes.items():
        *parents, leaf = path.split("__")
        node = config
        for name in parents:
            node = node[name]
        if value is None:
            del node[leaf]
        else:
            node[leaf] = value
    return config


def test_the_published_3b_config_gives_our_defaults(tmp_path):
    model, info = read_config(write(tmp_path, HUB_3B))
    assert model == ModelConfig()
    assert info.tied
    assert info.dtype == "bfloat16"
    assert (info.image_token_id, info.vision_start_token_id, info.vision_end_token_id) == (151655, 151652, 151653)


FLAT, NESTED = tiny_checkpoint.flat_config(), tiny_checkpoint.nested_config()


@pytest.mark.parametrize(
    "config",
    [
        HUB_3B,
        FLAT,
        NESTED,
        change(HUB_3B, vision_config__hidden_size=None),  # the default is 3584, not the 3B model's 1280
        change(HUB_3B, rms_norm_eps=None, rope_theta=None, tie_word_embeddings=None),
        change(HUB_3B, num_key_value_heads=None),
        change(HUB_3B, vision_config__in_chans=7, vision_config__spatial_patch_size=9),
        change(HUB_3B, rope_scaling__rope_type="default", rope_scaling__type="default"),
        change(FLAT, use_sliding_window=True, sliding_window=64, max_window_layers=3),
        change(FLAT, image_token_id=None, vision_end_token_id=None),
        change(NESTED, text_config__rope_parameters__rope_theta=None),
        change(NESTED, tie_word_embeddings=None, text_config__tie_word_embeddings=True),
        change(NESTED, text_config__num_attention_heads=2, text_config__rope_parameters__mrope_section=[2, 2, 2]),
        change(NESTED, vision_config__fullatt_block_indexes=[]),
    ],
)
def test_every_field_is_what_transformers_reads(tmp_path, config):
    model, info = read_config(write(tmp_path, config))
    theirs = Qwen2_5_VLConfig.from_pretrained(tmp_path)
    text, vision = theirs.text_config, theirs.vision_config
    for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                 "num_key_value_heads", "rms_norm_eps"):  # fmt: skip
        assert getattr(model.text, name) == getattr(text, name), name
    assert model.text.head_dim == text.hidden_size // text.num_attention_heads
    assert model.text.rope_theta == text.rope_parameters["rope_theta"]
    assert list(model.text.mrope_section) == text.rope_parameters["mrope_section"]
    for name in ("depth", "hidden_size", "intermediate_size", "num_heads", "in_channels", "patch_size",
                 "spatial_merge_size", "temporal_patch_size", "window_size"):  # fmt: skip
        assert getattr(model.vision, name) == getattr(vision, name), name
    assert list(model.vision.fullatt_block_indexes) == list(vision.fullatt_block_indexes)
    assert info.tied == theirs.tie_word_embeddings
    for name in ("image", "video", "vision_start", "vision_end"):
        assert getattr(info, f"{name}_token_id") == getattr(theirs, f"{name}_token_id")


# Qwen2-VL-2B's published config, as far as it matters. GME-Qwen2-VL-2B has the same sizes.
HUB_QWEN2_2B = {
    "architectures": ["Qwen2VLForConditionalGeneration"], "bos_token_id": 151643, "eos_token_id": 151645,
    "vision_start_token_id": 151652, "vision_end_token_id": 151653, "vision_token_id": 151654,
    "image_token_id": 151655, "video_token_id": 151656, "hidden_act": "silu", "hidden_size": 1536,
    "intermediate_size": 8960, "max_position_embeddings": 32768, "max_window_layers": 28, "model_type": "qwen2_vl",
    "num_attention_heads": 12, "num_hidden_layers": 28, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    "use_cache": True, "use_sliding_window": False,
    "vision_config": {
        "depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16, "in_chans": 3, "hidden_size": 1536,
        "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14, "temporal_patch_size": 2,
    },
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "vocab_size": 151936,
}  # fmt: skip


@pytest.mark.parametrize(
    "config",
    [
        HUB_QWEN2_2B,
        change(HUB_QWEN2_2B, vision_config={"hidden_size": 1536, "in_chans": 7}),
        change(HUB_QWEN2_2B, vision_config__mlp_ratio=2, vision_config__model_type="qwen2_vl", rope_theta=None),
    ],
)
def test_every_field_of_qwen2_vl_is_what_transformers_reads(tmp_path, config):
    model, info = read_config(write(tmp_path, config))
    theirs = Qwen2VLConfig.from_pretrained(tmp_path)
    text, vision = theirs.text_config, theirs.vision_config
    for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                 "num_key_value_heads", "rms_norm_eps"):  # fmt: skip
        assert getattr(model.text, name) == getattr(text, name), name
    assert model.text.rope_theta == text.rope_parameters["rope_theta"]
    assert list(model.text.mrope_section) == text.rope_parameters["mrope_section"]
    for name in ("depth", "num_heads", "in_channels", "patch_size", "spatial_merge_size", "temporal_patch_size"):
        assert getattr(model.vision, name) == getattr(vision, name), name
    assert (model.vision.kind, model.vision.hidden_size) == ("qwen2_vl", vision.embed_dim)
    assert model.vision.intermediate_size == vision.embed_dim * vision.mlp_ratio
    assert vision.hidden_size == model.text.hidden_size
    assert info.tied == theirs.tie_word_embeddings
    again = write_config(model, MoEConfig(experts=0), info, "bfloat16")
    assert read_config(write(tmp_path, again)) == (model, info)


def test_full_attention_beyond_the_depth_means_nothing(tmp_path):
    model, _ = read_config(write(tmp_path, change(FLAT, vision_config__fullatt_block_indexes=[1, 7, 15])))
    assert model.vision.fullatt_block_indexes == (1,)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (change(FLAT, model_type="llama"), r"model_type is 'llama'; what can be loaded is .*'qwen2_vl' \(Qwen2-VL\)"),
        (change(FLAT, model_type=["qwen2_vl"]), r"model_type is \['qwen2_vl'\]"),
        (change(FLAT, model_type=None), "model_type is None"),
        (change(FLAT, use_sliding_window=True), "sliding-window"),  # max_window_layers 2 of 3 layers
        (change(NESTED, text_config__layer_types=["full_attention", "sliding_attention"]), "sliding-window"),
        (change(FLAT, rope_scaling__type="yarn"), "rope type 'yarn'"),
        (change(FLAT, rope_scaling__mrope_section=[16, 24, 24]), r"\[16, 24, 24\] must be three integers .* = 2"),
        (change(FLAT, hidden_act="gelu"), "text hidden_act"),
        (change(FLAT, head_dim=8), "head_dim"),
        (change(FLAT, num_key_value_heads=4), "multiple of num_key_value_heads"),
        (change(FLAT, hidden_size="24"), "text hidden_size must be a positive integer, got '24'"),
        (change(FLAT, image_token_id=1.5), "image_token_id"),
        (change(FLAT, vision_config__out_hidden_size=None), "out_hidden_size 3584 must be the text hidden_size 24"),
        (change(FLAT, vision_config__hidden_act="quick_gelu"), "vision hidden_act"),
        (change(HUB_QWEN2_2B, vision_config__hidden_size=1280), "hidden_size 1280 must be the text hidden_size 1536"),
        (change(HUB_QWEN2_2B, vision_config__hidden_act="gelu"), "'gelu'; only 'quick_gelu' is computed"),
        (change(HUB_QWEN2_2B, vision_config__mlp_ratio=4.5), "mlp_ratio must be a positive integer, got 4.5"),
        (change(HUB_QWEN2_2B, vision_config__embed_dim=24), "embed_dim 24 must be a multiple of 4"),
        (change(FLAT, vision_config__num_heads=8), "4 \\* num_heads"),
        (change(FLAT, vision_config__window_size=5), "window_size 5"),
        (change(FLAT, vision_config__fullatt_block_indexes=7), "fullatt_block_indexes must be a list"),
        (change(FLAT, rope_scaling="default"), "rope_scaling / rope_parameters must be an object"),
        (change(FLAT, rope_scaling__mrope_section=2), "mrope_section 2 must be three integers"),
        (change(FLAT, rope_theta="1e6", rms_norm_eps=0), "rms_norm_eps must be a positive number, got 0"),
        (change(FLAT, rope_theta="1e6"), "rope_theta must be a positive number, got '1e6'"),
        (change(FLAT, rope_theta=float("inf")), "rope_theta must be a positive number, got inf"),
        (change(FLAT, rope_theta=float("nan"), rms_norm_eps=True), "rms_norm_eps must be a positive number, got True"),
        (FLAT | {"moon": [8]}, "moon must be an object"),
        (change(NESTED, vision_config__rope_parameters={"rope_theta": 5.0}), "only rope_theta 10000 is computed"),
        (change(NESTED, text_config=[1]), "text_config must be an object"),
    ],
)
def test_what_we_do_not_compute_is_refused_by_name(tmp_path, config, message):
    with pytest.raises(LoadError, match=message) as error:
        read_config(write(tmp_path, config))
    assert str(tmp_path / "config.json") in str(error.value)


def test_all_mistakes_come_at_once(tmp_path):
    with pytest.raises(LoadError) as error:
        read_config(write(tmp_path, change(FLAT, hidden_act="gelu", num_key_value_heads=4, image_token_id="x")))
    assert str(error.value).count("\n  - ") == 3


def test_no_config_or_no_json(tmp_path):
    with pytest.raises(LoadError, match="there is no"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(LoadError, match="JSON"):
        read_config(tmp_path)


def test_a_key_twice_or_a_link_out_of_the_folder(tmp_path):
    text = json.dumps(FLAT)
    (tmp_path / "config.json").write_text(text[:-1] + ', "hidden_size": 48}')
    with pytest.raises(LoadError, match="named twice: hidden_size"):
        read_config(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "config.json").write_text(text)
    (tmp_path / "model" / "config.json").symlink_to("../config.json")
    with pytest.raises(LoadError, match=r"config\.json is a link that leads out of the folder"):
        read_config(tmp_path / "model")


# InternVL3-2B's published config, as far as it matters.
HUB_INTERNVL_2B = {
    "architectures": ["InternVLForConditionalGeneration"], "model_type": "internvl", "downsample_ratio": 0.5,
    "image_seq_length": 256, "image_token_id": 151667, "projector_hidden_act": "gelu", "torch_dtype": "bfloat16",
    "vision_feature_layer": -1, "vision_feature_select_strategy": "default",
    "text_config": {
        "model_type": "qwen2", "hidden_act": "silu", "hidden_size": 1536, "intermediate_size": 8960,
        "max_position_embeddings": 32768, "max_window_layers": 70, "num_attention_heads": 12, "num_hidden_layers": 28,
        "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": None,
        "rope_scaling": {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"}, "use_sliding_window": False,
        "vocab_size": 151674,
    },
    "vision_config": {
        "model_type": "internvl_vision", "attention_bias": True, "hidden_act": "gelu", "hidden_size": 1024,
        "image_size": [448, 448], "intermediate_size": 4096, "layer_norm_eps": 1e-06, "layer_scale_init_value": 0.1,
        "norm_type": "layer_norm", "num_attention_heads": 16, "num_channels": 3, "num_hidden_layers": 24,
        "patch_size": [14, 14], "use_absolute_position_embeddings": True, "use_mask_token": False,
        "use_mean_pooling": True, "use_qk_norm": False,
    },
}  # fmt: skip


@pytest.mark.parametrize(
    "config",
    [
        HUB_INTERNVL_2B,
        change(HUB_INTERNVL_2B, vision_config={}, image_token_id=None, text_config__rope_scaling=None),
        change(HUB_INTERNVL_2B, text_config__rope_theta=None, vision_config__image_size=224, tie_word_embeddings=False,
               image_seq_length=64),
        change(HUB_INTERNVL_2B, vision_config__use_qk_norm=True, vision_config__norm_type="rms_norm"),
    ],
)  # fmt: skip
def test_every_field_of_internvl_is_what_transformers_reads(tmp_path, config):
    model, info = read_config(write(tmp_path, config))
    theirs = InternVLConfig.from_pretrained(tmp_path)
    text, vision, ours = theirs.text_config, theirs.vision_config, model.vision
    for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                 "num_key_value_heads", "rms_norm_eps"):  # fmt: skip
        assert getattr(model.text, name) == getattr(text, name), name
    assert model.text.rope_theta == text.rope_parameters["rope_theta"]
    assert model.text.mrope_section == (model.text.head_dim // 2, 0, 0)
    assert ours.kind == "internvl"
    for name, other in (("depth", "num_hidden_layers"), ("hidden_size", "hidden_size"), ("in_channels", "num_channels"),
                        ("intermediate_size", "intermediate_size"), ("num_heads", "num_attention_heads")):  # fmt: skip
        assert getattr(ours, name) == getattr(vision, other), name
    for name in ("attention_bias", "use_qk_norm", "norm_type", "layer_norm_eps"):
        assert getattr(ours.intern, name) == getattr(vision, name), name
    assert [ours.intern.image_size] * 2 == list(vision.image_size)
    assert [ours.patch_size] * 2 == list(vision.patch_size)
    assert ours.spatial_merge_size == 1 / theirs.downsample_ratio
    assert ours.tile_tokens**2 == theirs.image_seq_length
    assert (info.tied, info.image_token_id) == (theirs.tie_word_embeddings, theirs.image_token_id)
    again = write_config(model, MoEConfig(experts=0), info, info.dtype)
    assert read_config(write(tmp_path, again)) == (model, info)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (change(HUB_INTERNVL_2B, text_config__model_type="llama"), "text_config.model_type is 'llama'"),
        (change(HUB_INTERNVL_2B, text_config__rope_scaling={"rope_type": "yarn"}), "rope type 'yarn'"),
        (change(HUB_INTERNVL_2B, vision_feature_layer=-2), "vision_feature_layer is -2; only -1"),
        (change(HUB_INTERNVL_2B, downsample_ratio=0.25), "downsample_ratio is 0.25; only 0.5"),
        (change(HUB_INTERNVL_2B, image_seq_length=64), "image_seq_length is 64; only 256"),
        (change(HUB_INTERNVL_2B, vision_config__use_mean_pooling=False), "use_mean_pooling is False"),
        (change(HUB_INTERNVL_2B, vision_config__hidden_act="silu"), "hidden_act is 'silu'; what is computed is 'gelu'"),
        (change(HUB_INTERNVL_2B, vision_config__image_size=[448, 224]), "image_size must be a positive integer"),
        (change(HUB_INTERNVL_2B, vision_config__image_size=450, image_seq_length=256), "multiple of 2 \\* patch_size"),
        (change(HUB_INTERNVL_2B, vision_config__norm_type=1), "norm_type is 1"),
        (change(HUB_INTERNVL_2B, vision_config__layer_norm_eps=0), "layer_norm_eps must be a positive number"),
        (change(HUB_INTERNVL_2B, image_token_id="<img>"), "image_token_id must be an integer"),
    ],
)
def test_what_we_do_not_compute_of_internvl_is_refused_by_name(tmp_path, config, message):
    with pytest.raises(LoadError, match=message):
        read_config(write(tmp_path, config))
