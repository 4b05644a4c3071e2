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


def image_folder(config: DataConfig, folder: pathlib.Path) -> pathlib.Path:
    """Returns where relative paths of pictures start: config.data.image_folder, else the folder of the records.

    Raises:
        DataError: config.data.image_folder is no folder.
    """
    if not config.image_folder:
        return folder
    path = pathlib.Path(config.image_folder).expanduser().resolve()
    if not path.is_dir():
        raise DataError(f"config.data.image_folder: {config.image_folder!r} is no folder")
    return path


def image_root(config: DataConfig) -> pathlib.Path:
    """Returns the `image_folder` of the data set at config.data.path, which need not have been read."""
    path = pathlib.Path(config.path).expanduser().resolve()
    return image_folder(config, path if path.is_dir() else path.parent)


def matching(config: DataConfig, pattern: str, what: str) -> tuple[pathlib.Path, list[pathlib.Path]]:
    """Returns (folder, files) for formats with names of their own: the file at config.data.path, or those of a folder.

    Args:
        config: `path`.
        pattern: of the names, relative to the folder, as `pathlib.Path.glob` takes it.
        what: the format looks for, for the error.

    Raises:
        DataError: there is nothing; the message lists what is.
    """
    path = pathlib.Path(config.path).expanduser().resolve()
    if not config.path or not path.exists():
        raise DataError(f"config.data.path: {config.path!r} does not exist")
    if path.is_file():
        return path.parent, [path]
    found = sorted(p for p in path.glob(pattern) if p.is_file())
    if not found:
        there = ", ".join(sorted(p.name for p in path.iterdir())[:20])
        raise DataError(f"{path}: no {what}; the folder holds {there or 'no files'}")
    return path, found


def only_part(config: DataConfig, folder: pathlib.Path) -> str:
    """Returns the name of the part of a format that has one: what config.data.parts says, else the folder's name.

    Raises:
        DataError: several parts are asked for.
    """
    if len(config.parts) > 1:
        raise DataError(f"config.data.parts: the format {config.format!r} has one part, not {', '.join(config.parts)}")
    return config.parts[0] if config.parts else folder.name
