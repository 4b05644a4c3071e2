"""docs/bad_input.md, made of what the tests saw."""

import collections
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from hostile_case import Case

from moon_jax.data import policy
from moon_jax.data.pipeline import SKIP_GRACE, Batch
from moon_jax.data.records import Dataset

HEAD = """# What happens to bad input

A picture, a box, a text or a record that strangers wrote is either used as it should be, or left out, counted and
named; nothing is used wrongly in silence. The rules are in one place, `moon_jax/data/policy.py`.

With `config.data.on_error = "raise"` (the default) the first thing that cannot be used ends the run, before training
starts where its record or the header of its file tells. With `"skip"` it is left out, up to
`config.data.max_skipped_share` of all records, of all pictures by their headers, and of all triplets that a process has
read so far (fewer than {grace:,} count as {grace:,}). More end the run, with counts by reason and the first of them by
name. The log names the first {warnings} things that are left out while loading. In the place of a triplet that is
skipped there stands another one, chosen by the seed, the step and the row.

Every process judges the triplets that it reads itself. metrics.jsonl has sums over all processes: `skipped_triplets`,
`unused_boxes` (boxes that hold nothing of their picture, which is used without a crop), `missing_boxes` (pictures
without a crop for any reason), `cut_texts`.

Limits:

| of | limit |
| --- | --- |
| a picture | {formats}; {pixels:,} pixels by its header, {megabytes} MiB |
| a path | a file anywhere on the machine, which is read as a picture and as nothing else; addresses are not fetched |
| a box | `x1 < x2`, `y1 < y2`, finite; at least {crop} px of the picture each way, after what lies outside is cut off |
| a line of a file | {line} MiB |
| a text | {characters} characters for every token that it may have; then `title_tokens` and the like |

The tables are what `tests/data/test_strangers.py` saw: {cases} inputs, each in the place of one listing of a sound data
set, through reader, header check, documents, pixels and packing, with `on_error = "skip"`. Of what is used, the test
compares the title and every pixel with what was put in; of all, that nothing sound is lost and that `"raise"` ends the
run with a message that names the same record. What Pillow and the JSON parser add to a message is left out here.
"""


class Outcome(NamedTuple):
    """What became of the hostile triplet."""

    becomes: str
    message: str
    batch: Batch
    dataset: Dataset


def page(cases: Sequence[Case], outcomes: Mapping[int, Outcome]) -> str:
    """Returns docs/bad_input.md."""
    by_result = collections.Counter(found.becomes for found in outcomes.values())
    out = HEAD.format(
        grace=SKIP_GRACE,
        warnings=policy.NAMED_WARNINGS,
        formats=", ".join(policy.FORMATS),
        pixels=policy.MAX_SOURCE_PIXELS,
        megabytes=policy.MAX_FILE_BYTES >> 20,
        line=policy.MAX_LINE_BYTES >> 20,
        characters=policy.CHARACTERS_PER_TOKEN,
        crop=policy.MIN_CROP_PX,
        cases=len(cases),
    )
    out += "\n| what became of it | inputs |\n| --- | --- |\n"
    out += "".join(f"| {becomes} | {count} |\n" for becomes, count in by_result.most_common())
    for group, numbered in itertools.groupby(enumerate(cases), lambda pair: pair[1].group):
        out += f"\n## {group}\n\n| input | what happens | how, or the message |\n| --- | --- | --- |\n"
        for number, case in numbered:
            said = case.note if outcomes[number].becomes in ("used", "left out") else _stable(outcomes[number].message)
            said += f" ({case.note})" if case.note and "skipped" in outcomes[number].becomes else ""
            out += f"| {_cell(case.what)} | {outcomes[number].becomes} | {_cell(said)} |\n"
    return out


def _stable(message: str) -> str:
    """Returns a message without folders, and without what other libraries say."""
    message = re.sub(r"(\.\.\.)?/\S*/data/", "", message)
    message = re.sub(r"(cannot be read as a picture) \(.*", r"\1", message, flags=re.DOTALL)
    message = re.sub(r"not JSON \(.*\)", "not JSON", message)
    message = re.sub(r"1,000,\d\d\d characters", "over a million characters", message)
    return message if len(message) <= 160 else f"{message[:100]} ... {message[-50:]}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
