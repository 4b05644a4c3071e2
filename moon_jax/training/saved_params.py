"""The parameters of a saved training step as a `Source`: slices of them, without the state that they belong to."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import tensorstore as ts
from etils import epath
from jaxtyping import Shaped

from moon_jax.training.manifest import CheckpointError, damage, read_manifest
from moon_jax.weights.source import Index, Leaf

_PREFIX = "params/"
_NO_LIMIT = 1 << 50


class SavedParams:
    """The parameters of one step, read from Orbax's array files with tensorstore.

    Orbax cuts a parameter into the shards of the mesh that saved it. What was unpacked of ONE parameter is kept until
    another one is asked for, so that reading it layer by layer unpacks each of them once: memory holds at most what of
    one parameter is asked for, rounded up to whole shards.

    Attributes:
        folder: of the step.
        manifest: what its manifest says.
        leaves: see `Source`.
    """

    def __init__(self, folder: str | epath.PathLike, verify: bool = True):
        """Reads the manifest.

        Args:
            folder: of one step, as `Checkpoints` wrote it.
            verify: compare all files with their digests; Orbax has no checksum, so that a flipped bit would be read as
                it is. False where `Checkpoints.latest` did it just now.

        Raises:
            CheckpointError: it is damaged.
        """
        self.folder = epath.Path(folder).expanduser().absolute()
        if verify and (problem := damage(self.folder)):
            raise CheckpointError(f"cannot read {self.folder}: {problem}")
        self.manifest = read_manifest(self.folder)
        self.leaves = {
            name.removeprefix(_PREFIX): Leaf(tuple(entry["shape"]), jnp.dtype(entry["dtype"]))
            for name, entry in self.manifest["leaves"].items()
            if name.startswith(_PREFIX)
        }
        self._open: tuple[str, Any] | None = None  # the parameter read last

    def read(self, name: str, index: Index = ()) -> Shaped[np.ndarray, "..."]:
        """Returns a slice of a parameter; see `Source`."""
        if self._open is None or self._open[0] != name:
            self._open = None  # lets go of the memory of the one before
            self._open = (name, self._array(name))
        return np.array(self._open[1][index].read().result(), self.leaves[name].dtype, order="C")

    def _array(self, name: str) -> Any:
        path = str(self.folder)
        base = f"{path}/" if "://" in path else {"driver": "file", "path": f"{path}/"}
        key = (_PREFIX + name).replace("/", ".")
        spec = {"driver": "zarr", "kvstore": {"driver": "ocdbt", "base": base, "path": f"{key}/"}}
        context = ts.Context({"cache_pool": {"total_bytes_limit": _NO_LIMIT}})
        array = ts.open(spec, open=True, read=True, context=context).result()
        leaf = self.leaves[name]
        if tuple(array.shape) != leaf.shape or array.dtype.numpy_dtype != leaf.dtype:
            raise CheckpointError(
                f"{self.folder}: {name} is {array.dtype.name}{list(array.shape)}, the manifest has {leaf}"
            )
        return array
