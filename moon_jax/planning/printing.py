"""The reports of `analysis` as text for a terminal and as rows of a Markdown table."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from moon_jax.planning.chips import GIB


def text(report: Mapping[str, Any]) -> str:
    """Returns the report of one configuration for reading."""
    memory, seconds, flops, settings = (report[k] for k in ("memory", "seconds", "flops", "settings"))
    shape = report["batch_shape"]
    rows = [
        ("target", f"{report['target']}: {report['chips']} chips"),
        ("mesh", mesh_name(report["mesh"])),
        *(("replicated", line) for line in report["replicated"]),
        ("settings", ", ".join(f"{k} {v}" for k, v in settings.items())),
        ("parameters", f"{report['parameters']:,} ({report['parameters'] / 1e9:.2f} B)"),
        ("batch", f"{report['triplets']} triplets, {report['triplets_per_shard']} a shard: {shape['rows']} rows x "
                  f"{shape['row_tokens']} tokens, {shape['image_slots']} pictures x {shape['slot_patches']} patches"),
        *_memory_rows(memory),
        ("products a device", f"{flops['executed'] / 1e12:.1f} TFLOP computed, {flops['model'] / 1e12:.1f} TFLOP asked "
                              f"for by the model ({flops['model'] / flops['executed']:.0%})"),
        *((f"  {name}", f"{sum(part.values()) / 1e12:.2f} TFLOP, {part['again'] / 1e12:.2f} of it by remat")
          for name, part in flops["parts"].items() if sum(part.values()) > 1e-3 * flops["executed"]),
        *_collective_rows(report.get("collectives", ())),
        ("arithmetic", f"{seconds['arithmetic']:.3f} s at the peak"),
        ("network", f"{seconds['network']:.3f} s at the links' full speed"),
        ("step", f"{seconds['predicted']:.3f} s predicted, {report['triplets_per_second']:.0f} triplets a second"),
        ("MFU", f"at most {report['mfu_bound']:.1%}, {report['mfu_predicted']:.1%} predicted"),
        *((("largest batch", _estimate(report)),) if "largest_batch_estimate" in report else ()),
        *(("warning", line) for line in report.get("warnings", ())),
        *(("to make it fit", line) for line in report.get("advice", ())),
        *((("compiled in", f"{report['compile_seconds']:.0f} s"),) if "compile_seconds" in report else ()),
    ]  # fmt: skip
    return aligned(rows)


def _estimate(report: Mapping[str, Any]) -> str:
    return f"about {report['largest_batch_estimate']} triplets a shard, by the line from the state through this batch"


def aligned(rows: Sequence[tuple[str, str]]) -> str:
    """Returns lines of two columns."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def mesh_name(mesh: Mapping[str, int]) -> str:
    """Returns data=1 x fsdp=16 x ..."""
    return " x ".join(f"{name}={size}" for name, size in mesh.items())


def _memory_rows(memory: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    gib = lambda size: f"{size / GIB:.2f} GiB"  # noqa: E731
    capacity = memory["capacity"]
    if "peak" not in memory:
        yield "memory", f"about {gib(memory['estimate']['sum'])} of {gib(capacity)}, by the cost model"
        return
    if memory["temporaries"]:
        parts = ", ".join(f"{name} {gib(memory[name])}" for name in ("arguments", "temporaries", "outputs", "code"))
        yield "memory", f"{gib(memory['peak'])} of {gib(capacity)}: {parts}"
    if not memory["fits"]:
        yield "DOES NOT FIT", f"{gib(memory['peak'])} of {gib(capacity)}: {gib(memory['peak'] - capacity)} too much"
    for line in memory["largest"]:
        yield "  large array", line


def _collective_rows(collectives: Sequence[Mapping[str, Any]]) -> Iterable[tuple[str, str]]:
    total = sum(row["wire_bytes"] for row in collectives)
    for row in collectives:
        if row["wire_bytes"] > 1e-3 * total:
            yield (
                f"{row['kind']} over {' '.join(row['axes']) or '?'}",
                f"{row['count']} x {row['dtype']}, {row['bytes'] / GIB:.2f} GiB given out, "
                f"{row['wire_bytes'] / GIB:.2f} GiB sent, {row['seconds']:.3f} s"
                + (", behind other work" if row["overlaps"] else ""),
            )


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table; the first column is left-aligned, the others right."""
    lines = ["| " + " | ".join(header) + " |", "| --- |" + " ---: |" * (len(header) - 1)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])
