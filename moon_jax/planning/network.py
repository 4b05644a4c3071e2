"""How fast the links of a target carry the collectives of a mesh, and the time that a step needs at least.

Lower bounds only: every byte takes a shortest way, all links of a device that can help do, latency is zero.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh

from moon_jax.planning.chips import Chip, Target
from moon_jax.planning.hlo import wire_bytes


class Links:
    """The links of a target under a mesh: bytes a second that one device can send to a group of its neighbours."""

    def __init__(self, target: Target, mesh: Mesh):
        """Reads where the devices are.

        Args:
            target: chips and how they lie.
            mesh: over devices that know their place (`mesh_on`).
        """
        self.target, self.names = target, tuple(mesh.axis_names)
        if target.chip.platform == "tpu":
            places = [device.coords for device in mesh.devices.flat]
        else:
            places = [(device.process_index,) for device in mesh.devices.flat]
        self.places = np.array(places).reshape(*mesh.devices.shape, -1)

    def bandwidth(self, kind: str, axes: Iterable[str] | None) -> float:
        """Returns bytes a second, one way, for one device in a collective over these mesh axes (None = all).

        On a torus each dimension that a group extends over helps: with two links where the group closes a ring, with
        one where it is a line; groups that lie interleaved on a dimension share its links. On GPUs, a group within a
        host has NVLink; one that spans hosts sends each byte over the network once per host, by all its NICs.
        """
        inside = [i for i, name in enumerate(self.names) if axes is None or name in axes]
        first = self.places[tuple(slice(None) if i in inside else 0 for i in range(len(self.names)))]
        group = first.reshape(-1, first.shape[-1])
        chip = self.target.chip
        return self._torus(group, kind) if chip.platform == "tpu" else self._hosts(chip, kind, group)

    def _torus(self, group: np.ndarray, kind: str = "all-gather") -> float:
        chip, links = self.target.chip, 0.0
        # three-dimensional slices close their rings only where they are made of whole cubes
        rings = chip.dimensions < 3 or all(size % chip.wraps == 0 for size in self.target.shape)
        for size, places in zip(self.target.shape, group.T, strict=False):
            values = np.unique(places)
            if len(values) == 1:
                continue
            if len(values) == size:
                links += 2 if rings and size % chip.wraps == 0 else 1
            elif values[-1] - values[0] + 1 == len(values):
                links += 1
            else:
                links += len(values) / size
        # what goes to all others passes by those on its way: n / 4 links of a ring or line of n, not 1
        n = max(len(np.unique(places)) for places in group.T)
        detour = max(n * n / (4 * (n - 1)), 1.0) if kind.endswith("all-to-all") and n > 1 else 1.0
        return chip.link * max(links, 1.0 / max(self.target.shape)) / detour

    def _hosts(self, chip: Chip, kind: str, group: np.ndarray) -> float:
        hosts = len(np.unique(group[:, 0]))
        if hosts == 1:
            return chip.link
        if kind.endswith("all-to-all"):
            return min(chip.link, chip.network * hosts / (hosts - 1))
        return min(chip.link, chip.network * len(group) / hosts)


def transfer_seconds(links: Links, transfers: Iterable[Any], mesh_shape: Mapping[str, int]) -> dict[tuple, float]:
    """Returns {(kind, axes): seconds} that the collectives of a step need at least, one after the other.

    Args:
        links: of the target.
        transfers: (kind, axes, bytes given out on a device over the whole step).
        mesh_shape: sizes of the mesh axes.
    """
    seconds: dict[tuple, float] = {}
    for kind, axes, size in transfers:
        group = math.prod(mesh_shape[a] for a in (mesh_shape if axes is None else axes))
        time = wire_bytes(kind, size, group) / links.bandwidth(kind, axes)
        seconds[kind, axes] = seconds.get((kind, axes), 0.0) + time
    return seconds
