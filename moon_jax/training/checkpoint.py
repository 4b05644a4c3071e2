"""Checkpoints of a training state, sealed by a manifest that makes damage visible (the only file that knows Orbax).

A step is one folder: Orbax's array files and, written last, `manifest.json` with the digest of every file, the shape
and dtype of every leaf and the caller's `meta`. A folder without a manifest (a killed save, an empty folder) is not a
checkpoint. Orbax itself has no data checksum, takes an empty folder for the latest step and casts dtypes silently, so
all three are checked here. Arrays are stored as nested dicts under the names of their tree paths: no Python type of the
state (dataclass, optax's namedtuples) is needed to read them; saved_params.py reads the parameters slice by slice.
"""

import concurrent.futures
import json
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from moon_jax.training.manifest import MANIFEST, CheckpointError, damage, read_manifest, write_manifest
from moon_jax.weights.source import nested

_RESERVED = (MANIFEST, f"{MANIFEST}.unfinished")
_TEMPORARY = ".orbax-checkpoint-tmp"

_log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run in one folder: the latest `keep` steps and, besides, the best one.

    Every process of the run makes one and calls the same methods in the same order; process 0 seals, verifies and
    deletes. Nothing is deleted before the first `save`, so an evaluation may read the folder of a run in training.

    Attributes:
        folder: where the step folders lie; a local or shared path, or a bucket that etils.epath can reach.
        keep: how many of the latest steps stay.
        best_metric: name in `meta["metrics"]`, higher is better; the best step stays beside the latest ones.
    """

    def __init__(self, folder: str | epath.PathLike, keep: int = 2, best_metric: str | None = None):
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self.folder = epath.Path(folder).expanduser().absolute()
        self.keep = keep
        self.best_metric = best_metric
        self._orbax = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())
        self._sealer = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint-seal")
        self._sealing: concurrent.futures.Future | None = None
        self._verified: dict[int, str] = {}  # step -> what is wrong with it, "" = nothing
        self._swept = False

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    # ---------------------------------------------------------------------------------------------- what is there

    def steps(self) -> list[int]:
        """Returns the sealed steps in rising order; `latest` and `restore` find out whether their files are whole."""
        if not self.folder.exists():
            return []
        return sorted(int(p.name) for p in self.folder.iterdir() if p.name.isdigit() and (p / MANIFEST).exists())

    def latest(self) -> int | None:
        """Returns the newest step whose files match their digests, None where there is no checkpoint at all.

        Raises:
            CheckpointError: there are checkpoints, and all of them are damaged.
        """
        self.wait()
        steps = self.steps()
        step = _agree(lambda: next((s for s in reversed(steps) if not self._damage(s)), None))
        if step is None and _agree(lambda: steps[-1] if steps else None) is not None:
            raise CheckpointError(f"every checkpoint in {self.folder} is damaged; remove them to start from step 0")
        return step

    def best(self) -> int | None:
        """Returns the step with the highest finite `meta["metrics"][best_metric]` (the newest of equals), or None."""
        self.wait()
        return _agree(self._best)

    def meta(self, step: int) -> dict[str, Any]:
        """Returns the meta saved with a step, without touching its arrays.

        Raises:
            CheckpointError: the step does not exist or its manifest is damaged.
        """
        return self._manifest(step)["meta"]

    # ---------------------------------------------------------------------------------------------- save

    def save(self, step: int, state: Any, meta: Mapping[str, Any], assets: Mapping[str, bytes] | None = None) -> None:
        """Starts to save a state; returns once the arrays are copied off the devices, so the state may then be donated.

        An earlier save is finished first, and its errors (a full disk) are raised here or in `wait`.

        Args:
            step: number of the step; a folder of that number is overwritten.
            state: any pytree of jax arrays; None stands for "nothing here".
            meta: what to keep beside it, as JSON (config, fingerprints, metrics); tuples come back as lists.
            assets: files to put into the step's folder, by name (tokenizer, model card); sealed with the rest.

        Raises:
            CheckpointError: a leaf is not a jax array or has no elements, or an asset's name cannot be a file's there.
            TypeError: `meta` is not JSON.
        """
        leaves = _named_leaves(state)
        for name, leaf in leaves.items():
            if not isinstance(leaf, jax.Array):
                raise CheckpointError(f"cannot save {name}: it is a {type(leaf).__name__}, not a jax array")
            if leaf.size == 0:
                raise CheckpointError(f"cannot save {name}: shape {leaf.shape} has no elements; use None instead")
        assets = dict(assets or {})
        if bad := [name for name in assets if name in _RESERVED or epath.Path(name).name != name]:
            raise CheckpointError(f"assets need plain file names that the checkpoint does not use itself, not {bad}")
        body = {
            "step": step,
            "leaves": {name: {"shape": list(leaf.shape), "dtype": str(leaf.dtype)} for name, leaf in leaves.items()},
            "meta": json.loads(json.dumps(meta)),
        }
        self.wait()
        if jax.process_index() == 0:
            self._sweep(step)
        self._orbax.save(self._path(step), args=ocp.args.PyTreeSave(nested(leaves)), force=True)
        self._sealing = self._sealer.submit(self._seal, step, body, assets)

    def wait(self) -> None:
        """Returns when the save under way is sealed; raises its error where it failed."""
        if self._sealing is not None:
            sealing, self._sealing = self._sealing, None
            sealing.result()

    def close(self) -> None:
        """Finishes the save under way and frees Orbax's threads."""
        try:
            self.wait()
        finally:
            self._sealer.shutdown()
            self._orbax.close()

    def _seal(self, step: int, body: dict[str, Any], assets: Mapping[str, bytes]) -> None:
        """Waits for Orbax's commit, writes assets and manifest (process 0), removes the steps that need not stay."""
        self._orbax.wait_until_finished()
        if jax.process_index() != 0:
            return
        path = self._path(step)
        if taken := [name for name in assets if (path / name).exists()]:
            raise CheckpointError(f"assets would replace files of the checkpoint {path}: {taken}")
        for name, data in assets.items():
            (path / name).write_bytes(data)
        write_manifest(path, body)
        self._verified[step] = ""
        stay = {*self.steps()[-self.keep :], self._best()}
        for old in self.steps():
            if old not in stay:
                self._remove(old)

    def _sweep(self, step: int) -> None:
        """Removes what killed saves left (once), the damaged steps, and an old folder of the step to be saved."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self._swept:
            sealed = set(self.steps())
            for path in list(self.folder.iterdir()):
                unsealed = path.name.isdigit() and int(path.name) not in sealed
                if path.is_dir() and (unsealed or _TEMPORARY in path.name):
                    path.rmtree()
            self._swept = True
        for damaged in [s for s, problem in self._verified.items() if problem]:
            self._remove(damaged)
        self._remove(step)

    def _remove(self, step: int) -> None:
        """Removes a step, its manifest first: a folder half deleted is then no checkpoint any more."""
        path = self._path(step)
        (path / MANIFEST).unlink(missing_ok=True)
        if path.exists():
            path.rmtree()
        self._verified.pop(step, None)

    # ---------------------------------------------------------------------------------------------- restore

    def restore(self, abstract_state: Any, step: int | None = None, *, subset: bool = False) -> tuple[Any, dict]:
        """Returns (state, meta) of a step, every leaf placed as `abstract_state` says.

        The mesh may differ from the one that saved: shapes are global, and every leaf is read straight into its shards.

        Args:
            abstract_state: pytree of jax.ShapeDtypeStruct with shardings, of the state's structure.
            step: which step; None = the newest whole one, skipping damaged ones with a warning.
            subset: restore only the leaves of `abstract_state` (say the parameters) of a larger state.

        Raises:
            CheckpointError: no checkpoint, the step asked for is damaged, or leaves that differ (all of them named).
        """
        self.wait()
        if step is None:
            step = self.latest()
            if step is None:
                raise CheckpointError(f"there is no checkpoint in {self.folder}")
        else:
            asked = step
            step = _agree(lambda: None if self._damage(asked) else asked)
            if step is None:
                problem = self._damage(asked) if jax.process_index() == 0 else "process 0 says why"
                raise CheckpointError(f"cannot restore {self._path(asked)}: {problem}")
        manifest = self._manifest(step)
        wanted = _named_leaves(abstract_state)
        _check_leaves(wanted, manifest["leaves"], self._path(step), subset)
        item = nested(wanted)
        restore_args = jax.tree.map(
            lambda x: ocp.ArrayRestoreArgs(sharding=x.sharding, dtype=x.dtype, global_shape=x.shape), item
        )
        args = ocp.args.PyTreeRestore(item=item, restore_args=restore_args, partial_restore=subset)
        arrays = _named_leaves(self._orbax.restore(self._path(step), args=args))
        # Both trees were named by the same function, but nesting may have changed the order of the leaves.
        state = jax.tree.unflatten(jax.tree.structure(abstract_state), [arrays[name] for name in wanted])
        return state, manifest["meta"]

    # ---------------------------------------------------------------------------------------------- manifests

    def _path(self, step: int) -> epath.Path:
        return self.folder / f"{step:08d}"

    def _manifest(self, step: int) -> dict[str, Any]:
        if not (self._path(step) / MANIFEST).exists():
            raise CheckpointError(f"there is no checkpoint {self._path(step)}; there are steps {self.steps()}")
        return read_manifest(self._path(step))

    def _best(self) -> int | None:
        scores = {step: score for step in self.steps() if (score := self._score(step)) is not None}
        return max(scores, key=lambda step: (scores[step], step), default=None)

    def _score(self, step: int) -> float | None:
        try:
            score = self.meta(step).get("metrics", {}).get(self.best_metric)
        except CheckpointError:
            return None
        return float(score) if isinstance(score, (int, float)) and math.isfinite(score) else None

    def _damage(self, step: int) -> str:
        """Returns what is wrong with a step's files, "" where they match; a damaged step is warned about once."""
        if step not in self.steps():
            return f"it is not there; there are steps {self.steps()}"
        if step not in self._verified:
            problem = damage(self._path(step))
            if problem:
                _log.warning("checkpoint %s is damaged and not used: %s", self._path(step), problem)
            self._verified[step] = problem
        return self._verified[step]


