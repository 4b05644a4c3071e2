"""Variants with seeds: what is trained, in which folders, what is refused, and how a stopped comparison goes on."""

import json
import pathlib
import re
import shutil
import sys

import ml_collections
import pytest
from fake_batch import tiny_config

from moon_jax import ablate, train
from moon_jax import config as c
from moon_jax.config import ConfigError
from moon_jax.config_ablations import variants
from moon_jax.data import catalogue, sources


def base(**overrides) -> ml_collections.ConfigDict:
    small = {"data__format": "catalogue", "data__catalogue_products": 4}
    return ml_collections.ConfigDict(c.to_dict(tiny_config(**small | overrides)))


def flat(config):
    return train.flat(c.to_dict(config))


def changes(config, full):
    return {key: value for key, value in flat(config).items() if value != flat(full)[key] and key != "name"}


def test_variants_are_words_settings_or_both():
    found = variants(base(), "no_crop,cold:loss.temperature=0.02+no_moe+config.data.crop=false,t:eval.ks=(1, 7),full")
    full = found["full"]
    assert list(found) == ["full", "no_crop", "cold", "t"]
    assert {name: changes(config, full) for name, config in found.items()} == {
        "full": {},
        "no_crop": {"data.crop": False},
        "cold": {"loss.temperature": 0.02, "moe.experts": 0, "data.crop": False},
        "t": {"eval.ks": (1, 7)},
    }
    assert [config.name for config in found.values()] == ["moon_full", "moon_no_crop", "moon_cold", "moon_t"]
    assert changes(variants(base(), "no_neg+several_pictures")["no_neg+several_pictures"], full) == {
        "loss.ring_batches": 0, "loss.group_size": 8, "data.images_per_item": 8, "data.slot_share": 0.6,
    }  # fmt: skip
    big = variants(base(), "x:loss.temperature=1e+1+train.lr=1e-3")["x"]
    assert (big.loss.temperature, big.train.lr) == (10.0, 1e-3)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("no_corp", "'no_corp' is neither KEY=VALUE nor one of full, no_crop, no_moe, no_neg, several_pictures"),
        ("train.lr=1.0", "needs a name of its own"),
        ("no_crop,no_crop", "needs a name of its own"),
        ("../up:no_crop", "needs a name of its own"),
        ("full:no_crop", "needs a name of its own"),
        ("x:train.lrr=1.0", r"the variant 'x': .*\n.*train\.lrr does not exist; did you mean 'lr'"),
        ("x:trian.lr=1.0", "there is no group 'trian'"),
        ("x:train.lr=fast", "config.train.lr must be float, got 'fast'"),
        ("x:moe.top_k=7", r"the variant 'x': .*\n.*config\.moe\.top_k is 7"),
        ("short:train.steps=3", r"'short' changes config\.train\.steps: 20 in full, 3 in short"),
        ("small:train.batch_size=4", r"config\.train\.batch_size: 8 in full, 4 in small"),
        ("more:data.unseen_share=0.1", r"config\.data\.unseen_share"),
        ("lucky:train.seed=5+loss.temperature=0.1", r"'lucky' changes config\.train\.seed: 0 in full, 5 in lucky"),
        ("boxed:data.boxes=/b", r"config\.data\.boxes"),
        ("x:data.image_folder=/b", r"config\.data\.image_folder"),
        ("x:data.image_store=/b", r"config\.data\.image_store"),
        ("x:data.on_error=skip", r"config\.data\.on_error"),
        ("x:data.mbe_keys=(('id', 'no'),)", r"config\.data\.mbe_keys"),
        ("x:data.columns=(('id', 'no'),)", r"config\.data\.columns"),
        ("x:eval.expected_queries=7", r"config\.eval\.expected_queries"),
        ("catalogue:loss.temperature=0.1", "'catalogue' needs another name"),
        ("Ablation.json:loss.temperature=0.1", "'Ablation.json' needs another name"),
        ("easy:eval.gallery=test", r"config\.eval\.gallery: 'listings' in full, 'test' in easy"),
    ],
)
def test_variants_that_cannot_be_compared_are_refused(said, message):
    with pytest.raises(ConfigError, match=message):
        ablate.plan(base(), said)


def test_every_variant_answers_all_five_tasks():
    given = base(eval__tasks=("retrieval",))
    for config in ablate.plan(given, "no_crop").values():
        assert config.eval.tasks == ("retrieval", "classification", "attributes")
    assert given.eval.tasks == ("retrieval",)


