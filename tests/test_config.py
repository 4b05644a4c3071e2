"""The one door of the settings: every mistake is named, all of them at once."""

import pytest

from moon_jax import config as c
from moon_jax import config_rules
from moon_jax.config_ablations import apply


def test_defaults_resolve_to_the_dataclasses_and_back():
    assert c.resolve(c.defaults()) == c.Config()
    assert c.resolve(c.to_dict(c.Config())) == c.Config()
    with pytest.raises(AttributeError, match=r"[Dd]id you mean"):
        c.defaults().train.stepz = 1


def test_unknown_names_and_wrong_types_are_all_named():
    with pytest.raises(c.ConfigError) as error:
        c.resolve({"train": {"lrr": 1.0, "steps": "many"}, "data": 3, "loss": {"temperature": 1}})
    for part in (
        "config.train.lrr does not exist; did you mean 'lr'?",
        "config.train.steps must be int",
        "config.data ",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("group", "values", "message"),
    [
        ("moe", {"top_k": 7}, r"config\.moe\.top_k is 7; it must lie in 1\.\.experts - 2 = 6"),
        ("moe", {"top_k": 1}, "learns nothing"),
        ("moe", {"experts": 2, "top_k": 1, "gate": "softmax_all"}, "one is for category"),
        ("moe", {"gate": "max"}, "softmax_active, softmax_all"),
        ("loss", {"group_size": 4}, "ring_batches = 0"),
        ("loss", {"temperature": 0.0}, "must be positive"),
        ("train", {"lr": float("nan")}, r"config\.train\.lr must be positive"),
        ("train", {"weight_decay": float("inf")}, r"config\.train\.weight_decay must not be negative"),
        ("train", {"b1": 7.0}, r"config\.train\.b1 is a share"),
        ("data", {"category_tokens": -3}, "must not be negative"),
        ("data", {"max_pixels": 10}, "at least min_pixels"),
        ("data", {"min_pixels": 4, "max_pixels": 27 * 28}, r"one merged token \(28x28\)"),
        ("data", {"row_share": 0.0}, "row_share"),
        ("data", {"slot_share": 1.5}, r"config\.data\.slot_share is 1\.5; it must lie in 0\.\.1"),
        ("data", {"own_picture": -0.1, "augment": True}, r"config\.data\.own_picture is a share"),
        ("data", {"own_picture": 1.1, "augment": True}, r"config\.data\.own_picture is a share"),
        ("data", {"own_picture": 0.2}, r"config\.data\.own_picture needs config\.data\.augment"),
        ("data", {"title_dropout": 1.5}, r"config\.data\.title_dropout is a share"),
        ("data", {"title_dropout": -1.0}, r"config\.data\.title_dropout is a share"),
        ("data", {"own_box": 1.01}, r"config\.data\.own_box is a share"),
        ("data", {"own_box": 0.3}, r"config\.data\.own_box .* needs config\.data\.own_picture"),
        ("data", {"augment_area": 0.0}, r"config\.data\.augment_area is 0"),
        ("data", {"augment_area": 1.2}, r"config\.data\.augment_area is 1\.2; it must lie in 0\.\.1"),
        ("moe", {"upcycle_noise": -0.1}, r"config\.moe\.upcycle_noise must not be negative"),
        ("moe", {"upcycle_noise": 0.1}, r"upcycle_noise .* needs config\.model\.path and experts"),
        ("train", {"freeze": "vision,lm,heads"}, r"'vision,lm,heads': lm, heads is not known.* vision, llm, backbone"),
        ("train", {"freeze": "vision"}, r"without config\.model\.path they are drawn at random"),
        ("eval", {"metric": "unseen/imgae/R@1"}, "must be"),
        ("eval", {"metric": "unseen/image/R@7"}, r"k in config\.eval\.ks"),
        ("eval", {"ks": ()}, "positive ranks"),
        ("loss", {"kind": "next"}, "contrastive, next_token"),
        ("loss", {"kind": "next_token"}, "ring_batches and group_size to 0"),
        ("loss", {"kind": "next_token", "ring_batches": 0}, r"seen\|unseen/query\|listing/IoU"),
        ("eval", {"metric": "unseen/query/IoU"}, "must be"),
    ],
)
def test_values_that_cannot_work_are_refused(group, values, message):
    settings = c.to_dict(c.Config())
    settings[group] |= values
    with pytest.raises(c.ConfigError, match=message):
        c.resolve(settings)


@pytest.mark.parametrize(
    ("group", "values"),
    [
        ("data", {"own_picture": 1.0, "augment": True, "own_box": 0.0}),
        ("data", {"title_dropout": 1.0, "augment_area": 1.0}),
        ("moe", {"upcycle_noise": 0.01}),
        ("train", {"freeze": "vision, llm"}),
    ],
)
def test_the_edges_of_the_ranges_are_accepted(group, values):
    settings = c.to_dict(c.Config(model=c.ModelConfig(path="checkpoint")))
    settings[group] |= values
    resolved = getattr(c.resolve(settings), group)
    assert all(getattr(resolved, name) == value for name, value in values.items())


def test_grounding_is_asked_and_answered_in_words_that_hold_title_and_box():
    settings = c.to_dict(c.Config())
    settings["loss"] |= {"kind": "next_token", "ring_batches": 0}
    settings["eval"]["metric"] = "grocery/unseen/listing/IoU@0.5"
    assert c.resolve(settings).loss.kind == "next_token"
    settings["model"]["attention"] = "bidirectional"
    settings["data"]["grounding"] |= {"prompt": "Where is it?", "answer": "{box} {box}"}
    with pytest.raises(c.ConfigError) as error:
        c.resolve(settings)
    for part in ("prompt 'Where is it?' must hold {title} once", "must hold {box} once", "attention = 'causal'"):
        assert part in str(error.value)


def test_sizes_are_judged_unless_a_checkpoint_has_them():
    settings = c.to_dict(c.Config())
    settings["model"]["text"] |= {"mrope_section": (1, 2, 3)}
    settings["model"]["vision"] |= {"depth": 2, "hidden_size": 66}
    settings["data"] |= {"min_pixels": 1, "max_pixels": 100}
    with pytest.raises(c.ConfigError) as error:
        c.resolve(settings)
    for part in ("mrope_section", "4 * num_heads", "fullatt_block_indexes", "one merged token"):
        assert part in str(error.value)
    settings["model"]["path"] = "checkpoint"
    assert len(config_rules.size_problems(c.resolve(settings))) == 4
    for part, name in (("text", "num_key_value_heads"), ("vision", "num_heads"), ("vision", "patch_size")):
        settings = c.to_dict(c.Config())
        settings["model"][part][name] = 0
        with pytest.raises(c.ConfigError, match=f"{name} must be positive"):
            c.resolve(settings)


def test_ablation_words():
    config = c.defaults()
    assert apply(config, ["luma", "no_moe"], ("luma", "both")) == "luma"
    assert config.moe.experts == 0
    assert config.name == "moon_luma_no_moe"
    for words in (["no_mo"], ["luma", "both"]):
        with pytest.raises(ValueError, match="no_crop, no_moe, no_neg"):
            apply(c.defaults(), words, ("luma", "both"))
