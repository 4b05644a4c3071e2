"""Model folders: everything that a model needs, in one place.

    model.safetensors, or shards with their index     our parameters under our names, "text/layers/q"
    moon.json                                         what the model is (spec.py), and a digest of every other file
    tokenizer.json, tokenizer_config.json ...         the tokenizer, as it came
    preprocessor_config.json                          the pictures' settings, as transformers names them
    README.md                                         the model card

moon.json is written last, in a folder that has another name until all is on the disk (unfinished.py). The same files
without weights and digests are the assets of a training checkpoint, which has digests of its own.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Shaped

from moon_jax.config_backbone import InternConfig
from moon_jax.data.strict_json import unique_json
from moon_jax.weights import card
from moon_jax.weights.source import LM_HEAD, Index, Leaf, Source, WeightsError
from moon_jax.weights.spec import ModelSpec, describe, parse, preprocessor_config
from moon_jax.weights.tensor_writer import TensorWriter
from moon_jax.weights.tensors import DTYPES, Tensors, regular_file

MOON_JSON, README, PREPROCESSOR = "moon.json", "README.md", "preprocessor_config.json"
# What goes along with a tokenizer.json where it is there; only the first two are needed.
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "chat_template.json", "chat_template.jinja", "generation_config.json",
)  # fmt: skip
SHARD_BYTES = 2 << 30
_FORMAT, _VERSION = "moon_jax", 2
_ONE_BACKBONE = 1  # the version that knew only Qwen2.5-VL, and so did not say which
_ROWS_BYTES = 32 << 20  # of a table of tokens, read and written at a time
_CHUNK = 4 << 20


@dataclasses.dataclass(frozen=True)
class Description:
    """What a moon.json says.

    Attributes:
        spec: of the model.
        weights: {"dtype": ..., "parameters": ...}; {} in a training checkpoint.
        files: {name: {"bytes": ..., "sha256": ...}} of the folder, all but this one and README.md; {} in a training
            checkpoint, whose manifest has the digests.
        origin: where the weights come from, as card.py shows it.
    """

    spec: ModelSpec
    weights: dict[str, Any]
    files: dict[str, dict[str, Any]]
    origin: dict[str, Any]


class ModelFolder(contextlib.AbstractContextManager):
    """The weights of a model folder, a `Source`; a context manager that keeps the files open.

    Attributes:
        folder: where it is.
        description: what its moon.json says.
        leaves: see `Source`.
    """

    def __init__(self, folder: str | os.PathLike[str], verify: bool = False):
        """Reads what the folder is and checks its files.

        Args:
            folder: a model folder.
            verify: compare the digest of every file, not only its size.

        Raises:
            WeightsError: names everything that is wrong with it.
        """
        self.folder = pathlib.Path(folder)
        self.description = read_description(self.folder)
        if not self.description.weights:
            raise WeightsError(
                f"{self.folder / MOON_JSON} describes a model without weights: {self.folder} is no model folder"
            )
        check_files(self.folder, self.description.files, verify)
        self._tensors = Tensors(self.folder)
        wrong = [f"{name} is {dtype}" for name, dtype in self._tensors.dtypes.items() if dtype not in DTYPES]
        if wrong:
            self._tensors.__exit__()
            raise WeightsError(f"{self.folder} cannot be loaded: {', '.join(wrong)}; known are {', '.join(DTYPES)}")
        self.leaves = {
            name: Leaf(shape, DTYPES[self._tensors.dtypes[name]]) for name, shape in self._tensors.shapes.items()
        }

    def __exit__(self, *exception) -> None:
        self._tensors.__exit__(*exception)

    def read(self, name: str, index: Index = ()) -> Shaped[np.ndarray, "..."]:
        """Returns a slice of a parameter; see `Source`."""
        return self._tensors.read(name, index)


def read_description(folder: pathlib.Path) -> Description:
    """Returns what the moon.json of a folder says.

    Raises:
        WeightsError: there is none, it is of another version, or it is damaged.
    """
    path = folder / MOON_JSON
    try:
        values = unique_json(regular_file(folder, MOON_JSON).read_bytes())
    except FileNotFoundError:
        raise WeightsError(f"there is no {path}") from None
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(values, dict) or values.get("format") != _FORMAT:
        raise WeightsError(f"{path} is not the description of a model of moon_jax (format: {_FORMAT!r})")
    if values.get("version") not in (_ONE_BACKBONE, _VERSION):
        raise WeightsError(
            f"{path} has the version {values.get('version')!r}; this program reads up to version {_VERSION}"
        )
    if values["version"] == _ONE_BACKBONE:
        values = _with_backbone(values)
    groups = {name: values.get(name, {}) for name in ("weights", "files", "origin")}
    if not all(isinstance(group, dict) for group in groups.values()) or not all(
        isinstance(entry, dict) and isinstance(entry.get("bytes"), int) and isinstance(entry.get("sha256"), str)
        for entry in groups["files"].values()
    ):
        raise WeightsError(f"{path} is damaged: weights, files and origin must be objects as this program writes them")
    return Description(parse(values, str(path)), **groups)


def _with_backbone(values: dict[str, Any]) -> dict[str, Any]:
    model = values.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vision"), dict):
        return values  # `parse` says what is wrong with it
    kind = {"kind": "qwen2_5_vl", "intern": dataclasses.asdict(InternConfig())}
    return values | {"model": model | {"vision": model["vision"] | kind}}


def check_files(folder: pathlib.Path, files: Mapping[str, Mapping[str, Any]], verify: bool) -> None:
    """Compares the files of a folder with what its moon.json says of them.

    Args:
        folder: where they are.
        files: {name: {"bytes": ..., "sha256": ...}}.
        verify: digests too.

    Raises:
        WeightsError: names every file that is missing, beside what was written, or not as it was written.
    """
    problems = []
    for name, entry in files.items():
        try:
            path = regular_file(folder, name) if os.path.basename(name) == name else None
            if path is None:
                problems.append(f"{name!r} is no plain file name")
            elif path.stat().st_size != entry["bytes"]:
                problems.append(f"{name} has {path.stat().st_size} bytes, {entry['bytes']} were written")
            elif verify and sha256(path) != entry["sha256"]:
                problems.append(f"{name} has changed since it was written (sha256)")
        except FileNotFoundError:
            problems.append(f"{name} is missing")
        except WeightsError as error:
            problems.append(str(error))
    problems += [
        f"{path.name} is not among the files of {MOON_JSON}"
        for path in sorted(folder.iterdir())
        if path.name.endswith((".safetensors", ".safetensors.index.json")) and path.name not in files
    ]
    if problems:
        raise WeightsError(f"{folder} is not as it was written:\n" + "\n".join(f"  - {p}" for p in problems))


def tokenizer_files(folder: pathlib.Path) -> dict[str, bytes]:
    """Returns the files of a tokenizer, by name, as they are.

    Raises:
        WeightsError: tokenizer.json or tokenizer_config.json is missing, or a file is a link out of the folder.
    """
    files, problems = {}, []
    for name in TOKENIZER_FILES:
        try:
            files[name] = regular_file(folder, name).read_bytes()
        except FileNotFoundError:
            if name in TOKENIZER_FILES[:2]:
                problems.append(f"{name} is missing")
        except WeightsError as error:
            problems.append(str(error))
    if problems:
        raise WeightsError(f"{folder} has no whole tokenizer:\n" + "\n".join(f"  - {p}" for p in problems))
    return files


def assets(
    spec: ModelSpec,
    tokenizer_folder: pathlib.Path,
    origin: Mapping[str, Any],
    *,
    weights: Mapping[str, Any] | None = None,
    files: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, bytes]:
    """Returns all files of a model folder but its weights, by name; moon.json is the last one.

    Args:
        spec: of the model.
        tokenizer_folder: its tokenizer.
        origin: where the weights come from, as card.py shows it; JSON.
        weights: {"dtype": ..., "parameters": ...}; None for a training checkpoint.
        files: digests of the weights' files; None for a training checkpoint.

    Raises:
        WeightsError: the tokenizer is not whole.
    """
    out = tokenizer_files(tokenizer_folder)
    out[PREPROCESSOR] = _json(preprocessor_config(spec))
    if files is not None:
        digests = {name: hashlib.sha256(data).hexdigest() for name, data in out.items()}
        files = {**files, **{name: {"bytes": len(data), "sha256": digests[name]} for name, data in out.items()}}
    out[README] = card.markdown(spec, weights, origin).encode()
    out[MOON_JSON] = moon_json(spec, origin, weights, files)
    return out


def moon_json(
    spec: ModelSpec,
    origin: Mapping[str, Any],
    weights: Mapping[str, Any] | None = None,
    files: Mapping[str, Mapping[str, Any]] | None = None,
) -> bytes:
    """Returns a moon.json; the arguments are those of `Description`, None for a training checkpoint."""
    body: dict[str, Any] = {"format": _FORMAT, "version": _VERSION, **describe(spec)}
    body |= {"weights": dict(weights)} if weights is not None else {}
    body |= {"files": dict(files)} if files is not None else {}
    return _json(body | {"origin": dict(origin)})


def write_model(
    folder: pathlib.Path,
    source: Source,
    spec: ModelSpec,
    tokenizer_folder: pathlib.Path,
    origin: Callable[[], Mapping[str, Any]],
    *,
    max_shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int], Any] = lambda nbytes: None,
) -> None:
    """Writes a model folder piece by piece; no more than a layer of a parameter is in memory.

    Args:
        folder: an empty one, from `new_folder`.
        source: the weights, stored as they are read.
        spec: of the model.
        tokenizer_folder: its tokenizer.
        origin: gives where the weights come from; called after the weights are written, so it may take its time.
        max_shard_bytes: of one safetensors file.
        progress: called with the number of bytes written.

    Raises:
        WeightsError: no room on the disk, or the source fails.
    """
    tensors = {name: (leaf.shape, leaf.dtype) for name, leaf in source.leaves.items()}
    writer = TensorWriter(folder, tensors, max_shard_bytes, {"format": "moon_jax"})

    def write(name: str, place: int | tuple[int, ...], values: np.ndarray) -> None:
        writer.write(name, place, values[(0,) * len(place)] if isinstance(place, tuple) else values)
        progress(values.nbytes)

    with writer, concurrent.futures.ThreadPoolExecutor(1, "write") as pool:
        pending = None
        for name, leaf in source.leaves.items():
            for index, place in pieces(name, leaf):
                values = source.read(name, index)
                if pending:  # one piece is read while another one is written
                    pending.result()
                pending = pool.submit(write, name, place, values)
        if pending:
            pending.result()
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": digest} for name, digest in writer.digests().items()
    }
    for name, data in assets(spec, tokenizer_folder, origin(), weights=summary(source), files=files).items():
        (folder / name).write_bytes(data)


def pieces(name: str, leaf: Leaf) -> Iterator[tuple[Index, int | tuple[int, ...]]]:
    """Gives the slices in which a parameter is copied, as `Source.read` and as `TensorWriter.write` name them.

    One layer, or one expert of a layer, at a time; a table of tokens by rows; all others whole.
    """
    stack = 0
    if name.startswith(("text/layers/", "vision/blocks/")):
        stack = 2 if name.startswith("text/layers/moe/") and not name.endswith("/router") else 1
    if name in ("text/embed", LM_HEAD):
        rows = max(1, _ROWS_BYTES // (leaf.nbytes // leaf.shape[0]))
        for start in range(0, leaf.shape[0], rows):
            yield (slice(start, min(start + rows, leaf.shape[0])),), start
    else:
        for place in np.ndindex(leaf.shape[:stack]):
            yield tuple(slice(i, i + 1) for i in place), place


def summary(source: Source) -> dict[str, Any]:
    """Returns {"dtype": most of the numbers', "parameters": how many} of the weights."""
    counts: dict[str, int] = {}
    for leaf in source.leaves.values():
        counts[leaf.dtype.name] = counts.get(leaf.dtype.name, 0) + int(np.prod(leaf.shape, dtype=np.int64))
    return {"dtype": max(counts, key=counts.__getitem__), "parameters": sum(counts.values())}


def sha256(path: pathlib.Path) -> str:
    """Returns the digest of a file as hex."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_CHUNK))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
