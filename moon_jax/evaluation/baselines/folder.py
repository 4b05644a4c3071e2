"""A model folder of the Hugging Face layout: its config checked, its files fingerprinted; no torch, no network."""

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

CONFIG, PREPROCESSOR, TOKENIZER = "config.json", "preprocessor_config.json", "tokenizer.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_CHUNK = 4 << 20


class BaselineError(ValueError):
    """A baseline that cannot be opened or used; the message says what to change."""


class ModelFolder:
    """A folder as the hub has it.

    Attributes:
        path: where it is.
        config: its config.json.
        weights: the names of its weight files.
    """

    def __init__(self, folder: str | os.PathLike[str], name: str, model_types: Sequence[str]):
        """Reads the config and checks that all files are there.

        Args:
            folder: a local folder.
            name: of the baseline, for messages.
            model_types: which `model_type` the config may have.

        Raises:
            BaselineError: no such folder, a file is missing or broken, or another kind of model.
        """
        self.path = pathlib.Path(folder).expanduser()
        if not self.path.is_dir():
            raise BaselineError(
                f"{name}: there is no folder {self.path}; baselines are read from local folders and never downloaded"
            )
        self.config = self.json(CONFIG)
        kind = self.config.get("model_type")
        if kind not in model_types:
            wanted = " or ".join(map(repr, model_types))
            raise BaselineError(f"{self.path / CONFIG}: model_type is {kind!r}, but {name} needs {wanted}")
        for file in (TOKENIZER, PREPROCESSOR):
            self.json(file)
        self.weights = self._weights()

    def json(self, name: str) -> dict[str, Any]:
        """Returns one of the folder's JSON objects.

        Raises:
            BaselineError: it is not there or not a JSON object.
        """
        file = self.path / name
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            there = ", ".join(sorted(p.name for p in self.path.iterdir())[:20]) or "nothing"
            raise BaselineError(f"{self.path} has no {name}; it holds {there}") from None
        except (OSError, ValueError) as error:
            raise BaselineError(f"{file} cannot be read as JSON: {error}") from error
        if not isinstance(found, dict):
            raise BaselineError(f"{file} is not a JSON object")
        return found

    def _weights(self) -> tuple[str, ...]:
        if (self.path / WEIGHTS).is_file():
            return (WEIGHTS,)
        if not (self.path / INDEX).is_file():
            raise BaselineError(
                f"{self.path} has neither {WEIGHTS} nor {INDEX}; weights in pickle files (pytorch_model.bin) are not "
                "read, as they can run code: let transformers write them anew with save_pretrained"
            )
        named = self.json(INDEX).get("weight_map")
        if not isinstance(named, dict) or not all(
            isinstance(v, str) and v == os.path.basename(v) for v in named.values()
        ):
            raise BaselineError(f"{self.path / INDEX} has no weight_map of file names")
        files = tuple(sorted(set(named.values())))
        lost = [file for file in files if not (self.path / file).is_file()]
        if lost:
            raise BaselineError(f"{self.path}: {INDEX} names {', '.join(lost)}, which is not there")
        return files

    def fingerprint(self, settings: Mapping[str, Any]) -> str:
        """Returns the sha256 (hex) of all that decides the vectors: JSON and weight files, and the settings."""
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        files = {file.name for file in self.path.iterdir() if file.suffix == ".json" and file.is_file()}
        for name in sorted(files | set(self.weights)):
            content = hashlib.sha256()
            with open(self.path / name, "rb") as file:
                while chunk := file.read(_CHUNK):
                    content.update(chunk)
            digest.update(f"{name}\0{content.hexdigest()}\n".encode())
        return digest.hexdigest()
