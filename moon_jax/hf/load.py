"""A Hugging Face folder as a `Source`: our parameters, any slice of them, straight from its safetensors."""

import concurrent.futures
import contextlib
import itertools
import math
import os
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Shaped

from moon_jax.config import ModelConfig, MoEConfig
from moon_jax.config_backbone import BACKBONES
from moon_jax.hf.config import LoadError
from moon_jax.hf.names import Row, find_layout, head_name, table
from moon_jax.weights.source import LM_HEAD, Index, Leaf, nested
from moon_jax.weights.tensors import DTYPES, Tensors
from moon_jax.weights.transpose import copy

_PIECE_BYTES = 2 << 20  # read and transposed while it is in the cache
_THREADS = min(8, os.cpu_count() or 1)


class HFSource(contextlib.AbstractContextManager):
    """The parameters of a checkpoint folder; a context manager, since its files stay open.

    A parameter is stored as its layers' tensors are, or in float32 where they differ among themselves.

    Attributes:
        leaves: shape and stored dtype of every parameter, `LM_HEAD` among them where the model has a head of its own.
        layout: key of `names.LAYOUTS`: how the folder's tensors are named.
    """

    def __init__(
        self, folder: str | os.PathLike[str], config: ModelConfig, moe: MoEConfig | None = None, tied: bool = False
    ):
        """Opens a folder and checks all of it against the table of `names.py` before anything is read.

        Args:
            folder: checkpoint folder; float32, bfloat16 or float16, under any of the layouts of `names.py`.
            config: its sizes, from `read_config`.
            moe: its experts, where `save_hf` wrote a guided mixture; None or 0 experts = a dense model.
            tied: `CheckpointInfo.tied`. A head that the folder has all the same is left out where it equals the token
                embedding, and kept where it does not, as transformers does it.

        Raises:
            LoadError: names every missing, left-over and mis-shaped tensor and every unknown dtype.
            WeightsError: the files cannot be read; see `Tensors`.
        """
        self._rows = {row.leaf: row for row in table(config, moe)}
        with contextlib.ExitStack() as stack:
            self._tensors = stack.enter_context(Tensors(folder))
            self.layout = _check(self._tensors, tuple(self._rows.values()), config)
            self.leaves: dict[str, Leaf] = {}
            for name, row in self._rows.items():
                stored = {DTYPES[self._tensors.dtypes[tensor]] for tensor in row.hf_names(self.layout)}
                self.leaves[name] = Leaf(row.shape, stored.pop() if len(stored) == 1 else np.dtype(np.float32))
            self._head = head = head_name(config.vision.kind, self.layout)
            if head in self._tensors.shapes and not (tied and self._head_is_embedding()):
                self.leaves[LM_HEAD] = Leaf(self._tensors.shapes[head], DTYPES[self._tensors.dtypes[head]])
            self._stack = stack.pop_all()

    def __exit__(self, *exception) -> None:
        self._stack.close()

    def read(self, name: str, index: Index = ()) -> Shaped[np.ndarray, "..."]:
        """Returns a slice of a parameter; see `Source`. Layers and experts are read by several threads at a time."""
        if name == LM_HEAD:
            return self._tensors.read(self._head, index)
        row, leaf = self._rows[name], self.leaves[name]
        index = (*index, *[slice(None)] * (len(leaf.shape) - len(index)))
        kept = [range(n)[cut] for n, cut in zip(leaf.shape, index, strict=True)]
        out = np.empty([len(places) for places in kept], leaf.dtype)
        if not out.size:
            return out
        stack, inner = kept[: len(row.stack)], kept[len(row.stack) :]
        parts = out.reshape(-1, *[len(places) for places in inner])
        tensors = [row.hf_name(self.layout, place) for place in itertools.product(*stack)]
        if len(tensors) == 1:
            self._fill(parts[0], tensors[0], row, inner)
        else:
            with concurrent.futures.ThreadPoolExecutor(min(_THREADS, len(tensors))) as pool:
                list(pool.map(lambda part, tensor: self._fill(part, tensor, row, inner), parts, tensors))
        return out

    def _fill(self, out: np.ndarray, tensor: str, row: Row, kept: list[range]) -> None:
        """Writes these places of one layer's parameter into `out`, from a tensor read piece by piece."""
        box = {axis: range(row.sizes[axis]) for axis in row.axes}
        alone = {group[0]: place for place, group in enumerate(row.ours) if len(group) == 1}
        for axis, place in alone.items():
            box[axis] = kept[place]
        # axes that are folded into one of ours are read whole, and cut when they are folded
        cut = [slice(r.start, r.stop) if len(g) > 1 else slice(None) for g, r in zip(row.ours, kept, strict=True)]
        first = row.axes[0]
        rows = box[first]
        row_bytes = out.itemsize * max(1, out.size // len(rows))
        step = max(1, _PIECE_BYTES // row_bytes) if first in alone else len(rows)
        shape = tuple(row.sizes[axis] for axis in row.axes)
        for start in range(0, len(rows), step):
            box[first] = rows[start : start + step]
            piece = self._tensors.read(tensor, tuple(slice(r.start, r.stop) for r in box.values()), shape)
            target = out
            if first in alone:
                target = out[(slice(None),) * alone[first] + (slice(start, start + step),)]
            copy(target, row.to_ours(piece)[*cut])

    def _head_is_embedding(self) -> bool:
        tensors, head, embed = self._tensors, self._head, self._rows["text/embed"].hf_name(self.layout)
        rows = max(1, _PIECE_BYTES // (4 * tensors.shapes[head][1]))
        for start in range(0, tensors.shapes[head][0], rows):
            index = (slice(start, start + rows),)
            if not np.array_equal(tensors.read(head, index), tensors.read(embed, index)):
                logging.warning(
                    "%s: config.json ties the output head to the token embedding, but %s is another matrix: it is kept",
                    tensors.folder, head,
                )  # fmt: skip
                return False
        return True


def load_params(folder: str | os.PathLike[str], config: ModelConfig, moe: MoEConfig | None = None) -> dict[str, Any]:
    """Returns all parameters in memory: nested dicts of float32 arrays, blocks and layers stacked, without the head.

    `HFSource` with `weights.source.place` puts a large model on a mesh without holding it here.

    Args:
        folder: checkpoint folder.
        config: its sizes, from `read_config`.
        moe: its experts; None or 0 of them = a dense model.

    Raises:
        LoadError: names every missing, left-over and mis-shaped tensor and every unknown dtype.
        WeightsError: the files cannot be read; see `Tensors`.
    """
    with HFSource(folder, config, moe) as source:
        names = [name for name in source.leaves if name != LM_HEAD]
        return nested({name: source.read(name).astype(np.float32, copy=False) for name in names})


def _check(tensors: Tensors, rows: tuple[Row, ...], config: ModelConfig) -> str:
    """Returns the layout under which the folder holds exactly the tensors of the rows and perhaps a head."""
    if (needed := sum(math.prod(row.stack) for row in rows)) > 10 * len(tensors.shapes) + 1000:  # no list of all names
        raise LoadError(f"{tensors.folder} holds {len(tensors.shapes)} tensors; its config needs {needed}")
    layout = find_layout(tensors.shapes.keys(), rows)
    if layout is None:
        some = ", ".join(sorted(tensors.shapes)[:5]) or "none at all"
        raise LoadError(f"{tensors.folder} holds no tensor of {BACKBONES[config.vision.kind].title}; it has {some}")
    expected = {name: row.hf_shape for row in rows for name in row.hf_names(layout)}
    problems = [f"{name} is missing" for name in expected if name not in tensors.shapes]
    head, head_shape = head_name(config.vision.kind, layout), (config.text.vocab_size, config.text.hidden_size)
    for name, shape in tensors.shapes.items():
        want = head_shape if name == head else expected.get(name)
        if want is None:
            problems.append(f"{name} {list(shape)} is left over: the model of this config has no such tensor")
        elif shape != want:
            problems.append(f"{name} has the shape {list(shape)}, the config needs {list(want)}")
        elif tensors.dtypes[name] not in DTYPES:
            problems.append(f"{name} is stored as {tensors.dtypes[name]}; it must be one of {', '.join(DTYPES)}")
    if problems:
        lines = [f"(names read as layout {layout!r})", *problems]
        raise LoadError(f"{tensors.folder} cannot be loaded:\n" + "\n".join(f"  - {line}" for line in lines))
    return layout
