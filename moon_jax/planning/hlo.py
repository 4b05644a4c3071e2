"""The collectives of a compiled program, read from its HLO text.

The text of `compiled.as_text()` is a list of computations, each a list of instructions; a loop, a call or a fusion
names the computations that it runs. A collective in the body of a scan stands there once and runs once a trip, so the
computations are walked from the entry and the trip counts multiplied. Of a conditional every branch counts.
"""

import functools
import itertools
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

KINDS = (
    "all-reduce", "reduce-scatter", "all-gather", "all-to-all", "ragged-all-to-all", "collective-permute",
    "collective-broadcast",
)  # fmt: skip
_BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "tf32": 32, "c64": 64, "c128": 128}
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_CALLED_LIST = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")


_WIRE = {  # bytes that a device of a group of n sends, over the bytes that the collective gives out on it
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: n - 1,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "ragged-all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1.0,
    "collective-broadcast": lambda n: 1.0,
}


class HLOError(ValueError):
    """The text has a spelling that is not known here; the message quotes it."""


class Collective(NamedTuple):
    """One array that one collective gives out (the compiler may combine several arrays in one instruction)."""

    kind: str  # of KINDS
    axes: tuple[str, ...] | None  # mesh axes (of a size above 1) that its groups span; None: no such set of axes
    group: int  # devices that take part together
    dtype: str  # as HLO spells it
    shape: tuple[int, ...]  # on one device
    bytes: int  # of the array on one device, once
    count: int  # times it runs in one run of the program
    op_name: str  # where it comes from in the Python program
    name: str  # of the instruction
    overlaps: bool = False  # it has a start and a done, so that other work can run meanwhile

    @property
    def wire_bytes(self) -> int:
        """Bytes that one device sends for it in one run of the program, with the usual ring algorithms."""
        return round(wire_bytes(self.kind, self.bytes * self.count, self.group))


def wire_bytes(kind: str, given_out: float | int, group: int) -> float:
    """Returns the bytes that one device sends for a collective, with the usual ring algorithms.

    Args:
        kind: of `KINDS`.
        given_out: bytes of its result on one device.
        group: devices that take part together.
    """
    return float(given_out * _WIRE[kind](group))


class _Instruction(NamedTuple):
    name: str
    result: str  # the type
    op: str
    rest: str  # operands and attributes


def collectives_of(text: str, mesh_shape: Mapping[str, int]) -> list[Collective]:
    """Returns the arrays of all collectives that a program runs, without those of groups of one device.

    Args:
        text: `compiled.as_text()`, optimized HLO.
        mesh_shape: sizes of the mesh axes, in the order of the mesh: devices are numbered in that order.

    Raises:
        HLOError: the text holds a collective that cannot be read, or no program.
    """
    computations, entry = _computations(text)
    groups = functools.cache(functools.partial(_groups, axes=tuple(mesh_shape.items())))
    asynchronous = {
        called
        for instructions in computations.values()
        for instruction in instructions
        if instruction.op == "async-start"
        for called, _ in _called(instruction, computations)
    }
    found: list[Collective] = []
    for name, times in _times(computations, entry).items():
        for instruction in computations[name]:
            kind = instruction.op.removesuffix("-start")
            if kind not in KINDS:
                continue
            axes, size = groups(_group_text(instruction))
            if size == 1:
                continue
            label = re.search(r'op_name="([^"]*)"', instruction.rest)
            if name.startswith("all-reduce-scatter"):  # TPU: one kernel; its all-reduce and slice only say what it does
                kind, instruction = "reduce-scatter", computations[name][-1]._replace(name=instruction.name)
            for dtype, shape in _arrays(instruction):
                found.append(
                    Collective(
                        kind, axes, size, dtype, shape, math.prod(shape) * _bits(dtype) // 8, times,
                        label[1] if label else "", instruction.name,
                        instruction.op.endswith("-start") or name in asynchronous,
                    )
                )  # fmt: skip
    return found


