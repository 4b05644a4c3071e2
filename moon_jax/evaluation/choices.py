"""What a listing can be classified as: the levels of its category (or the labels of a benchmark) and its attributes."""

import dataclasses
import functools
from collections.abc import Collection, Iterable, Iterator, Sequence

from moon_jax.config import Role
from moon_jax.config_rules import EVAL_TASKS
from moon_jax.data.documents import attribute_text, category_text
from moon_jax.data.records import Labelled

TASKS = RETRIEVAL, CLASSIFICATION, ATTRIBUTES = EVAL_TASKS
DEEPEST = "deepest"  # the level of a category that a product is filed under, however deep: the answer of `by: {}`
LEVELS = ("industry", "1", "2", "3", "4")  # names of the first, second, ... entry of a category

Truth = tuple[int, tuple[int, ...]]  # (which of the choices, the right classes in it, the preferred one first)


@dataclasses.dataclass(frozen=True)
class Choice:
    """Classes to choose from.

    Attributes:
        task: CLASSIFICATION or ATTRIBUTES.
        about: the level, or the key.
        names: of the classes, sorted.
        texts: what is embedded of each.
        role: of the texts, where they are not shown as titles.
    """

    task: str
    about: str
    names: tuple[str, ...]
    texts: tuple[str, ...]
    role: Role

    @functools.cached_property
    def places(self) -> dict[str, tuple[int]]:
        """(The number of a class,) by its name: the same object for all questions that it answers."""
        return {name: (place,) for place, name in enumerate(self.names)}


def levels(category: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yields (name of the level, the category down to it): "industry", "1", ... and "deepest" for all of it."""
    for depth in range(len(category)):
        yield LEVELS[depth] if depth < len(LEVELS) else str(depth), tuple(category[: depth + 1])
    if category:
        yield DEEPEST, tuple(category)


def answers(listing: Labelled) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Yields (task, level or key, names of the right classes, the preferred one first), each (task, about) once.

    What has labels is classified by them alone; they stand for the deepest level. Attributes are the listing's own.
    """
    product, labels = listing
    if labels:
        yield CLASSIFICATION, DEEPEST, tuple(dict.fromkeys(labels))
    else:
        for level, path in levels(product.category):
            yield CLASSIFICATION, level, (category_text(path),)
    values: dict[str, tuple[str, ...]] = {}
    for key, said in product.attributes:
        values[key] = values.get(key, ()) + tuple(said)
    for key, said in values.items():
        if said:
            yield ATTRIBUTES, key, said if len(said) == 1 else tuple(dict.fromkeys(said))


def choices(listings: Iterable[Labelled], labels: Iterable[str], tasks: Collection[str]) -> list[Choice]:
    """Returns what there is to choose, in a fixed order: levels, the deepest last, then keys; a choice of one is none.

    Args:
        listings: whose classes there are.
        labels: further classes of the deepest level.
        tasks: those that are wanted.
    """
    classes: dict[tuple[str, str], set[str]] = {}
    if labels := set(labels):
        classes[CLASSIFICATION, DEEPEST] = labels
    for listing in listings:
        for task, about, names in answers(listing):
            if (known := classes.get((task, about))) is None:
                classes[task, about] = set(names)
            else:
                known.update(names)

    def place(key: tuple[str, str]) -> tuple[bool, bool, bool, str]:
        task, about = key
        level = task == CLASSIFICATION
        return (not level, level and about == DEEPEST, level and about != LEVELS[0], about)

    found = []
    for task, about in sorted(classes, key=place):
        names = tuple(sorted(classes[task, about]))
        if len(names) > 1 and task in tasks:
            level = task == CLASSIFICATION
            texts = names if level else tuple(attribute_text([(about, [value])]) for value in names)
            found.append(Choice(task, about, names, texts, Role.CATEGORY if level else Role.ATTRIBUTE))
    return found


def truths_of(listings: Iterable[Labelled], choices: Sequence[Choice]) -> dict[str, list[Truth]]:
    """Returns what is right of each listing, by its id; each is looked at once."""
    at = {(choice.task, choice.about): number for number, choice in enumerate(choices)}
    found: dict[str, list[Truth]] = {}
    for listing in listings:
        if listing.product.id not in found:
            found[listing.product.id] = right = []
            for task, about, names in answers(listing):
                if (number := at.get((task, about))) is not None:
                    places = choices[number].places
                    first = places[names[0]]
                    right.append((number, first if len(names) == 1 else sum((places[n] for n in names), ())))
    return found
