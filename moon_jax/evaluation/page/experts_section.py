"""Who visits which expert: a heat map of layers x experts for every role of token, of expert_load.json."""

import json
import pathlib
from typing import Any

import numpy as np

from moon_jax.evaluation.page.html import Html, bdi, el, join
from moon_jax.moe.routing import CATEGORY_EXPERT, attribute_expert, general_experts

_NEEDS = ("roles", "router/load_by_role", "router/role_tokens")
_LAYER_PX, _MIN_PX = 7, 96


def experts(path: pathlib.Path) -> Html | None:
    """Returns the section's inside; None without the file.

    Raises:
        ValueError: the file is not what training writes.
    """
    if not path.exists():
        return None
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        missing = [name for name in _NEEDS if name not in said]
        load = np.asarray(said.get("router/load_by_role", []), np.float64)
        wrong = missing or load.ndim != 3 or not load.shape[1] == len(said["roles"]) == len(said["router/role_tokens"])
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read ({error})") from None
    if wrong:
        raise ValueError(f"{path} is not an expert_load.json of training: {missing or load.shape}")
    top = max(float(load[:, :, general_experts(load.shape[2])].max()), 1e-3)
    panels = [_panel(load[:, role], said, role, top) for role in range(load.shape[1])]
    note = (
        "Rows are layers, columns experts; the stronger the colour, the larger the share of the role's tokens "
        f"(full colour: {100 * top:.0f} % or more). Framed: the guided experts, which only category or attribute "
        "tokens may visit."
    )
    return join(el("p", note, class_="note"), el("div", *panels, class_="grid three"))


def _panel(load: np.ndarray, said: dict[str, Any], role: int, top: float) -> Html:
    layers, n = load.shape
    tokens, name = int(said["router/role_tokens"][role]), str(said["roles"][role])
    guided = {CATEGORY_EXPERT: "category", attribute_expert(n): "attribute"}
    columns = []
    for expert in range(n):
        cells = [_cell(load[layer, expert], layer, expert, guided, top) for layer in range(layers)] if tokens else []
        label = guided.get(expert, "")[:4] or str(expert)
        columns.append(
            el(
                "div",
                el("div", *cells, class_="cells"),
                el("small", label),
                class_="column guided" if expert in guided else "column",
            )
        )
    height = max(_MIN_PX, layers * _LAYER_PX)
    spoken = f"{name}: mean share by expert: " + ", ".join(
        f"{guided.get(e, e)} {100 * load[:, e].mean():.0f} %" for e in range(n)
    )
    heat = el(
        "div",
        *columns,
        class_="heat",
        style=f"--h:{height}px",
        role="img",
        aria_label=spoken if tokens else f"{name}: no tokens",
    )
    count = f"{tokens:,} tokens" if tokens else "no tokens"
    return el("figure", el("figcaption", bdi(name), el("small", count)), heat, class_="chart")


def _cell(share: float, layer: int, expert: int, guided: dict[int, str], top: float) -> Html:
    tip = (
        f"layer {layer}, {guided[expert] + ' expert' if expert in guided else f'expert {expert}'}\t{100 * share:.1f} %"
    )
    return el("i", style=f"--v:{min(float(share) / top, 1.0):.3f}", data_tip=tip)
