"""Our parameters as a Hugging Face folder, under the published names, one layer's tensor at a time."""

import concurrent.futures
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Shaped

from moon_jax.config import ModelConfig, MoEConfig
from moon_jax.config_backbone import BACKBONES
from moon_jax.data.strict_json import unique_json
from moon_jax.data.tokenizer import INTERN_PAD
from moon_jax.hf.config import CheckpointInfo, write_config
from moon_jax.hf.names import Row, head_name, layouts, table
from moon_jax.moe.routing import CATEGORY_EXPERT, attribute_expert, general_experts
from moon_jax.weights.folder import tokenizer_files
from moon_jax.weights.source import LM_HEAD, Source, WeightsError, check
from moon_jax.weights.spec import ModelSpec, preprocessor_config
from moon_jax.weights.tensor_writer import TensorWriter
from moon_jax.weights.transpose import copy

_LAYOUT = "hub"
_PIECE_BYTES = 4 << 20  # brought into the checkpoint's order and written at a time
_READ_BYTES = 64 << 20  # read at a time of a tensor that has no layers
_IDS = {
    "image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>", "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}  # fmt: skip

_TURN_END, _END = "<|im_end|>", "<|endoftext|>"


def save_hf(
    folder: str | os.PathLike[str],
    source: Source,
    spec: ModelSpec,
    tokenizer_folder: str | os.PathLike[str],
    *,
    max_shard_bytes: int = 2 << 30,
    progress: Callable[[int], Any] = lambda nbytes: None,
) -> dict[str, str]:
    """Writes everything that transformers needs; returns {file name: sha256}.

    Weights keep their dtype and every bit. A guided mixture is written with its experts under names that transformers
    does not know (`names.py`; the README.md of the folder explains them): its dense part loads there.

    Args:
        folder: exists, is empty.
        source: read by one thread, a layer (and expert) of a parameter at a time.
        spec: sizes, experts, pixels. A head of its own is written where `source` has one, whatever `spec.tied` says.
        tokenizer_folder: the tokenizer; its files are copied.
        max_shard_bytes: of the weights in a file.
        progress: called with a number of bytes after each piece that was written; they add up to those of `source`.

    Raises:
        LoadError: sizes that no published model has.
        WeightsError: parameters that do not fit the sizes, a full disk, no tokenizer, or one without vision tokens.
    """
    folder = pathlib.Path(folder)
    rows = table(spec.model, spec.moe)
    check(source, {row.leaf: row.shape for row in rows})
    files = tokenizer_files(pathlib.Path(tokenizer_folder))
    special = _special_tokens(files["tokenizer.json"], tokenizer_folder)
    tied = spec.tied and LM_HEAD not in source.leaves
    ids = {name: special[token] for name, token in _IDS.items()}
    if spec.model.vision.kind == "internvl":
        ids = dict.fromkeys(_IDS) | {"image_token_id": special.get(INTERN_PAD, ids["image_token_id"])}
    info = CheckpointInfo(**ids, tied=tied, dtype=_dtype(source))
    ends = {"bos_token_id": special[_END], "eos_token_id": special[_TURN_END]}
    files["config.json"] = _json(write_config(spec.model, spec.moe, info, info.dtype, ends))
    greedy = ends | {"eos_token_id": [special[_TURN_END], special[_END]], "pad_token_id": special[_END]}
    files.setdefault("generation_config.json", _json(greedy | {"do_sample": False}))
    files["preprocessor_config.json"] = _json(preprocessor_config(spec))
    if notes := _notes(spec.model, spec.moe):
        files["README.md"] = notes.encode()

    tensors = {name: (row.hf_shape, source.leaves[row.leaf].dtype) for row in rows for name in row.hf_names(_LAYOUT)}
    head = head_name(spec.model.vision.kind, _LAYOUT)
    if LM_HEAD in source.leaves:
        tensors[head] = (source.leaves[LM_HEAD].shape, source.leaves[LM_HEAD].dtype)
    writer = TensorWriter(folder, tensors, max_shard_bytes, {"format": "pt"})
    with writer, concurrent.futures.ThreadPoolExecutor(1, "write") as pool:
        last = None
        for name, start, weight in _pieces(source, rows, head):  # one piece is read while the one before is written
            if last:
                last.result()
            last = pool.submit(_write, writer, name, start, weight, progress)
        last.result()
    for name, content in files.items():
        with open(folder / name, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    return writer.digests() | {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def _pieces(source: Source, rows: tuple[Row, ...], head: str) -> Iterator[tuple[str, int, np.ndarray]]:
    """Gives (tensor name, first row, these rows in the checkpoint's axes, perhaps a view), in the order of the file."""
    for row in rows:
        for place in np.ndindex(row.stack):
            if row.stack or row.theirs != row.ours:
                weight = source.read(row.leaf, tuple(slice(i, i + 1) for i in place))
                yield row.hf_name(_LAYOUT, place), 0, row.to_hf(weight.reshape(weight.shape[len(place) :]))
            else:
                yield from _rows(source, row.leaf, row.hf_name(_LAYOUT))
    if LM_HEAD in source.leaves:
        yield from _rows(source, LM_HEAD, head)


def _rows(source: Source, leaf: str, name: str) -> Iterator[tuple[str, int, np.ndarray]]:
    """Gives a parameter that lies in the checkpoint as it does here, some rows at a time."""
    shape, size = source.leaves[leaf].shape, source.leaves[leaf].nbytes
    step = max(1, _READ_BYTES * shape[0] // size)
    for start in range(0, shape[0], step):
        yield name, start, source.read(leaf, (slice(start, min(start + step, shape[0])),))


def _write(
    writer: TensorWriter,
    name: str,
    first: int,
    weight: Shaped[np.ndarray, "..."],
    progress: Callable[[int], Any],
) -> None:
    step = max(1, _PIECE_BYTES // max(1, weight.nbytes // len(weight)))
    for start in range(0, len(weight), step):
        part = weight[start : start + step]
        if not part.flags.c_contiguous:
            part = np.empty(part.shape, part.dtype)
            copy(part, weight[start : start + step])
        writer.write(name, first + start, part)
        progress(part.nbytes)


def _dtype(source: Source) -> str:
    """Returns the type that holds the weights that transformers reads."""
    dtypes = {leaf.dtype.name for name, leaf in source.leaves.items() if "/moe/" not in name}
    return dtypes.pop() if len(dtypes) == 1 else "float32"


def _special_tokens(tokenizer: bytes, folder: str | os.PathLike[str]) -> dict[str, int]:
    """Returns {special token: id} of a tokenizer.json."""
    try:
        special = {token["content"]: token["id"] for token in unique_json(tokenizer)["added_tokens"]}
    except (ValueError, TypeError, KeyError) as error:
        raise WeightsError(f"tokenizer.json in {folder} is none: {error!r}") from None
    if missing := [token for token in (*_IDS.values(), _TURN_END, _END) if type(special.get(token)) is not int]:
        raise WeightsError(f"tokenizer.json in {folder} has no special token {', '.join(missing)}")
    return special


def _json(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()


def _notes(model: ModelConfig, moe: MoEConfig) -> str:
    """Returns the README.md of what transformers cannot compute; empty for a model that it can."""
    parts, backbone = [], BACKBONES[model.vision.kind]
    if model.attention != "causal":
        logging.warning("the model attends %s; transformers computes it causal, with other results", model.attention)
        parts.append(_BIDIRECTIONAL)
    if moe.experts:
        n, text = moe.experts, model.text
        width, ffn, layers = text.hidden_size, text.intermediate_size, text.num_hidden_layers
        general = ", ".join(map(str, general_experts(n)))
        count, numbers = layers * (1 + 3 * n), layers * n * width * (1 + 3 * ffn)
        parts.append(
            _EXPERTS.format(
                n=n,
                width=width,
                ffn=ffn,
                layers=layers,
                top_k=moe.top_k,
                gate=moe.gate,
                guided=moe.guided,
                category=CATEGORY_EXPERT,
                attribute=attribute_expert(n),
                general=general,
                tensors=count,
                numbers=f"{numbers:,}",
                architecture=backbone.architecture,
                prefix=layouts(model.vision.kind)[_LAYOUT]["text"],
            )
        )
    return "\n".join([f"## How this checkpoint differs from {backbone.title}\n", *parts]) if parts else ""


_BIDIRECTIONAL = """\
**Attention.** The language model was trained with attention in both directions (`"attention": "bidirectional"` under
the key `moon` of config.json). transformers loads all weights, but attends causally, so its hidden states are others.
"""

_EXPERTS = """\
**Experts.** The feed-forward network of every language layer is a guided mixture of {n} experts. All other tensors have
the published names and load in `{architecture}`, which reports exactly `mlp.gate_proj`,
`mlp.up_proj` and `mlp.down_proj` of every layer as missing (it draws them at random: its outputs mean nothing) and the
{tensors} tensors of the table ({numbers} numbers) as unexpected.

| tensor, for layer i = 0 .. {layers} - 1 | shape | what it is |
| --- | --- | --- |
| `{prefix}layers.{{i}}.mlp.gate.weight` | [{n}, {width}] | the router, a row of logits per expert; applied in float32 |
| `{prefix}layers.{{i}}.mlp.experts.{{e}}.gate_proj.weight` | [{ffn}, {width}] | expert e = 0 .. {n} - 1 |
| `{prefix}layers.{{i}}.mlp.experts.{{e}}.up_proj.weight` | [{ffn}, {width}] | |
| `{prefix}layers.{{i}}.mlp.experts.{{e}}.down_proj.weight` | [{width}, {ffn}] | |

An expert computes `down(silu(gate(x)) * up(x))`. Expert {category} is the category expert, expert {attribute} the
attribute expert; the others ({general}) are general. Every token visits its {top_k} best general experts by router
logit. A token of a category or an attribute also visits the expert of its kind (`guided` = "add"), or only that one
(`guided` = "exclusive"). The weights are a softmax over the logits of the visited experts (`gate` = "softmax_active"),
or over all {n} of them without those that are not visited (`gate` = "softmax_all"). Here `guided` is "{guided}" and
`gate` is "{gate}", as in the object `moon` of config.json.
"""
