"""The narrow waist between checkpoints and the mesh: named parameters of which any slice can be read by itself.

A Hugging Face folder, a model folder of ours and a training checkpoint are each a `Source`; `Upcycled` makes one with
experts out of a dense one; `place` puts one on a mesh, every process reading only the slices that its devices hold.
"""

import dataclasses
import zlib
from collections.abc import Collection, Mapping
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Shaped
from tqdm import tqdm

from moon_jax.config import MoEConfig
from moon_jax.moe.layer import ROUTER_STD

LM_HEAD = "text/lm_head"  # [vocab, width], only where it is not tied to text/embed; no part of the embedding model
_DENSE, _EXPERTS, _ROUTER = "text/layers/ffn/", "text/layers/moe/", "text/layers/moe/router"

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

    Equal to the dense model at step 0 (with gate = "softmax_active"). What is random is drawn from the seed, the
    parameter, the layer and the expert, so that it does not depend on the mesh that reads it.
    """

    def __init__(self, dense: Source, moe: MoEConfig, seed: int = 0, noise: float = 0.0):
        """Wraps a source.

        Args:
            dense: has "text/layers/ffn/{gate,up,down}".
            moe: number of experts.
            seed: of the router and the noise.
            noise: standard deviation added to the copies, relative to that of the layer's weight.

        Raises:
            WeightsError: the source has experts already.
        """
        if _ROUTER in dense.leaves:
            raise WeightsError("the weights have experts already, so they cannot be upcycled again")
        self._dense, self._experts, self._seed, self._noise = dense, moe.experts, seed, noise
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
        shape = self.leaves[name].shape
        index = (*index, *[slice(None)] * (len(shape) - len(index)))
        if name == _ROUTER:
            layers = [self._draw(name, layer, 0, shape[1:]) for layer in range(shape[0])[index[0]]]
            return (ROUTER_STD * np.stack(layers)).astype(np.float32)[:, *index[1:]]
        if not name.startswith(_EXPERTS):
            return self._dense.read(name, index)
        dense_name, (layers, experts, *rest) = name.replace(_EXPERTS, _DENSE), index
        count = len(range(shape[1])[experts])
        if not self._noise:
            weight = self._dense.read(dense_name, (layers, *rest))
            return np.repeat(weight[:, None], count, axis=1)
        out = []
        for layer in range(shape[0])[layers]:
            weight = self._dense.read(dense_name, (slice(layer, layer + 1),))[0].astype(np.float32)
            scale = self._noise * weight.std()
            for expert in range(shape[1])[experts]:
                noisy = weight + scale * self._draw(name, layer, expert, weight.shape)
                out.append(noisy[*rest].astype(self.leaves[name].dtype))
        return np.stack(out).reshape(-1, count, *out[0].shape)

    def _draw(self, name: str, layer: int, expert: int, shape: tuple[int, ...]) -> np.ndarray:
        key = (self._seed, zlib.crc32(name.encode()), layer, expert)
        return np.random.default_rng(key).standard_normal(shape, np.float32)


def place(
    source: Source, shapes: Any, specs: Any, mesh: Mesh, dtype: Any = None, *, progress: bool = False
) -> dict[str, Any]:
    """Returns the parameters on the mesh, as nested dicts; each process reads the slices of its own devices only.

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
    wanted = named(shapes)
    check(source, {name: shape.shape for name, shape in wanted.items()})
    placed = {}
    with tqdm(
        total=sum(source.leaves[name].nbytes for name in wanted), unit="B", unit_scale=True, desc="reading weights",
        disable=not progress or jax.process_index() != 0,
    ) as bar:  # fmt: skip
        for (name, shape), spec in zip(wanted.items(), named(specs).values(), strict=True):
            placed[name] = _place(source, name, NamedSharding(mesh, spec), np.dtype(dtype or shape.dtype))
            bar.update(source.leaves[name].nbytes)
    return nested(placed)


def _place(source: Source, name: str, sharding: NamedSharding, dtype: np.dtype) -> jax.Array:
    read: dict[str, np.ndarray] = {}  # devices that hold the same slice share one reading

    def shard(index: Index) -> np.ndarray:
        key = str(index)
        if key not in read:
            read[key] = source.read(name, index).astype(dtype, copy=False)
        return read[key]

    return jax.make_array_from_callback(source.leaves[name].shape, sharding, shard)


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
                problems.append(f"{name} {list(leaf.shape)} is left over: the model of this config has no such parameter")
        elif leaf.shape != tuple(wanted[name]):
            problems.append(f"{name} has the shape {list(leaf.shape)}, the config needs {list(wanted[name])}")
    if problems:
        raise WeightsError("the weights are of another model:\n" + "\n".join(f"  - {p}" for p in problems))


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
