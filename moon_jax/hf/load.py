"""A folder of safetensors -> our parameters, one tensor at a time.

`Tensors` finds what a folder holds; `load_params` checks all of it against the table of `names.py` before it reads
anything, so that one message tells everything that does not fit.
"""

import collections
import contextlib
import json
import pathlib
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Shaped
from safetensors import SafetensorError, safe_open

from moon_jax.config import ModelConfig
from moon_jax.hf.config import LoadError
from moon_jax.hf.names import LM_HEAD, Row, find_layout, table

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = ("F32", "BF16", "F16")  # as safetensors names them


class Tensors(contextlib.AbstractContextManager):
    """The tensors of a checkpoint folder, from one file or from shards; a context manager that keeps them open.

    Opening reads only the headers; `read` maps one tensor into memory.

    Attributes:
        folder: the checkpoint folder.
        shapes: shape of every tensor, by name.
        dtypes: safetensors dtype of every tensor, by name.
    """

    def __init__(self, folder: str | pathlib.Path):
        """Opens the files and reads their headers.

        Args:
            folder: holds model.safetensors, or shards with model.safetensors.index.json.

        Raises:
            LoadError: nothing to read, pickle files only, a broken file, or shards that disagree with their index.
        """
        self.folder = pathlib.Path(folder)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self._files: dict[str, Any] = {}
        with contextlib.ExitStack() as stack:
            self._open(stack)
            self._stack = stack.pop_all()

    def __exit__(self, *exception) -> None:
        self._stack.close()

    def read(self, name: str) -> Shaped[np.ndarray, "..."]:
        """Returns one tensor as it is stored (bfloat16 as ml_dtypes')."""
        return self._files[name].get_tensor(name)

    def _open(self, stack: contextlib.ExitStack) -> None:
        index = _read_index(self.folder)
        shards = [SINGLE] if index is None else list(dict.fromkeys(index.values()))
        owners: dict[str, list[str]] = collections.defaultdict(list)
        problems = []
        for shard in shards:
            try:
                file = stack.enter_context(safe_open(self.folder / shard, framework="numpy"))
            except FileNotFoundError:
                problems.append(f"{shard} is not there")
                continue
            except (OSError, SafetensorError) as error:
                problems.append(f"{shard} is broken or cut short: {error}")
                continue
            for name in file.keys():  # noqa: SIM118 - not a dict
                view = file.get_slice(name)
                self.shapes[name], self.dtypes[name] = tuple(view.get_shape()), view.get_dtype()
                self._files[name] = file
                owners[name].append(shard)
        problems += [f"{name} is in several shards: {', '.join(s)}" for name, s in owners.items() if len(s) > 1]
        if index is not None and not problems:
            problems += [f"{n} is not in {s}, where the index has it" for n, s in index.items() if owners.get(n) != [s]]
            problems += [f"{n} is in {s[0]}, but not in the index" for n, s in owners.items() if n not in index]
        if problems:
            raise _error(self.folder, problems)


def load_params(folder: str | pathlib.Path, config: ModelConfig) -> dict[str, Any]:
    """Returns the parameters of the dense model: nested dicts of float32 arrays, blocks and layers stacked.

    An output head (`lm_head.weight`) may be there, but is no part of the embedding model and is left out.

    Args:
        folder: checkpoint folder; float32, bfloat16 or float16, under any of the layouts of `names.py`.
        config: its sizes, from `read_config`.

    Raises:
        LoadError: names every missing, left-over and mis-shaped tensor and every unknown dtype.
    """
    rows = table(config)
    with Tensors(folder) as tensors:
        layout = find_layout(tensors.shapes.keys(), rows)
        if layout is None:
            some = ", ".join(sorted(tensors.shapes)[:5]) or "none at all"
            raise LoadError(f"{tensors.folder} holds no tensor of Qwen2.5-VL; it has {some}")
        _check(tensors, layout, rows, (config.text.vocab_size, config.text.hidden_size))
        if LM_HEAD in tensors.shapes:
            logging.info("%s: %s is left out, the embedding model has no output head", tensors.folder, LM_HEAD)
        params: dict[str, Any] = {}
        for row in rows:
            *parents, leaf = row.path
            node = params
            for name in parents:
                node = node.setdefault(name, {})
            node[leaf] = _read_row(tensors, layout, row)
    return params


def _read_row(tensors: Tensors, layout: str, row: Row) -> np.ndarray:
    out = np.empty(row.shape, np.float32)
    layers = out if row.layers else out[None]
    for layer, name in zip(layers, row.hf_names(layout), strict=True):
        layer[...] = row.to_ours(tensors.read(name))  # converts and transposes in one pass
    return out


def _check(tensors: Tensors, layout: str, rows: tuple[Row, ...], head_shape: tuple[int, int]) -> None:
    expected = {name: row.hf_shape for row in rows for name in row.hf_names(layout)}
    problems = [f"{name} is missing" for name in expected if name not in tensors.shapes]
    for name, shape in tensors.shapes.items():
        want = head_shape if name == LM_HEAD else expected.get(name)
        if want is None:
            problems.append(f"{name} {list(shape)} is left over: the model of this config has no such tensor")
        elif shape != want:
            problems.append(f"{name} has the shape {list(shape)}, the config needs {list(want)}")
        elif tensors.dtypes[name] not in DTYPES:
            problems.append(f"{name} is stored as {tensors.dtypes[name]}; it must be one of {', '.join(DTYPES)}")
    if problems:
        raise _error(tensors.folder, [f"(names read as layout {layout!r})", *problems])


def _read_index(folder: pathlib.Path) -> dict[str, str] | None:
    """Returns {tensor name: shard} of a sharded checkpoint, None for a single file."""
    path = folder / INDEX
    if not path.exists():
        _check_single(folder)
        return None
    try:
        index = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        shards = list(dict.fromkeys(index.values()))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise LoadError(f"{path} is no index of shards (an object with a 'weight_map'): {error!r}") from None
    problems = [
        f"{INDEX} names the shard {shard!r}; it must be the plain name of a .safetensors file in the folder"
        for shard in shards
        if not isinstance(shard, str) or set(shard) & set("/\\:\0") or not shard.endswith(".safetensors")
    ]
    if not shards:
        problems.append(f"{INDEX} is empty")
    if (folder / SINGLE).exists() and SINGLE not in shards:
        problems.append(f"both {SINGLE} and {INDEX} are there, which may be two models: remove one of them")
    if problems:
        raise _error(folder, problems)
    return index


def _check_single(folder: pathlib.Path) -> None:
    if (folder / SINGLE).exists():
        return
    if not folder.is_dir():
        raise LoadError(f"{folder} is not a folder")
    names = sorted(p.name for p in folder.iterdir())
    if stray := [n for n in names if n.endswith(".safetensors")]:
        raise LoadError(f"{folder} has {', '.join(stray)}, but neither {SINGLE} nor {INDEX}")
    if pickles := [n for n in names if n.endswith((".bin", ".pt", ".pth", ".ckpt"))]:
        raise LoadError(
            f"{folder} has only pickle files ({', '.join(pickles)}), which can run code when they are read and are "
            f"refused: load them where you trust them and save with safetensors"
        )
    raise LoadError(f"{folder} has neither {SINGLE} nor {INDEX}")


def _error(folder: pathlib.Path, problems: list[str]) -> LoadError:
    return LoadError(f"{folder} cannot be loaded:\n" + "\n".join(f"  - {p}" for p in problems))
