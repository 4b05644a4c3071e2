"""The picture of expert load, drawn from the numbers of a real training step."""

import functools
import json
import sys

import numpy as np
from fake_batch import fake_batch, tiny_config
from matplotlib.patches import Rectangle
from meshes import ONE, step_on
from PIL import Image

from moon_jax.config import Role
from moon_jax.evaluation.expert_load import NEEDS, figure, write

ROLES = ("other", "image", "core", "title", "category", "attribute")


@functools.cache
def batch():
    return fake_batch(8, 1, rows=2, row_tokens=32, patch_dim=48, vocab=96)


@functools.cache
def metrics():
    """Of one step of a tiny model with 2 layers and 8 experts."""
    settings = {"moe__balance_loss": 0.1, "moe__z_loss": 0.01}
    config = tiny_config(train__clip_norm=1e9, train__warmup_ratio=0.0, **settings)
    return step_on(config, ONE).run(batch())[0].metrics


def parts(drawn):
    """Returns ({role: its panel}, the panel at the side)."""
    panels = {axes.get_title().split(":")[0]: axes for axes in drawn.axes if axes.images}
    (side,) = (axes for axes in drawn.axes if axes.get_title() == "max / mean load")
    return panels, side


def test_every_role_has_a_panel_with_the_share_of_its_tokens():
    panels, _ = parts(figure(metrics()))
    assert tuple(panels) == ROLES
    for number, (name, panel) in enumerate(panels.items()):
        tokens = int((batch()["roles"] == Role[name.upper()]).sum())
        assert panel.get_title() == f"{name}: {tokens:,} tokens"
        shown = panel.images[0].get_array()
        assert shown.shape == (2, 8)
        assert np.ma.getmaskarray(shown).all() == (tokens == 0), "nothing is shown where there is nothing"
        if tokens:
            np.testing.assert_array_equal(shown, metrics()["router/load_by_role"][:, number])
    for name, expert in (("category", 0), ("attribute", 4)):  # every one of its tokens goes there
        assert panels[name].images[0].get_array()[:, expert].tolist() == [1, 1]
    assert len({panel.images[0].get_clim() for panel in panels.values()}) == 1, "one scale for all"


def test_guided_experts_are_named_and_framed():
    for panel in parts(figure(metrics()))[0].values():
        frames = sorted(p.get_x() + 0.5 for p in panel.patches if isinstance(p, Rectangle))
        assert frames == [0, 4]
        labels = dict(zip(panel.get_xticks(), (t.get_text() for t in panel.get_xticklabels()), strict=True))
        assert labels == {0: "cat", 1: "1", 2: "2", 3: "3", 4: "attr", 5: "5", 6: "6", 7: "7"}


def test_the_imbalance_of_every_layer_stands_at_the_side():
    """Counted again from the batch: the loads by role add up to the loads."""
    roles = np.array([(batch()["roles"] == Role[name.upper()]).sum() for name in ROLES])
    load = (metrics()["router/load_by_role"] * roles[:, None]).sum(1)
    np.testing.assert_allclose(metrics()["router/load"], load / roles.sum(), rtol=1e-5)
    general = load[:, [1, 2, 3, 5, 6, 7]]
    all_experts, only_general = parts(figure(metrics()))[1].lines[:2]
    np.testing.assert_allclose(all_experts.get_xdata(), load.max(1) / load.mean(1), rtol=1e-5)
    np.testing.assert_allclose(only_general.get_xdata(), general.max(1) / general.mean(1), rtol=1e-5)
    assert all_experts.get_ydata().tolist() == only_general.get_ydata().tolist() == [0, 1]


def test_the_file_is_a_picture_with_its_numbers_beside_it(tmp_path):
    write(metrics(), tmp_path / "expert_load.png", "expert load in step 1")
    with Image.open(tmp_path / "expert_load.png") as picture:
        assert picture.format == "PNG"
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert len(pixels) > 300_000
    assert len(np.unique(pixels, axis=0)) > 20
    assert (pixels == (0xD6, 0x27, 0x28)).all(1).sum() > 500, "the frames of the guided experts"
    numbers = json.loads((tmp_path / "expert_load.json").read_text())
    assert numbers["roles"] == list(ROLES)
    for name in NEEDS:
        np.testing.assert_array_equal(np.float32(numbers[name]), metrics()[name])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["expert_load.json", "expert_load.png"]
    assert "matplotlib.pyplot" not in sys.modules, "it would hold every figure of a long run"