def invented(config):
    """Results of a run that depend on its settings and data alone."""
    score = 0.5 + config.train.seed / 100 - 0.2 * (not config.data.crop)
    return {
        "about": {"step": config.train.steps},
        "config": c.to_dict(config),
        "data": {"fingerprint": sources.read(config.data).fingerprint},
        "counts": {"seen": 1, "unseen": 2, "listings": {"a": 3}},
        "metrics": {"unseen/image/R@1": score},
    }


@pytest.fixture
def trained(monkeypatch):
    """The runs that were trained, as (folder, config); training itself is left out."""
    done = []

    def run(config, folder):
        folder.mkdir(parents=True, exist_ok=True)
        done.append((folder, config))
        return invented(config)

    monkeypatch.setattr(train, "run", run)
    return done


def test_what_is_done_is_not_done_again_and_seeds_and_variants_can_be_added(trained, tmp_path, capsys):
    chosen = ablate.plan(base(train__seed=7), "full,no_crop")
    summary = ablate.run(chosen, 2, tmp_path)
    folders = [str(folder.relative_to(tmp_path)) for folder, _ in trained]
    assert folders == ["full/seed7", "no_crop/seed7", "full/seed8", "no_crop/seed8"]
    assert [config.train.seed for _, config in trained] == [7, 7, 8, 8]
    assert summary["measures"]["unseen/image/R@1"]["no_crop"]["difference"] == pytest.approx(-0.2)
    assert summary["settings"] == {"full": {}, "no_crop": {"data.crop": False}}
    assert summary["budget"]["train.steps"] == 20
    text = (tmp_path / "ablation.txt").read_text()
    assert text.strip() in capsys.readouterr().out
    assert "no_crop" in text
    assert json.loads((tmp_path / "ablation.json").read_text()) == json.loads(json.dumps(summary))
    assert {p.name for p in tmp_path.glob("ablation.*")} == {
        f"ablation.{e}" for e in ("csv", "json", "png", "svg", "txt")
    }
    trained.clear()
    assert json.dumps(ablate.run(chosen, 2, tmp_path)) == json.dumps(summary)
    assert trained == []
    ablate.run(ablate.plan(base(train__seed=7), "full,no_crop,no_moe"), 3, tmp_path)
    folders = [str(folder.relative_to(tmp_path)) for folder, _ in trained]
    assert folders == ["no_moe/seed7", "no_moe/seed8", "full/seed9", "no_crop/seed9", "no_moe/seed9"]


def test_a_run_of_an_older_version_had_the_defaults_of_newer_settings(trained, tmp_path):
    ablate.run(ablate.plan(base(), "full"), 1, tmp_path)
    path = tmp_path / "full" / "seed0" / "result.json"
    found = json.loads(path.read_text())
    assert found["config"]["data"].pop("own_box") == 1.0
    path.write_text(json.dumps(found))
    trained.clear()
    ablate.run(ablate.plan(base(), "full"), 1, tmp_path)
    assert trained == []
    other = base(data__own_box=0.5, data__own_picture=0.5, data__augment=True)
    with pytest.raises(ConfigError, match=r"data\.own_box was 1\.0, is 0\.5"):
        ablate.run(ablate.plan(other, "full"), 1, tmp_path)


def test_a_run_with_other_settings_is_refused_before_anything_is_trained(trained, tmp_path):
    ablate.run(ablate.plan(base(), "full,no_crop"), 1, tmp_path)
    trained.clear()
    with pytest.raises(
        ConfigError, match=r"full/seed0 was trained with other settings.*\n.*train\.lr was 0\.001, is 0\.1"
    ):
        ablate.run(ablate.plan(base(train__lr=0.1), "full,no_crop,no_moe"), 2, tmp_path)
    assert trained == []
    moved = base(mesh__data=4, mesh__fsdp=2, data__workers=3)  # none of which changes what is learned
    ablate.run(ablate.plan(moved, "full,no_crop"), 1, tmp_path)


