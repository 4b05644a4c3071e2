"""Work counted in a traced program: multiplications and collectives of one device, before any compiler saw it.

Tracing needs neither devices nor a compiler, so it can be done for every candidate of a sweep. Scan bodies count once a
trip, of a conditional the branch with the most multiplications counts.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

# jax's name of a collective -> HLO's; the others (pcast, axis_index) send nothing
_COLLECTIVES = {
    "all_gather": "all-gather", "all_gather_invariant": "all-gather", "reduce_scatter": "reduce-scatter",
    "psum": "all-reduce", "psum_invariant": "all-reduce", "pmax": "all-reduce", "pmin": "all-reduce",
    "all_to_all": "all-to-all", "ragged_all_to_all": "ragged-all-to-all", "ppermute": "collective-permute",
}  # fmt: skip


class Transfer(NamedTuple):
    """What one collective gives out on one device."""

    kind: str  # as HLO spells it
    axes: tuple[str, ...]  # of the mesh, those larger than 1
    bytes: int


@dataclasses.dataclass
class Work:
    """Multiplications (a multiply-add is two) and collectives of one device."""

    flops: float = 0.0
    transfers: Counter[Transfer] = dataclasses.field(default_factory=Counter)  # -> times

    def add(self, other: "Work", times: int = 1) -> None:
        """Adds other work that is done `times` times."""
        self.flops += times * other.flops
        for transfer, count in other.transfers.items():
            self.transfers[transfer] += times * count


def work_of(jaxpr: Any, mesh_shape: Mapping[str, int]) -> Work:
    """Returns the work of a traced program: `jax.jit(f).trace(*args).jaxpr` or `jax.make_jaxpr(f)(*args)`.

    Only what runs inside a shard_map counts per device; outside it, shapes are global and nothing is multiplied.

    Args:
        jaxpr: the traced program.
        mesh_shape: sizes of the mesh axes.
    """
    work = Work()
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            work.flops += _dot_flops(equation)
        elif name in ("ragged_dot_general", "ragged_dot"):
            work.flops += _ragged_flops(equation)
        elif name in _COLLECTIVES:
            work.add(_transfers(equation, mesh_shape))
        elif name == "cond":
            work.add(max((work_of(b, mesh_shape) for b in params["branches"]), key=lambda w: w.flops))
        else:
            times = params["length"] if name == "scan" else 1
            for inner in _inner(params):
                work.add(work_of(inner, mesh_shape), times)
    return work


def named_bytes(jaxpr: Any, mark: str) -> int:
    """Returns the bytes of the arrays that `checkpoint_name(x, mark)` marks in a traced program, on one device."""
    total = 0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        params = equation.params
        if equation.primitive.name == "name" and params["name"] == mark:
            total += sum(out.aval.size * out.aval.dtype.itemsize for out in equation.outvars)
        times = params["length"] if equation.primitive.name == "scan" else 1
        total += times * sum(named_bytes(inner, mark) for inner in _inner(params))
    return total


def _inner(params: Mapping[str, Any]) -> Iterator[Any]:
    for name, value in params.items():
        if name not in ("fwd_jaxpr_thunk", "bwd"):
            for entry in value if isinstance(value, (tuple, list)) else (value,):
                if hasattr(getattr(entry, "jaxpr", entry), "eqns"):
                    yield entry


def _dot_flops(equation: Any) -> float:
    (contract, _), _ = equation.params["dimension_numbers"]
    left, out = equation.invars[0].aval, equation.outvars[0].aval
    return 2.0 * out.size * math.prod(left.shape[d] for d in contract)


def _ragged_flops(equation: Any) -> float:
    """Every row meets one group's matrix; where the ragged dimension is contracted, every column of the result."""
    left, right, out = (v.aval for v in (*equation.invars[:2], equation.outvars[0]))
    dims = equation.params["ragged_dot_dimension_numbers"]
    ((contract, _), _), ragged = dims.dot_dimension_numbers, dims.lhs_ragged_dimensions[0]
    if ragged in contract:
        return 2.0 * left.size * right.shape[-1]
    return 2.0 * out.size * math.prod(left.shape[d] for d in contract)


def _transfers(equation: Any, mesh_shape: Mapping[str, int]) -> Work:
    params = equation.params
    names = params.get("axes", params.get("axis_name"))
    names = names if isinstance(names, (tuple, list)) else (names,)
    axes = tuple(name for name in mesh_shape if name in names and mesh_shape[name] > 1)
    work = Work()
    if axes:
        for out in equation.outvars:
            size = out.aval.size * out.aval.dtype.itemsize
            work.transfers[Transfer(_COLLECTIVES[equation.primitive.name], axes, size)] += 1
    return work
