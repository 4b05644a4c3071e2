"""The ablation as bars, a panel for each task (paper, Fig. 8)."""

import pathlib
from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from moon_jax.data import whole_file

_FULL, _OTHER, _DOT, _SEED = "#1f5673", "#a9c3d1", "#0b2430", "#ffffff"
_PAPER = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}  # so that the dashed line passes behind a number


def write(summary: Mapping[str, Any], path: pathlib.Path, title: str = "") -> None:
    """Writes the figure as PNG and SVG, the same bytes for the same summary.

    Args:
        summary: of `ablation.summarize`.
        path: of the PNG; the SVG stands beside it.
        title: stands above all.
    """
    with mpl.rc_context({"svg.hashsalt": "moon_jax", "svg.fonttype": "none"}):
        drawn = figure(summary, title)
        for kind, settings in (("png", {"dpi": 130}), ("svg", {"metadata": {"Date": None}})):
            with whole_file.writing(path.with_suffix(f".{kind}")) as file:
                drawn.savefig(file, format=kind, **settings)


def figure(summary: Mapping[str, Any], title: str = "") -> Figure:
    """Returns a row of panels for each set: a bar a variant with its mean, spread over seeds and every seed as a dot.

    The dashed line is the mean of the full variant. All panels of a row share the scale.

    Args:
        summary: of `ablation.summarize`, with at least one headline measure.
        title: stands above all.
    """
    sets = summary["headline"]
    columns, variants = max(map(len, sets.values())), summary["variants"]
    # no pyplot: a Figure of its own draws with Agg and leaves no global state
    out = Figure(figsize=(1.4 + 2.1 * columns, len(sets) * (0.8 + 0.36 * len(variants)) + 0.4), layout="constrained")
    panels = out.subplots(len(sets), columns, squeeze=False)
    for row, (name, tasks) in zip(panels, sets.items(), strict=True):
        measures = [summary["measures"][measure] for measure in tasks.values()]
        top = max(max(one["values"]) for by_variant in measures for one in by_variant.values())
        for number, panel in enumerate(row):
            if number >= len(tasks):
                panel.set_axis_off()
                continue
            _draw(panel, measures[number], variants, max(top, 1e-3))
            panel.set_title(list(tasks)[number], fontsize=9, loc="left")
            if number:
                panel.set_yticklabels([])
            else:
                panel.set_ylabel(f"{name} products", fontsize=9)
    if title:
        out.suptitle(title, fontsize=10, x=0.01, ha="left")
    return out


def _draw(panel: Axes, rows: Mapping[str, Any], variants: list[str], top: float) -> None:
    panel.axvline(rows[variants[0]]["mean"], color=_FULL, linewidth=0.8, linestyle=(0, (3, 3)), zorder=0)
    for place, name in enumerate(variants):
        mean, values = rows[name]["mean"], rows[name]["values"]
        panel.barh(place, mean, height=0.66, color=_OTHER if place else _FULL)
        if len(values) > 1:
            panel.errorbar(mean, place, xerr=rows[name]["spread"], color=_DOT, linewidth=1, capsize=3)
            panel.plot(values, [place] * len(values), "o", color=_SEED, markeredgecolor=_DOT, markersize=3.5, mew=0.7)
        end = max(*values, mean + rows[name]["spread"]) if len(values) > 1 else mean
        panel.text(end + 0.05 * top, place, f"{mean:.3f}", va="center", fontsize=8, color=_DOT, bbox=_PAPER)
    panel.set_xlim(0, 1.5 * top)
    panel.set_xticks([tick for tick in MaxNLocator(4).tick_values(0, top) if 0 <= tick <= top])
    panel.set_yticks(range(len(variants)), variants, fontsize=8)
    panel.invert_yaxis()
    panel.tick_params(axis="y", length=0)
    panel.tick_params(axis="x", labelsize=7)
    panel.spines["bottom"].set_bounds(0, top)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)