def _computations(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    """Returns ({computation: its instructions}, the name of the entry)."""
    computations: dict[str, list[_Instruction]] = {}
    entry = current = None
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{$", line.strip()) if line[:1].strip() else None
        if head:
            current = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif current is not None and " = " in line:
            instruction = _instruction(line)
            if instruction:
                current.append(instruction)
    if entry is None:
        raise HLOError("this is no HLO text: it has no ENTRY computation")
    return computations, entry


def _instruction(line: str) -> _Instruction | None:
    match = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = ", line)
    if not match:
        return None
    after = line[match.end() :]
    end = _closing(after) + 1 if after.startswith("(") else after.find(" ")
    op = re.match(r" *([\w\-]+)\(", after[end:])
    if not op:
        if any(f" {kind}" in after for kind in KINDS):
            raise HLOError(f"cannot read the instruction {line.strip()[:300]}")
        return None
    return _Instruction(match[1], re.sub(r"/\*.*?\*/", "", after[:end]), op[1], after[end + op.end() :])


def _closing(text: str) -> int:
    """Returns the place of the bracket that closes the one at the start."""
    depth = 0
    for place in re.finditer(r"[()]", text):
        depth += 1 if place[0] == "(" else -1
        if not depth:
            return place.start()
    raise HLOError(f"a bracket is not closed in {text[:300]}")


def _times(computations: Mapping[str, list[_Instruction]], entry: str) -> dict[str, int]:
    """Returns {computation: how often one run of the program runs it}, of those that it reaches."""
    calls = {
        name: [
            (called, trips)
            for instruction in instructions
            for called, trips in _called(instruction, computations)
            if called in computations
        ]
        for name, instructions in computations.items()
    }
    times: dict[str, int] = {entry: 1}
    order: list[str] = []

    def visit(name: str) -> None:  # callers before what they call
        if name not in seen:
            seen.add(name)
            for called, _ in calls[name]:
                visit(called)
            order.append(name)

    seen: set[str] = set()
    visit(entry)
    for name in reversed(order):
        for called, trips in calls[name]:
            times[called] = times.get(called, 0) + times[name] * trips
    return times


def _called(instruction: _Instruction, computations: Mapping[str, list[_Instruction]]) -> Iterator[tuple[str, int]]:
    """Yields (computation, times that the instruction runs it)."""
    if instruction.op.endswith(("-done", "-update")) or (
        instruction.op.removesuffix("-start") in KINDS and "to_apply=" in instruction.rest
    ):
        return  # the start has run it; a reduction's `to_apply` only adds two numbers
    trips = _trips(instruction, computations) if instruction.op == "while" else 1
    for name in _CALLED.findall(instruction.rest):
        yield name, trips
    for names in _CALLED_LIST.findall(instruction.rest):
        for name in names.split(","):
            yield name.strip().lstrip("%"), 1


def _trips(loop: _Instruction, computations: Mapping[str, list[_Instruction]]) -> int:
    """Returns the trip count that the compiler noted, else the constant that the loop's condition compares with."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest)
    if known:
        return int(known[1])
    condition = re.search(r"\bcondition=%?([\w.\-]+)", loop.rest)
    constants = [
        int(number[1])
        for instruction in computations.get(condition[1] if condition else "", [])
        if instruction.op == "constant" and (number := re.match(r"(\d+)\)", instruction.rest))
    ]
    if len(constants) != 1:
        raise HLOError(f"how often does the loop {loop.name} run? Neither known_trip_count nor its condition says it")
    return constants[0]


def _arrays(instruction: _Instruction) -> list[tuple[str, tuple[int, ...]]]:
    """Returns (dtype, shape) of what the collective gives out; a -start gives its operands first and then results."""
    text = instruction.result
    if instruction.op.endswith("-start") and instruction.op != "all-reduce-start" and text.startswith("("):
        text = _elements(text)[1]
    arrays = re.findall(r"([a-z]\w*)\[([\d,<=]*)\]", text)
    if not arrays:
        raise HLOError(f"which arrays does {instruction.name} give out? {instruction.result[:300]}")
    return [(dtype, tuple(int(n.strip("<=")) for n in dims.split(",") if n)) for dtype, dims in arrays]


def _elements(text: str) -> list[str]:
    """Returns the elements of a tuple type."""
    out, depth, start = [], 0, 1
    for place in re.finditer(r"[()\[\]{},]", text):
        if place[0] in "([{":
            depth += 1
        elif place[0] in ")]}":
            depth -= 1
        if (place[0] == "," and depth == 1) or depth == 0:
            out.append(text[start : place.start()].strip())
            start = place.end()
    return out


def _bits(dtype: str) -> int:
    if dtype in _BITS:
        return _BITS[dtype]
    width = re.match(r"[a-z]+(\d+)", dtype)
    if not width:
        raise HLOError(f"how wide is the type {dtype}?")
    return int(width[1])


def _group_text(instruction: _Instruction) -> str:
    found = re.search(
        r"\b(?:replica_groups|source_target_pairs)=(mesh\[.*?\](?:, device_ids=\(.*?\)\))? ?\{[^}]*\}|"
        r"\{\{.*?\}\}|\{\}|\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)",
        instruction.rest,
    )
    if not found:
        raise HLOError(f"which devices take part in {instruction.name}? {instruction.rest[:300]}")
    return ("pairs" if "source_target_pairs" in instruction.rest else "") + found[1]


def _groups(text: str, axes: tuple[tuple[str, int], ...]) -> tuple[tuple[str, ...] | None, int]:
    """Returns (mesh axes that the groups span, devices in a group) of a spelling of the groups."""
    total = math.prod(size for _, size in axes)
    if text.startswith("pairs"):
        pairs = [tuple(map(int, pair.split(","))) for pair in re.findall(r"\{(\d+,\d+)\}", text)]
        names, shape = zip(*axes, strict=True)
        moved = np.array([np.unravel_index(a, shape) for a, _ in pairs]) != [
            np.unravel_index(b, shape) for _, b in pairs
        ]
        crossed = tuple(name for name, any_ in zip(names, moved.any(axis=0), strict=True) if any_)
        return crossed, math.prod(size for name, size in axes if name in crossed)
    if text == "{}":
        groups = np.arange(total)[None]
    elif text.startswith("{"):
        groups = [[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d, ]+)\}", text)]
    elif text.startswith("mesh"):
        groups = _mesh_groups(text)
    else:
        groups = _iota(text)
    return _spans(axes).get(frozenset(frozenset(map(int, g)) for g in groups)), max(map(len, groups))


def _iota(text: str) -> np.ndarray:
    """[groups,size]<=[dims]T(order): numbers in the order of `dims`, transposed, reshaped."""
    shape, dims, order = re.fullmatch(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text).groups()
    numbers = np.arange(math.prod(_ints(dims))).reshape(_ints(dims))
    return (numbers.transpose(_ints(order)) if order else numbers).reshape(_ints(shape))


def _mesh_groups(text: str) -> np.ndarray:
    """mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}: groups along the named axes of the compiler's own mesh."""
    axes = [(name, int(size)) for name, size in re.findall(r"'([^']+)'=(\d+)", text[: text.index("]")])]
    numbers = np.arange(math.prod(size for _, size in axes))
    order = re.search(r"device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\)", text)
    if order:
        numbers = numbers.reshape(_ints(order[1]))
        numbers = numbers.transpose(_ints(order[2])) if order[2] else numbers
    elif "device_ids" in text:
        listed = re.search(r"device_ids=\(([\d,]+)\)", text)
        if not listed:
            raise HLOError(f"which devices are {text}?")
        numbers = np.array(_ints(listed[1]))
    wanted = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", text[text.rindex("{") :])
    shape, inside = [], []
    for name, size in axes:  # a part of an axis 'a':(before)size splits it in before x size x rest
        part = next(((int(b), int(s)) for n, b, s in wanted if n == name and s), None)
        sizes = [part[0], part[1], size // math.prod(part)] if part else [size]
        inside += [len(shape) + (1 if part else 0)] if any(n == name for n, _, _ in wanted) else []
        shape += sizes
    rest = [i for i in range(len(shape)) if i not in inside]
    size = math.prod(shape[i] for i in inside)
    return numbers.reshape(shape).transpose(*rest, *inside).reshape(-1, size)


def _ints(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(","))


@functools.cache
def _spans(axes: tuple[tuple[str, int], ...]) -> dict[frozenset[frozenset[int]], tuple[str, ...]]:
    """Returns {groups: the mesh axes, of those larger than 1, that they span}."""
    names, shape = zip(*axes, strict=True)
    numbers = np.arange(math.prod(shape)).reshape(shape)
    wide = [i for i, size in enumerate(shape) if size > 1]
    spans = {}
    for count in range(1, len(wide) + 1):
        for inside in itertools.combinations(wide, count):
            rest = [i for i in range(len(shape)) if i not in inside]
            size = math.prod(shape[i] for i in inside)
            groups = numbers.transpose(*rest, *inside).reshape(-1, size)
            spans[frozenset(frozenset(map(int, g)) for g in groups)] = tuple(names[i] for i in inside)
    return spans
