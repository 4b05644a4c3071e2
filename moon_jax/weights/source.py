"""The narrow waist between checkpoints and the mesh: named parameters of which any slice can be read by itself.

A Hugging Face folder, a model folder of ours and a training checkpoint are each a `Source`; `Upcycled` makes one with
experts out of a dense one; `place` puts one on a mesh, every process reading only the slices that its devices hold.
"""

import dataclasses
import hashlib
import math
import zlib
from collections.abc import Collection, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Shaped
from tqdm import tqdm

from moon_jax.config import MoEConfig
from moon_jax.moe.layer import ROUTER_STD

LM_HEAD = "text/lm_head"  # [vocab, width], only where it is not tied to text/embed; no part of the embedding model
_DENSE, _EXPERTS, _ROUTER = "text/layers/ffn/", "text/layers/moe/", "text/layers/moe/router"
_TILE = 256  # side of the squares in which random matrices are drawn, each from a key of its own
_PIECE = 1 << 26  # bytes read at a time where more of a parameter is wanted (at least one entry of its first axis)
_SMALL = 1 << 20  # bytes of a parameter that counts as a whole in the fingerprint

Index = tuple[slice, ...]  # of the leading axes, step 1; axes that are not mentioned are whole


class WeightsError(ValueError):
    """Weights that cannot be used; the message names the file or the parameter and everything that is wrong."""


