"""The report of a benchmark as lines for the terminal."""

from collections.abc import Iterator, Mapping
from typing import Any

MOST_INDUSTRIES = 30  # that the terminal shows; report.json has all


def text(report: Mapping[str, Any]) -> str:
    """Returns what was read, what was dropped and why, what was taken of every industry, and where negatives lie."""
    return "\n".join(_lines(report))


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    rows, written = report["rows"], report["written"]
    yield f"rows of the log     {rows:>12,}"
    for reason, count in report["dropped"].items():
        yield f"  {count:>12,}  {count / rows:6.1%}  {reason}"
    if report["unknown_items"]:
        yield f"  items that the catalogue lacks, for example: {', '.join(report['unknown_items'])}"
    for name, count in report["log"].items():
        if count and name != "skipped_reasons":
            yield f"  {name.replace('_', ' ')}: {count if not isinstance(count, (list, tuple)) else ', '.join(count)}"
    yield "catalogue"
    for name, count in report["catalogue"].items():
        yield f"  {count:>12,}  {name.replace('_', ' ')}"
    yield ""
    yield f"{'industry':<24}{'purchases':>12}{'share':>8}{'train':>12}{'share':>8}{'test':>10}{'share':>8}"
    for name, found in list(report["industries"].items())[:MOST_INDUSTRIES]:
        of = sum(other["purchases"] for other in report["industries"].values())
        yield (
            f"{name[:23]:<24}{found['purchases']:>12,}{found['purchases'] / of:>8.2%}"
            f"{found['train']:>12,}{found['train'] / written['train']:>8.2%}"
            f"{found['test']:>10,}{found['test'] / written['test']:>8.2%}"
        )
    if len(report["industries"]) > MOST_INDUSTRIES:
        yield f"and {len(report['industries']) - MOST_INDUSTRIES} more"
    yield ""
    for name, found in report["hard_negatives_share"].items():
        said = ", ".join(f"{level} {count:,}" for level, count in found.items())
        yield f"hard negatives of {name}, deepest level they share: {said}"
    if "miner" in report:
        yield f"mined by the model: {report['miner']['mined']:,}; as the hash chose: {report['miner']['kept']:,}"
    both = report["in_both_sets"]
    yield f"in both sets: {both['queries']} queries, {both['products']} products"
    yield f"written: {written['train']:,} training and {written['test']:,} test records"
    yield f"         {written['listings']:,} listings, those that the records name"
