"""The model card: README.md of every folder that holds a model."""

import json
from collections.abc import Mapping
from typing import Any

from moon_jax.config import PromptConfig
from moon_jax.config_backbone import BACKBONES
from moon_jax.weights.spec import ModelSpec

_ROOTS = {"hf": "a Hugging Face folder", "model": "a model folder", "training": "a training run"}


def markdown(
    spec: ModelSpec, weights: Mapping[str, Any] | None, origin: Mapping[str, Any], layout: str = "moon_jax"
) -> str:
    """Returns the card of a model.

    Args:
        spec: of the model.
        weights: {"dtype": ..., "parameters": ...}; None where the weights are those of a training checkpoint beside it.
        origin: {"kind": "hf" | "model" | "training" | "random", "name": ..., "files": {name: sha256}, "changes": [...],
            "step": ..., "origin": the one before}; all but the kind may be missing.
        layout: "moon_jax", or "hf" for a folder that transformers reads.
    """
    title = BACKBONES[spec.model.vision.kind].title
    sections = [
        _front_matter(spec),
        "# " + (f"MOON: a guided mixture of experts on {title}" if spec.moe.experts else f"{title} as an encoder"),
        "Turns a product (pictures, title, category, attributes) or a query into one unit vector; vectors of things "
        "that belong together have a large dot product. Written by moon_jax; `moon.json` says the same to programs.",
        "## Load it",
        _loading(spec, layout),
        "## How an embedding is made",
        _embedding(spec),
        "## Prompts",
        _prompts(spec),
        "## Sizes",
        _sizes(spec, weights),
        "## Origin",
        _origin(origin),
        "## Licence",
        _licence(origin),
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(spec: ModelSpec) -> str:
    tags = ["embeddings", "multimodal", "e-commerce", *(["mixture-of-experts"] if spec.moe.experts else [])]
    return "\n".join(
        ["---", "library_name: moon_jax", "pipeline_tag: feature-extraction", "tags:", *[f"- {t}" for t in tags], "---"]
    )


def _loading(spec: ModelSpec, layout: str) -> str:
    text = """```python
import moon_jax

encoder = moon_jax.load("PATH_OF_THIS_FOLDER")
queries = encoder.encode_query([{"text": "warm winter coat"}])
items = encoder.encode_item([{"title": "Down coat, navy", "images": ["front.jpg"]}])
scores = encoder.similarity(queries, items)  # cosines, one row a query
```

For many records: `python -m moon_jax.embed --model=PATH_OF_THIS_FOLDER --input=records.jsonl --output=FOLDER`."""
    if layout == "hf":
        architecture = BACKBONES[spec.model.vision.kind].architecture
        text += f"\n\n`{architecture}.from_pretrained` of transformers reads this folder"
        if spec.moe.experts:
            text += " but not its experts, which only moon_jax knows."
        elif spec.model.attention != "causal":
            text += ", but attends causally, which this model was not trained for."
        else:
            text += ". Prompts, pooling and norm are then yours to do: they are below."
    return text


def _embedding(spec: ModelSpec) -> str:
    data, attention = spec.data, spec.model.attention
    rows = [
        ("pooling", "mean of the last hidden states (after the final norm) of all tokens of a document"),
        ("norm", "divided by its length (L2)"),
        ("dimensions", spec.model.text.hidden_size),
        ("attention", attention),
        ("pictures of an item", f"the first {data.images_per_item}"),
        (
            "pixels of a picture",
            f"{data.min_pixels} to {data.max_pixels}, after smart_resize; see preprocessor_config.json",
        ),
        ("longest strip", f"{data.max_aspect:g} : 1; a longer one is padded with white"),
        (
            "product box",
            f"cut out with a margin of {data.crop_margin:g} and fed beside the whole picture"
            if data.crop
            else "not used",
        ),
        ("tokens", f"title {data.title_tokens}, category {data.category_tokens}, attributes {data.attribute_tokens}"),
        ("description of an item", "appended to the title" if data.description else "not used"),
    ]
    if spec.moe.experts:
        moe = spec.moe
        rows.append(
            (
                "experts",
                f"{moe.experts}: {moe.experts - 2} general ones of which a token visits {moe.top_k}, one for category "
                f"and one for attribute tokens ({moe.guided}); gate {moe.gate}; dropless",
            )
        )
    return _table(("", ""), rows)


def _prompts(spec: ModelSpec) -> str:
    def row(name: str, prompt: PromptConfig) -> tuple[str, ...]:
        return (
            name,
            *(f"`{json.dumps(part, ensure_ascii=False)}`" for part in (prompt.prefix, prompt.separator, prompt.suffix)),
        )

    return (
        "Before and after every document, and between its title, category and attributes; as JSON strings:\n\n"
        + _table(
            ("", "before", "between", "after"), [row("query", spec.data.query_prompt), row("item", spec.data.prompt)]
        )
    )


def _sizes(spec: ModelSpec, weights: Mapping[str, Any] | None) -> str:
    text, vision = spec.model.text, spec.model.vision
    rows: list[tuple[Any, ...]] = []
    if weights is not None:
        rows.append(("parameters", f"{weights['parameters']:,} in {weights['dtype']}"))
    rows += [
        ("language model", f"{text.num_hidden_layers} layers, width {text.hidden_size}, FFN {text.intermediate_size}, "
         f"{text.num_attention_heads} heads, {text.num_key_value_heads} of keys and values, {text.vocab_size} tokens"),
        ("vision tower", f"{vision.depth} blocks, width {vision.hidden_size}, MLP {vision.intermediate_size}, "
         f"{vision.num_heads} heads, patches of {vision.patch_size} px, {vision.merge_unit} a visual token"),
        ("output head", "the token embedding" if spec.tied else "its own"),
    ]  # fmt: skip
    return _table(("", ""), rows)


def _origin(origin: Mapping[str, Any] | None) -> str:
    lines: list[str] = []
    depth = 0
    while origin:
        kind = origin.get("kind", "")
        name = f" `{origin['name']}`" if origin.get("name") else ""
        step = f", step {origin['step']}" if origin.get("step") is not None else ""
        what = "random weights" if kind == "random" else f"{_ROOTS.get(kind, kind)}{name}{step}"
        lines.append(f"{'Made' if not depth else 'Which was made'} from {what}.")
        lines += [f"- {change}" for change in origin.get("changes", [])]
        if files := origin.get("files"):
            lines += ["", _table(("file", "sha256"), [(f"`{n}`", f"`{d}`") for n, d in files.items()])]
        lines.append("")
        origin, depth = origin.get("origin"), depth + 1
    return "\n".join(lines).strip() or "Not recorded."


def _licence(origin: Mapping[str, Any] | None) -> str:
    while origin and origin.get("kind") != "random" and origin.get("origin"):
        origin = origin["origin"]
    if origin and origin.get("kind") == "random":
        return "Trained from random weights: no other model's licence applies. That of the training data may."
    return (
        "These weights derive from the weights above, and the licence of those governs them; moon_jax's own "
        "(Apache-2.0) is for the program only. As published, Qwen2.5-VL-3B is under the Qwen Research License (no "
        "commercial use), 7B and 32B are under Apache-2.0, 72B is under the Qwen License: read the one that came with "
        "the model before use, and keep it beside this folder when you pass it on."
    )


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join(["---"] * len(head)) + " |"]
    return "\n".join(lines + ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows])