def _agree(decide: Callable[[], int | None]) -> int | None:
    """Returns what `decide` says on process 0, on every process (they may see a shared folder a moment apart)."""
    value = decide() if jax.process_index() == 0 else None
    value = int(multihost_utils.broadcast_one_to_all(np.int32(-1 if value is None else value)))
    return None if value < 0 else value


def _named_leaves(tree: Any) -> dict[str, Any]:
    """Returns {"params/text/embed": leaf}: tree paths joined by slashes, in the order of the flattened tree."""
    named = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        keys = [jax.tree_util.keystr((key,), simple=True) for key in path]
        if any("/" in key for key in keys):
            raise CheckpointError(f"the key of a leaf must not contain '/': {keys}")
        named["/".join(keys)] = leaf
    return named


def _check_leaves(wanted: Mapping[str, Any], saved: Mapping[str, Any], path: epath.Path, subset: bool) -> None:
    problems = []
    for name, leaf in wanted.items():
        if getattr(leaf, "sharding", None) is None:
            problems.append(f"{name}: no sharding given; say where to put it")
        if name not in saved:
            problems.append(f"{name}: not in the checkpoint")
            continue
        shape, dtype = tuple(saved[name]["shape"]), saved[name]["dtype"]
        if shape != tuple(leaf.shape) or dtype != str(leaf.dtype):
            problems.append(f"{name}: saved {dtype}{list(shape)}, wanted {leaf.dtype}{list(leaf.shape)}")
    if not subset:
        problems += [f"{name}: in the checkpoint, not wanted" for name in saved if name not in wanted]
    if problems:
        more = f"\n  ... and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise CheckpointError(
            f"checkpoint {path} is of another state; restore it with the config it was saved with:\n"
            + "\n".join(f"  - {p}" for p in problems[:20])
            + more
        )
