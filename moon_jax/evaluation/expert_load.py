"""A picture of who visits which expert: a heat map of layers x experts for every role of token."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from moon_jax.data import whole_file
from moon_jax.moe.router_stats import ROLES
from moon_jax.moe.routing import CATEGORY_EXPERT, attribute_expert, general_experts

_GUIDED_COLOR = "#d62728"
_ABSENT_COLOR = "0.85"
_COLUMNS = 3  # of panels


NEEDS = frozenset(f"router/{name}" for name in ("load_by_role", "role_tokens", "imbalance", "general_imbalance"))


def write(metrics: Mapping[str, Any], path: str | os.PathLike[str], title: str = "") -> None:
    """Writes the picture as PNG, and its numbers beside it as JSON; a file is either whole or not there.

    Args:
        metrics: of a training step of a model with experts, see `figure`.
        path: of the file.
        title: stands above all.
    """
    path = pathlib.Path(path)
    with whole_file.writing(path) as file:
        figure(metrics, title).savefig(file, format="png", dpi=110)
    numbers = {name: np.asarray(metrics[name]).tolist() for name in sorted(NEEDS)}
    about = {"title": title, "roles": [role.name.lower() for role in ROLES]}
    whole_file.write_json(path.with_suffix(".json"), about | numbers)


def figure(metrics: Mapping[str, Any], title: str = "") -> Figure:
    """Returns one panel for each role, and at the side the largest load over the mean load by layer.

    Rows are layers, columns experts; the colour is the share of the role's tokens that visit the expert. The guided
    experts are framed. Colours end at the largest share at a general expert; a guided expert, to which all tokens of
    its role go, may lie above.

    Args:
        metrics: those named in `NEEDS`, as `moe.router_stats.router_losses` returns them.
        title: stands above all.
    """
    load, tokens = (np.asarray(metrics[f"router/{name}"]) for name in ("load_by_role", "role_tokens"))
    layers, _, n = load.shape
    wide, high = np.clip(0.22 * n, 2.4, 6.0), np.clip(0.2 * layers, 1.4, 7.0)
    rows = -(-len(ROLES) // _COLUMNS)
    # no pyplot: a Figure of its own draws with Agg and leaves no global state
    out = Figure(figsize=(_COLUMNS * wide + 3.6, rows * (high + 0.9) + 0.7), layout="constrained")
    grid = out.add_gridspec(rows, _COLUMNS + 1, width_ratios=[wide] * _COLUMNS + [2.2])
    top = max(float(load[:, :, general_experts(n)].max()), 1e-3)
    panels = []
    for number, role in enumerate(ROLES):
        panel = out.add_subplot(grid[divmod(number, _COLUMNS)])
        panel.set_title(f"{role.name.lower()}: {int(tokens[number]):,} tokens", fontsize=9)
        shown = np.ma.masked_array(load[:, number], mask=not tokens[number])
        image = panel.imshow(shown, cmap="viridis", vmin=0, vmax=top, aspect="auto", interpolation="nearest")
        panel.set_facecolor(_ABSENT_COLOR)
        _label(panel, layers, n)
        panels.append(panel)
    bar = out.colorbar(image, ax=panels, location="bottom", shrink=0.5, aspect=40, extend="max")
    bar.set_label("share of the role's tokens that visit the expert", fontsize=9)
    _draw_imbalance(out.add_subplot(grid[:, -1]), metrics)
    if title:
        out.suptitle(title, fontsize=10)
    return out


def _label(panel: Axes, layers: int, n: int) -> None:
    """Numbers the layers and experts; names and frames the guided experts."""
    guided = {CATEGORY_EXPERT: "cat", attribute_expert(n): "attr"}
    ticks = sorted({*range(0, n, max(1, n // 8)), *guided})
    panel.set_xticks(ticks, [guided.get(expert, str(expert)) for expert in ticks], fontsize=7)
    for label, expert in zip(panel.get_xticklabels(), ticks, strict=True):
        if expert in guided:
            label.set_color(_GUIDED_COLOR)
            frame = Rectangle((expert - 0.5, -0.5), 1, layers, fill=False, edgecolor=_GUIDED_COLOR, linewidth=1.5)
            frame.set_clip_on(False)
            panel.add_patch(frame)
    panel.set_yticks(range(0, layers, max(1, layers // 8)))
    panel.tick_params(axis="y", labelsize=7)
    panel.set_ylabel("layer", fontsize=8)


def _draw_imbalance(panel: Axes, metrics: Mapping[str, Any]) -> None:
    for name, label in (("router/imbalance", "all experts"), ("router/general_imbalance", "general experts")):
        values = np.asarray(metrics[name])
        panel.plot(values, np.arange(len(values)), marker="o", markersize=4, label=label)
    layers = len(values)
    panel.axvline(1, color="gray", linewidth=0.8)
    panel.set_ylim(layers - 0.5, -0.5)
    panel.set_yticks(range(0, layers, max(1, layers // 8)))
    panel.tick_params(labelsize=7)
    panel.set_title("max / mean load", fontsize=9)
    panel.legend(fontsize=7)
