"""The ranked answers to the questions of one trial, from embeddings."""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int32

from moon_jax.evaluation.benchmark import Asked, Trial
from moon_jax.evaluation.choices import RETRIEVAL
from moon_jax.evaluation.retrieval import top_k

RELAXED = 10  # the paper's rule for many classes: right is what is among the first ten


@dataclasses.dataclass(frozen=True)
class Ranked:
    """A trial and what a method answered.

    Attributes:
        trial: with all of its questions.
        asked: those that could be asked: their documents have a vector.
        scores: of the best candidates, best first.
        indices: their numbers in `trial.candidates`.
        left_out: questions of the trial whose documents have no vector.
    """

    trial: Trial
    asked: tuple[Asked, ...]
    scores: Float32[np.ndarray, "q k"]
    indices: Int32[np.ndarray, "q k"]
    left_out: tuple[Asked, ...]

    @property
    def lacking(self) -> int:
        """Questions that could not be asked of the method, whatever the reason."""
        return self.trial.lacking + len(self.left_out)

    @property
    def truth(self) -> list[tuple[int, ...]]:
        """The right candidates of every question, the preferred one first."""
        return [asked.truth for asked in self.asked]

    def relevant(self) -> Bool[np.ndarray, "q k"]:
        """Returns which of the ranked candidates are right."""
        first = np.array([asked.truth[0] for asked in self.asked], np.int64)
        found = self.indices == first[:, None]
        for row, asked in enumerate(self.asked):
            if len(asked.truth) > 1:
                found[row] = np.isin(self.indices[row], asked.truth)
        return found


def rank(
    trial: Trial,
    has_vector: Bool[np.ndarray, " documents"],
    take: Callable[[Int[np.ndarray, " n"]], Float[np.ndarray, "n d"]],
    k: int,
) -> Ranked:
    """Returns the best `k` candidates (or all, if they are fewer) of every question.

    A question whose document has no vector is not asked, nor one of classes of which none has a vector. A candidate
    without one is never found: who looks for it finds nothing.

    Args:
        trial: what is asked.
        has_vector: of the benchmark's documents.
        take: the vectors of documents that have one.
        k: how many to keep.
    """
    there = np.flatnonzero(has_vector[trial.candidates.documents])
    k = min(k, len(there))
    askable = k > 0 or trial.task == RETRIEVAL  # nothing is found, but something would have to be chosen
    asked = tuple(one for one in trial.asked if askable and has_vector[one.document])
    left_out = tuple(one for one in trial.asked if not (askable and has_vector[one.document]))
    if not asked or not k:
        empty = np.zeros((len(asked), 0))
        return Ranked(trial, asked, empty.astype(np.float32), empty.astype(np.int32), left_out)
    queries = take(np.array([one.document for one in asked]))
    scores, indices = top_k(queries, take(trial.candidates.documents[there]), k)
    return Ranked(trial, asked, scores, there[indices].astype(np.int32), left_out)