def test_other_data_are_refused_before_anything_is_trained(trained, tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        catalogue.write(tmp_path / name, 4, seed=seed, size_px=32)
    work = tmp_path / "work"
    at = lambda name, said="full,no_crop": ablate.plan(base(data__path=str(tmp_path / name)), said)  # noqa: E731
    ablate.run(at("a"), 1, work)
    trained.clear()
    for said, seeds in (("full,no_crop", 1), ("full,no_crop", 2), ("full,no_moe", 1)):
        with pytest.raises(ConfigError, match=r"full/seed0 was trained on other data.*\n.*was '.*/a', is '.*/b'"):
            ablate.run(at("b", said), seeds, work)
    assert trained == []
    (tmp_path / "a").rename(tmp_path / "moved")  # the same data elsewhere
    ablate.run(at("moved"), 2, work)
    assert [config.train.seed for _, config in trained] == [1, 1]
    (tmp_path / "b").rename(tmp_path / "a")  # others at the old place
    with pytest.raises(ConfigError, match="what lies there has changed"):
        ablate.run(at("a"), 2, work)
    assert len(trained) == 2


def test_a_work_folder_that_is_a_file(trained, tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "inside"):
        with pytest.raises(ConfigError, match=r"cannot be made: .*/file is a file"):
            ablate.run(ablate.plan(base(), "full"), 1, path)
    assert trained == []


def test_a_signal_ends_the_comparison_where_it_can_go_on(trained, tmp_path, monkeypatch, capsys):
    chosen, whole = ablate.plan(base(), "full,no_crop,no_moe"), train.run

    def stopped(config, folder):
        return {} if folder.parent.name == "no_crop" else whole(config, folder)

    with monkeypatch.context() as patch:
        patch.setattr(train, "run", stopped)
        assert ablate.run(chosen, 1, tmp_path) is None
    assert not (tmp_path / "ablation.json").exists()
    assert "no_crop, seed 0: run 2 of 3" in capsys.readouterr().err
    trained.clear()
    assert ablate.run(chosen, 1, tmp_path)["variants"] == ["full", "no_crop", "no_moe"]
    assert [folder.parent.name for folder, _ in trained] == ["no_crop", "no_moe"]


def test_a_run_that_fails_is_named(tmp_path, monkeypatch):
    def diverges(config, folder):
        raise train.TrainingError("the loss is nan at step 3")

    monkeypatch.setattr(train, "run", diverges)
    with pytest.raises(train.TrainingError, match="full, seed 0: the loss is nan at step 3"):
        ablate.run(ablate.plan(base(), "no_crop"), 1, tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compilation")
def test_real_runs_share_one_catalogue_and_their_numbers_are_the_evaluations(tmp_path):
    tiny = base(
        data__format="catalogue", data__catalogue_products=16, data__min_pixels=256, data__max_pixels=256,
        data__title_tokens=8, data__category_tokens=6, data__attribute_tokens=6, model__text__vocab_size=320,
        model__text__num_hidden_layers=1, model__vision__depth=1, model__vision__fullatt_block_indexes=(0,),
        moe__experts=4, moe__top_k=1, moe__gate="softmax_all", mesh__data=8, train__steps=2, train__checkpoint_every=9,
        eval__every=0, eval__ks=(1, 5), eval__bootstrap_samples=0, eval__batch_documents=8,
    )  # fmt: skip
    summary = ablate.run(ablate.plan(tiny, "no_moe"), 1, tmp_path)
    assert catalogue.stamp(tmp_path / "catalogue") == summary["about"]["catalogue"]
    assert list(summary["headline"]["unseen"]) == ["image R@1", "text R@1", "item R@1", "classification", "attributes"]
    for name in ("full", "no_moe"):
        written = json.loads((tmp_path / name / "seed0" / "eval" / "2.json").read_text())
        assert written["config"]["data"]["path"] == str(tmp_path / "catalogue")
        assert not (tmp_path / name / "seed0" / "catalogue").exists()
        for measure, rows in summary["measures"].items():
            assert rows[name]["values"] == [written["metrics"][measure]]
    elsewhere = shutil.copytree(tmp_path / "catalogue", tmp_path / "copy")  # the same data: nothing is trained again
    tiny.data.path = str(elsewhere)
    assert ablate.run(ablate.plan(tiny, "no_moe"), 1, tmp_path)["measures"] == summary["measures"]
    assert re.search(r"^no_moe +[+-]0\.\d{3} \(\d\)", (tmp_path / "ablation.txt").read_text(), re.M)


def test_the_config_file_and_its_flags(tmp_path, trained, monkeypatch):
    root = pathlib.Path(__file__).parents[1]
    catalogue.write(tmp_path / "drawn", 4, size_px=32)
    given = {"config.train.steps": 5, "config.data.path": tmp_path / "drawn"}
    monkeypatch.setattr(sys, "argv", ["ablate", *(f"--{name}={value}" for name, value in given.items())])
    flags = {"config": root / "configs/demo.py", "workdir": tmp_path / "w", "seeds": 1, **given}
    ablate.FLAGS.parse(**flags, variants="no_crop")
    ablate.main([])
    assert [config.train.steps for _, config in trained] == [5, 5]
    assert json.loads((tmp_path / "w/ablation.json").read_text())["name"] == "demo"
    ablate.FLAGS.values["variants"].value = "no_corp"
    with pytest.raises(SystemExit, match=r"ConfigError: the variant 'no_corp'"):
        ablate.main([])
