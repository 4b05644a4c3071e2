"""Folders of a run: the output appears whole or not at all, and what killed runs left behind goes."""

import contextlib
import fcntl
import json
import os
import pathlib
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator

from moon_jax.config import ConfigError
from moon_jax.data.policy import shown

REPORT = "report.json"
OURS = frozenset(("train.jsonl", "test.jsonl", "items.jsonl", REPORT))
STAMP = {"made_by": "moon_jax.prepare"}  # in the report: by it a folder is known as ours


def check_replaceable(output: pathlib.Path) -> None:
    """Raises ConfigError unless nothing is lost with `output`: it is not there, empty, or a benchmark of this command.

    A benchmark has our files and no others, and a report with the stamp.
    """
    if not output.exists():
        return
    names = {path.name for path in output.iterdir()} if output.is_dir() else {output.name}
    if not names and output.is_dir():
        return
    if not output.is_dir() or names - OURS or not _stamped(output / REPORT):
        others = ", ".join(sorted(names - OURS)[:5])
        raise ConfigError(
            f"{output} holds something that is not a benchmark of this command"
            f"{shown(f' ({others})') if others else ''}; name another folder"
        )


def _stamped(report: pathlib.Path) -> bool:
    try:
        found = json.loads(report.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and STAMP.items() <= found.items()


@contextlib.contextmanager
def fresh(output: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a folder that takes the place of `output` when all went well, and is gone otherwise.

    The old folder is moved aside, the new one in, and only then the old one removed. A run that was killed in between
    left the old one aside: the next one moves it back.

    Raises:
        ConfigError: `output` must not be replaced (`check_replaceable`), or another run is about to write it.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    if busy := clear(output.parent, output.name):
        raise ConfigError(f"another run is about to write {output} (its files are in {busy[0]}); wait for it")
    aside = output.parent / f".{output.name}.replaced"
    if aside.exists():
        if output.exists():
            shutil.rmtree(aside)
        else:
            aside.rename(output)
    check_replaceable(output)
    with temporary(output.parent, output.name) as folder:
        yield folder
        folder.chmod(0o755)  # those of tempfile are private
        check_replaceable(output)  # hours may have passed
        try:
            if output.exists():
                output.rename(aside)
            folder.rename(output)
        except BaseException:
            if aside.exists() and not output.exists():
                aside.rename(output)
            raise
        shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def temporary(parent: pathlib.Path, name: str, mode: int = 0o700) -> Iterator[pathlib.Path]:
    """Gives a new hidden folder in `parent` that is gone at the end; it is locked, so that `clear` leaves it alone."""
    folder, lock = _locked(parent, name)
    try:
        folder.chmod(mode)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _locked(parent: pathlib.Path, name: str) -> tuple[pathlib.Path, int]:
    while True:
        folder = pathlib.Path(tempfile.mkdtemp(prefix=_prefix(name), dir=parent))
        lock = os.open(folder, os.O_RDONLY)
        with contextlib.suppress(OSError):  # a file system without locks: then `clear` removes nothing either
            fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():  # `clear` of another run did not come in between
            return folder, lock
        os.close(lock)


def clear(parent: pathlib.Path, name: str) -> list[pathlib.Path]:
    """Returns the folders of `temporary` that are in use, after removing those that killed runs of this host left."""
    usual = re.compile(re.escape(_prefix(name)) + r"[a-z0-9_]{8}")
    busy = []
    for folder in sorted(path for path in parent.iterdir() if usual.fullmatch(path.name)):
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:  # gone, or another user's
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            busy.append(folder)
        except OSError:
            continue
        finally:
            os.close(lock)
    return busy


def _prefix(name: str) -> str:
    """Returns how names of folders begin; with the host, for one may not see the locks of another."""
    return f".{name}.{socket.gethostname()}."
