"""The seal of a saved training step: manifest.json, with the digest of every file of its folder and of itself."""

import concurrent.futures
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

MANIFEST = "manifest.json"
_CHUNK = 1 << 22


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be saved or restored; the message names the folder or the leaf and says what to do."""


def write_manifest(folder: epath.Path, body: Mapping[str, Any]) -> None:
    """Seals a folder: the manifest appears whole, and last.

    Args:
        folder: of the step; complete.
        body: what the manifest says beside the digests of the files; JSON.
    """
    body = {**body, "files": _digests(folder)}
    unfinished = folder / f"{MANIFEST}.unfinished"
    unfinished.write_text(json.dumps({"sha256": _digest_of(body), "body": body}, indent=1))
    unfinished.rename(folder / MANIFEST)


def read_manifest(folder: epath.Path) -> dict[str, Any]:
    """Returns the body of a folder's manifest, with "files": {relative path: sha256}.

    Raises:
        CheckpointError: it is damaged.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text())
        body, digest = manifest["body"], manifest["sha256"]
    except (ValueError, KeyError, TypeError) as e:
        raise CheckpointError(f"{path} is damaged: it is not a manifest ({e})") from e
    if _digest_of(body) != digest:
        raise CheckpointError(f"{path} is damaged: it does not match its own digest")
    return body


def damage(folder: epath.Path) -> str:
    """Returns what is wrong with the files of a sealed folder, "" where all of them match their digests."""
    try:
        files, now = read_manifest(folder)["files"], _digests(folder)
    except (CheckpointError, OSError) as e:
        return str(e)
    bad = [name for name, digest in files.items() if now.get(name) != digest]
    return f"files missing or changed since they were saved: {', '.join(bad[:5])}" if bad else ""


def _digest_of(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _digests(folder: epath.Path) -> dict[str, str]:
    """Returns {relative path: sha256} of every file below `folder` but the manifest; hashing lets go of the GIL."""

    def digest(path: epath.Path) -> str:
        sha = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                sha.update(chunk)
        return sha.hexdigest()

    def walk(path: epath.Path) -> Iterator[epath.Path]:  # epath has no rglob
        for child in path.iterdir():
            yield from walk(child) if child.is_dir() else [child]

    files = {str(p.relative_to(folder)): p for p in walk(folder) if not p.name.startswith(MANIFEST)}
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        return dict(zip(files, pool.map(digest, files.values()), strict=True))
