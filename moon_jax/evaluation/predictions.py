"""The answers to single questions, as lines of predictions.jsonl."""

import contextlib
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from moon_jax.data import whole_file
from moon_jax.evaluation.benchmark import Benchmark
from moon_jax.evaluation.choices import ATTRIBUTES, CLASSIFICATION, DEEPEST, RETRIEVAL
from moon_jax.evaluation.ranked import Ranked

KEPT = 10  # best candidates of a line
ATTRIBUTE_LINES = 1000  # of one attribute: every question has a line for each of them, gigabytes for the whole of MBE

Write = Callable[[Mapping[str, Any]], Any]


@contextlib.contextmanager
def writer(path: pathlib.Path) -> Iterator[Write]:
    """Gives a function that writes a line; the file is either whole or not there."""
    with whole_file.writing(path) as file:
        yield lambda line: file.write((json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n").encode())


def write_trial(ranked: Ranked, method: str, benchmark: Benchmark, write: Write) -> None:
    """Writes a line for every question of a trial; of the levels of a category only the deepest has lines.

    Of each attribute the first ATTRIBUTE_LINES questions have one: they stand in the order of a hash.

    {"method", "task", "set", "part", "modality", "subject", "query": {"text", "image", "kind", "triplet"}, "truth":
    names, "rank": of the first right one among those kept or null, "top": [[name, score], ... 10]}; attributes also
    have "attribute". "subject" is not there in retrieval, where it is always the query.
    """
    trial, names = ranked.trial, ranked.trial.candidates.names
    if trial.task == CLASSIFICATION and trial.about[1] != DEEPEST:
        return
    head = {"method": method, "task": trial.task, "set": trial.set, "part": trial.part, "modality": trial.modality}
    if trial.task != RETRIEVAL:
        head |= {"subject": trial.subject}
        head |= {} if trial.task == CLASSIFICATION else {"attribute": trial.about[1]}
    relevant = ranked.relevant()
    lines = ATTRIBUTE_LINES if trial.task == ATTRIBUTES else len(ranked.asked)
    for row, asked in enumerate(ranked.asked[:lines]):
        document = benchmark.documents[asked.document]
        query = {
            "text": "\n".join(segment.text for segment in document.segments) or None,
            "image": str(document.images[0].path) if document.images else None,
            "kind": asked.kind,
            "triplet": asked.triplet,
        }
        best = zip(ranked.indices[row, :KEPT].tolist(), ranked.scores[row, :KEPT].tolist(), strict=True)
        write(
            {
                **head,
                "query": query,
                "truth": [names[place] for place in asked.truth],
                "rank": int(relevant[row].argmax()) + 1 if relevant[row].any() else None,
                "top": [[names[place], round(score, 6)] for place, score in best],
            }
        )