@dataclasses.dataclass(frozen=True)
class Leaf:
    """Shape and dtype of a parameter as it is stored."""

    shape: tuple[int, ...]
    dtype: np.dtype  # float32, float16 or ml_dtypes.bfloat16

    @property
    def nbytes(self) -> int:
        """Bytes of the whole parameter."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


@runtime_checkable
class Source(Protocol):
    """The parameters of one model.

    Attributes:
        leaves: every parameter by its path in our tree, "text/layers/q"; blocks and layers are stacked.
    """

    leaves: Mapping[str, Leaf]

    def read(self, name: str, index: Index = ()) -> Shaped[np.ndarray, "..."]:
        """Returns a slice of a parameter, in the stored dtype, in memory of its own; reads little beyond it."""
        ...


class Upcycled:
    """A dense source seen as a guided mixture of experts: each expert a copy of its layer's FFN, a small random router.

    Equal to the dense model at step 0 (with gate = "softmax_active"). What is random depends on the seed and on its
    place in the whole parameter only, not on the slices in which a mesh asks for it.
    """

    def __init__(self, dense: Source, moe: MoEConfig, seed: int = 0, noise: float = 0.0):
        """Wraps a source.

        Args:
            dense: has "text/layers/ffn/{gate,up,down}".
            moe: number of experts.
            seed: of the router and the noise.
            noise: standard deviation added to the copies, relative to that of the layer's weight. To know that one,
                each weight of an FFN is read whole once.

        Raises:
            WeightsError: the source has experts already, or no FFN.
        """
        if not moe.experts:
            raise ValueError("upcycling needs a number of experts, moe.experts is 0")
        if _ROUTER in dense.leaves:
            raise WeightsError("the weights have experts already, so they cannot be upcycled again")
        if missing := [name for part in ("gate", "up", "down") if (name := _DENSE + part) not in dense.leaves]:
            raise WeightsError(f"the weights have no dense FFN to make experts of: {', '.join(missing)} missing")
        self._dense, self._seed, self._noise = dense, seed, noise
        self._deviations: dict[tuple[str, int], float] = {}
        self.leaves: dict[str, Leaf] = {}
        for name, leaf in dense.leaves.items():
            if name.startswith(_DENSE):
                layers, *shape = leaf.shape
                name, leaf = name.replace(_DENSE, _EXPERTS), Leaf((layers, moe.experts, *shape), leaf.dtype)
            self.leaves[name] = leaf
        layers, width, _ = dense.leaves[_DENSE + "gate"].shape
        self.leaves[_ROUTER] = Leaf((layers, width, moe.experts), np.dtype(np.float32))

    def read(self, name: str, index: Index = ()) -> Shaped[np.ndarray, "..."]:
        """Returns a slice of a parameter; see `Source`."""
        if not name.startswith(_EXPERTS):
            return self._dense.read(name, index)
        shape = self.leaves[name].shape
        index = (*index, *[slice(None)] * (len(shape) - len(index)))
        layers, *places = (range(n)[cut] for n, cut in zip(shape, index, strict=True))
        if name == _ROUTER:
            return ROUTER_STD * np.stack([self._normal(name, layer, 0, *places) for layer in layers])
        experts, rows, columns = places
        dense_name = name.replace(_EXPERTS, _DENSE)
        weight = self._dense.read(dense_name, (index[0], *index[2:]))
        copies = np.repeat(weight[:, None], len(experts), axis=1)
        if self._noise:
            for i, layer in enumerate(layers):
                scale = np.float32(self._noise * self._deviation(dense_name, layer))
                for j, expert in enumerate(experts):
                    copies[i, j] = weight[i].astype(np.float32) + scale * self._normal(
                        name, layer, expert, rows, columns
                    )
        return copies

    def _deviation(self, name: str, layer: int) -> float:
        if (name, layer) not in self._deviations:
            weight = self._dense.read(name, (slice(layer, layer + 1),))
            self._deviations[name, layer] = float(weight.astype(np.float32).std())
        return self._deviations[name, layer]

    def _normal(self, name: str, layer: int, expert: int, rows: range, columns: range) -> np.ndarray:
        """Returns these rows and columns of a standard normal matrix; only the tiles that they touch are drawn."""
        out = np.empty((len(rows), len(columns)), np.float32)
        for top in range(rows.start // _TILE * _TILE, rows.stop, _TILE):
            for left in range(columns.start // _TILE * _TILE, columns.stop, _TILE):
                key = (self._seed, zlib.crc32(name.encode()), layer, expert, top, left)
                tile = np.random.default_rng(key).standard_normal((_TILE, _TILE), np.float32)
                _copy((range(top, top + _TILE), range(left, left + _TILE)), tile, (rows, columns), out)
        return out


def place(
    source: Source, shapes: Any, specs: Any, mesh: Mesh, dtype: Any = None, *, progress: bool = False
) -> dict[str, Any]:
    """Returns the parameters on the mesh, as nested dicts; each process reads what its own devices hold, and once.

    Beside the shards themselves no more than a piece of a parameter (a layer's entry, or `_PIECE` bytes) is in memory.

    Args:
        source: the weights; an output head beside what `shapes` names is left where it is.
        shapes: tree of ShapeDtypeStructs, from `moon.abstract`.
        specs: tree of PartitionSpecs of the same structure.
        mesh: where to put them.
        dtype: to cast to; None = that of `shapes`.
        progress: show a bar in bytes.

    Raises:
        WeightsError: names every missing, left-over and mis-shaped parameter.
    """
    wanted, layout = named(shapes), named(specs)
    check(source, {name: shape.shape for name, shape in wanted.items()})
    placed = {}
    with tqdm(
        total=sum(source.leaves[name].nbytes for name in wanted), unit="B", unit_scale=True, desc="reading weights",
        disable=not progress or jax.process_index() != 0,
    ) as bar:  # fmt: skip
        for name, shape in wanted.items():
            placed[name] = _place(source, name, NamedSharding(mesh, layout[name]), np.dtype(dtype or shape.dtype))
            bar.update(source.leaves[name].nbytes)
    return nested(placed)


Box = tuple[range, ...]  # a slice of a parameter, by its places along every axis


def _place(source: Source, name: str, sharding: NamedSharding, dtype: np.dtype) -> jax.Array:
    shape = source.leaves[name].shape
    box_of = lambda index: tuple(range(n)[cut] for n, cut in zip(shape, index, strict=True))  # noqa: E731
    shards: dict[Box, np.ndarray] = {}  # devices that hold the same slice share one
    for index in sharding.addressable_devices_indices_map(shape).values():
        box = box_of(index)
        shards[box] = np.empty([len(places) for places in box], dtype)
    hull = tuple(range(min(r.start for r in axis), max(r.stop for r in axis)) for axis in zip(*shards, strict=True))
    tiled = sum(shard.size for shard in shards.values()) == math.prod(map(len, hull))
    for box in [hull] if tiled else list(shards):  # neighbouring shards come out of one reading
        for piece in _pieces(box, source.leaves[name].dtype.itemsize):
            values = source.read(name, tuple(slice(places.start, places.stop) for places in piece))
            for target, shard in shards.items():
                _copy(piece, values, target, shard)
    return jax.make_array_from_callback(shape, sharding, lambda index: shards[box_of(index)])


def _pieces(box: Box, itemsize: int) -> list[Box]:
    """Returns the box cut along its first axis into pieces of at most `_PIECE` bytes, or of one entry."""
    first, *rest = box
    rows = max(1, _PIECE // max(1, itemsize * math.prod(map(len, rest))))
    return [(first[start : start + rows], *rest) for start in range(0, len(first), rows)]


def _copy(source: Box, values: np.ndarray, target: Box, out: np.ndarray) -> None:
    """Writes into `out`, the box `target`, what it has in common with `values`, the box `source`."""
    common = [range(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(source, target, strict=True)]
    if all(common):
        here, there = (
            tuple(slice(c.start - r.start, c.stop - r.start) for c, r in zip(common, box, strict=True))
            for box in (target, source)
        )
        out[here] = values[there]


def check(source: Source, wanted: Mapping[str, tuple[int, ...]], optional: Collection[str] = (LM_HEAD,)) -> None:
    """Checks that a source has exactly the parameters of a model.

    Args:
        source: the weights.
        wanted: shape of every parameter by name.
        optional: names that may be there beside them.

    Raises:
        WeightsError: names every missing, left-over and mis-shaped parameter.
    """
    problems = [f"{name} is missing" for name in wanted if name not in source.leaves]
    for name, leaf in source.leaves.items():
        if name not in wanted:
            if name not in optional:
                problems.append(
                    f"{name} {list(leaf.shape)} is left over: the model of this config has no such parameter"
                )
        elif leaf.shape != tuple(wanted[name]):
            problems.append(f"{name} has the shape {list(leaf.shape)}, the config needs {list(wanted[name])}")
    if problems:
        raise WeightsError("the weights are of another model:\n" + "\n".join(f"  - {p}" for p in problems))


def fingerprint(source: Source) -> str:
    """Returns a sha256 that tells two sets of weights apart without reading them all.

    It covers the name, shape and dtype of every parameter, all numbers of those of at most 1 MiB (norms and biases of
    every layer), and of larger ones the first and the last entry of the first axis: the outer layers, all experts.
    """
    digest = hashlib.sha256()
    for name, leaf in sorted(source.leaves.items()):
        digest.update(repr((name, leaf.shape, leaf.dtype.name)).encode())
        last = leaf.shape[0] - 1 if leaf.shape else 0
        parts = [(slice(i, i + 1),) for i in sorted({0, last})] if leaf.nbytes > _SMALL else [()]
        for part in parts:
            digest.update(np.ascontiguousarray(source.read(name, part)).tobytes())
    return digest.hexdigest()


def named(tree: Any) -> dict[str, Any]:
    """Returns {"text/layers/q": leaf} of nested dicts; everything that is not a dict is a leaf."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= {f"{key}/{name}": leaf for name, leaf in named(value).items()}
        else:
            flat[key] = value
    return flat


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the nested dicts of {"text/layers/q": leaf}: the inverse of `named`."""
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree
