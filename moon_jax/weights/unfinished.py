"""A folder that appears whole or not at all, however the program that writes it ends."""

import contextlib
import fcntl
import os
import pathlib
import shutil
from collections.abc import Iterator

from moon_jax.data.whole_file import sync
from moon_jax.weights.source import WeightsError


def check_absent(target: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the absolute path of a folder that is to be made.

    Raises:
        WeightsError: it is there already, or one of its parents is no folder.
    """
    target = pathlib.Path(os.path.abspath(target))
    if os.path.lexists(target):
        raise WeightsError(f"{target} is there already: choose another folder, or remove it")
    above = next(parent for parent in target.parents if os.path.lexists(parent))
    if not above.is_dir():
        raise WeightsError(f"{target} cannot be made: {above} is not a folder")
    return target


@contextlib.contextmanager
def new_folder(target: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Gives an empty folder that takes the name `target` when the block ends without an exception.

    Until then it is `.NAME.unfinished-PID` beside it. What killed programs left under such names is removed first.
    All files are on the disk (fsync) before the name appears. An exception removes the folder.

    Raises:
        WeightsError: `target` is there already, or another program is writing it.
    """
    target = check_absent(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{target.name}.unfinished-"
    for old in [p for p in target.parent.iterdir() if p.name.startswith(prefix)]:
        _remove_left_over(old, target)
    folder = target.parent / f"{prefix}{os.getpid()}"
    folder.mkdir()
    lock = _lock(folder)
    try:
        yield folder
        for path in [*folder.iterdir(), folder]:
            sync(path)
        check_absent(target)  # a folder of that name may have come up meanwhile, and an empty one would be replaced
        folder.rename(target)
        sync(target.parent)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def _remove_left_over(folder: pathlib.Path, target: pathlib.Path) -> None:
    try:
        lock = _lock(folder)
    except FileNotFoundError:  # its program finished just now
        return
    except BlockingIOError:
        raise WeightsError(
            f"{target} is being written by another process ({folder.name.rpartition('-')[2]}): wait for it, or stop it"
        ) from None
    try:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder)
    finally:
        os.close(lock)


def _lock(folder: pathlib.Path) -> int:
    """Returns a descriptor of the folder with a lock that dies with the process; BlockingIOError if it is taken."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:  # a file system without locks: nobody can be told from a killed one there
        pass
    return descriptor
