"""predictions.jsonl, read once from front to back: ranks, confusions and a sample of queries to show."""

import collections
import dataclasses
import heapq
import json
import os
import pathlib
from typing import Any

from tqdm import tqdm

from moon_jax.evaluation.benchmark import stable_hash
from moon_jax.evaluation.page.results_file import MODEL, Results

CANDIDATES = 300  # queries of each set and modality from which the shown ones are chosen
_NOT_NEEDED = b'"task": "attributes"'
BETWEEN = " > "  # the levels of a category text


@dataclasses.dataclass(frozen=True)
class Asked:
    """A query of the retrieval task and what a method ranked; `rank` None: not among those kept."""

    set: str
    modality: str
    query: dict[str, Any]  # "text", "image", "kind", "triplet"
    part: str | None
    truth: tuple[str, ...]
    rank: int | None
    top: tuple[tuple[str, float], ...]


@dataclasses.dataclass
class Predictions:
    """What the page takes from the file.

    Attributes:
        ranks: by (method, set, modality): how many queries have their first right answer at each rank.
        queries: by (method, set, modality): how many were asked.
        sample: by (set, modality), by (part, triplet): method -> what it ranked. The same triplets for every method.
        pairs: by set: (true category, predicted category) -> count, of the model's classification of the items.
    """

    ranks: dict[tuple[str, str, str], collections.Counter[int]]
    queries: collections.Counter[tuple[str, str, str]]
    sample: dict[tuple[str, str], dict[tuple[str | None, str], dict[str, Asked]]]
    pairs: dict[str, collections.Counter[tuple[str, str]]]


def read(path: str | os.PathLike[str], results: Results) -> Predictions:
    """Returns what the page needs of the file; its memory does not grow with the number of retrieval queries.

    Raises:
        ValueError: a line cannot be read, or the number of queries differs from that of the results.
    """
    found = Predictions(collections.defaultdict(collections.Counter), collections.Counter(), {}, {})
    kept: dict[tuple[str, str, str], list[tuple[int, int, Asked]]] = collections.defaultdict(list)
    own = results.methods[0] if results.methods else MODEL
    path = pathlib.Path(path)
    bar = tqdm(total=path.stat().st_size, unit="B", unit_scale=True, desc="report", delay=2)  # seconds
    with path.open("rb") as lines, bar:
        for number, line in enumerate(lines, 1):
            bar.update(len(line))
            if _NOT_NEEDED in line:  # most lines, and parsing is what takes the time; inside a text quotes are escaped
                continue
            try:
                _add(json.loads(line), number, own, found, kept)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise ValueError(f"{path}, line {number} cannot be read ({type(error).__name__}: {error})") from None
    _check(found, results, path)
    for (method, *place), heap in kept.items():
        triplets = found.sample.setdefault(tuple(place), {})
        for _, _, asked in sorted(heap, reverse=True):  # the smallest hash first
            triplets.setdefault((asked.part, str(asked.query["triplet"])), {})[method] = asked
    return found


def _add(said: dict[str, Any], number: int, own: str, found: Predictions, kept: dict) -> None:
    if said["task"] == "retrieval":
        key = (said["method"], said["set"], said["modality"])
        rank = said["rank"]
        if rank is not None and not (isinstance(rank, int) and rank >= 1):
            raise ValueError(f"a rank is 1, 2, ... or null, not {rank!r}")
        found.queries[key] += 1
        if rank is not None:
            found.ranks[key][rank] += 1
        order = -stable_hash(f"{said['part']}\0{said['query']['triplet']}")
        heap = kept[key]
        if len(heap) < CANDIDATES or order > heap[0][0]:
            top = tuple((str(name), float(score)) for name, score in said["top"])
            asked = Asked(*key[1:], said["query"], said["part"], tuple(map(str, said["truth"])), rank, top)
            push = heapq.heappush if len(heap) < CANDIDATES else heapq.heapreplace
            push(heap, (order, -number, asked))
    elif _is_item(said, own) and said["top"]:
        predicted, truth = str(said["top"][0][0]), [str(name) for name in said["truth"]]
        gold = predicted if predicted in truth else truth[0]
        found.pairs.setdefault(said["set"], collections.Counter())[gold, predicted] += 1


def _is_item(said: dict[str, Any], own: str) -> bool:
    """Returns whether the line is the model's classification of a listing by all that it shows."""
    kind = (said["method"], said["task"], said["modality"], said.get("subject", "positive"))
    return kind == (own, "classification", "item", "positive")


def _check(found: Predictions, results: Results, path: pathlib.Path) -> None:
    for row in results.whole("retrieval", by={}):
        asked = found.queries[row.method, row.set, row.modality]
        if asked != row.queries:
            raise ValueError(
                f"{path} has {asked:,} {row.modality} queries of {row.method} in the set {row.set}, but "
                f"{results.path.name} counts {row.queries:,}: the two files are not of one evaluation; evaluate again"
            )
