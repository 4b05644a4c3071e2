"""Which files of a folder hold which part and split: `{part}.train.jsonl`, `{part}.test.jsonl`, or without a part."""

import pathlib
import re
from typing import NamedTuple

from moon_jax.config import DataConfig
from moon_jax.data.records import DataError


class PartFile(NamedTuple):
    """A file of triplets."""

    part: str
    training: bool
    path: pathlib.Path


class Found(NamedTuple):
    """The files to read, in a fixed order, and the names of all parts there (more than those that were selected)."""

    folder: pathlib.Path
    files: tuple[PartFile, ...]
    parts: tuple[str, ...]


def find(config: DataConfig, ending: str) -> Found:
    """Returns the train and test files with the ending (".jsonl") of the selected parts in config.data.path.

    Files without a part in their name belong to one part, which bears the name that config.data.parts gives, or else
    "catalogue" for the drawn catalogue and the folder's name otherwise. The path may also be one such file.

    Raises:
        DataError: nothing there, or a part that is not there; the message lists what is.
    """
    path = pathlib.Path(config.path).expanduser().resolve()
    if not config.path or not path.exists():
        raise DataError(f"config.data.path: {config.path!r} does not exist")
    folder = path if path.is_dir() else path.parent
    own_name = "catalogue" if config.format == "catalogue" else folder.name
    pattern = re.compile(rf"(?:(?P<part>.+)\.)?(?P<split>train|test){re.escape(ending)}")
    names = sorted(p.name for p in folder.iterdir() if p.is_file())
    found = []
    for name in [path.name] if path.is_file() else names:
        if match := pattern.fullmatch(name):
            part = match["part"] or (config.parts[0] if len(config.parts) == 1 else own_name)
            found.append(PartFile(part, match["split"] == "train", folder / name))
    if not found:
        raise DataError(
            f"{path}: no train or test file ({{part}}.train{ending}, train{ending}, ...); "
            f"the folder holds {', '.join(names[:20]) or 'no files'}"
        )
    parts = tuple(sorted({file.part for file in found}))
    if unknown := set(config.parts) - set(parts):
        raise DataError(
            f"config.data.parts: {folder} has no part {', '.join(sorted(unknown))}; it has {', '.join(parts)}"
        )
    selected = sorted((f for f in found if not config.parts or f.part in config.parts), key=lambda f: (f.part, f.path))
    return Found(folder, tuple(selected), parts)
