"""The output folder of `moon_jax.heatmap`: weights are written record by record, so that a killed run can go on."""

import json
import pathlib
import re
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from moon_jax.config import Role
from moon_jax.data import whole_file
from moon_jax.data.identity import differences
from moon_jax.data.records import DataError
from moon_jax.data.whole_file import UNFINISHED
from moon_jax.evaluation.heat.maps import AttentionMap

SETTINGS, INDEX = "settings.json", "heatmaps.json"
_PICTURE = re.compile(r"\d{4,}(_[a-z]+)?\.png")  # 0007.png, 0007_layers.png
WITH, WITHOUT = "with_text", "without_text"
CONDITIONS = (WITHOUT, WITH)


class HeatmapFolder:
    """The files of one run: NUMBER.npz with all layers and heads; pictures and the index are made anew of them.

    NUMBER.npz holds for each condition C of `CONDITIONS` that the record has: C_tokens [n], C_roles [n] (config.Role),
    C_weights float32 [layers, heads, n], C_grids [pictures, 2] (visual tokens high, wide), C_picture_roles [pictures].
    """

    def __init__(self, path: pathlib.Path, identity: Mapping[str, Any]):
        """Reads what an earlier run has left, and writes nothing.

        Args:
            path: of the folder, made by `begin`.
            identity: all that decides the weights, as JSON; files are used again only where it is the same.

        Raises:
            DataError: there is the output of another run, or anything else.
        """
        self.path, self._identity = path, json.loads(json.dumps(identity))
        if path.exists() and not path.is_dir():
            raise DataError(f"{path} is a file; the output is a folder")
        there = (
            sorted(file.name for file in path.iterdir() if file.name != SETTINGS + UNFINISHED) if path.exists() else []
        )
        if not there:
            return
        try:
            before = dict(json.loads((path / SETTINGS).read_text(encoding="utf-8"))["identity"])
        except (OSError, ValueError, KeyError, TypeError):
            raise DataError(
                f"{path} is not empty (there is {', '.join(there[:3])}), and not a folder of heat maps: it is without "
                f"a {SETTINGS} that says what made them; choose another --output"
            ) from None
        if said := differences(before, self._identity):
            raise DataError(f"{path} is of another run (choose another --output, or remove it):\n{said}")

    def begin(self) -> None:
        """Makes the folder and says what its files are of."""
        self.path.mkdir(parents=True, exist_ok=True)
        whole_file.write_json(self.path / SETTINGS, {"identity": self._identity})

    def file(self, number: int, ending: str) -> pathlib.Path:
        """Returns the path of a record's file: "0007.npz"."""
        return self.path / f"{number:04d}{ending}"

    def has(self, number: int) -> bool:
        """Returns whether the weights of a record are there."""
        return self.file(number, ".npz").exists()

    def write_maps(self, number: int, maps: Mapping[str, AttentionMap]) -> None:
        """Writes the weights of a record: its maps by condition."""
        arrays = {}
        for condition, found in maps.items():
            grids = np.array([grid for grid, _ in found.pictures], np.int32).reshape(-1, 2)
            roles = np.array([role for _, role in found.pictures], np.int32)
            fields = {"tokens": found.tokens, "roles": found.roles, "weights": found.weights}
            fields |= {"grids": grids, "picture_roles": roles}
            arrays |= {f"{condition}_{name}": array for name, array in fields.items()}
        with whole_file.writing(self.file(number, ".npz")) as file:
            np.savez_compressed(file, **arrays)

    def read_maps(self, number: int) -> dict[str, AttentionMap]:
        """Returns the maps of a record by condition.

        Raises:
            DataError: the file is damaged.
        """
        path, maps = self.file(number, ".npz"), {}
        try:
            with np.load(path) as arrays:
                for condition in CONDITIONS:
                    if f"{condition}_tokens" not in arrays:
                        continue
                    names = ("tokens", "roles", "weights", "grids", "picture_roles")
                    tokens, roles, weights, grids, kinds = (arrays[f"{condition}_{name}"] for name in names)
                    pictures = tuple(((int(h), int(w)), Role(int(k))) for (h, w), k in zip(grids, kinds, strict=True))
                    maps[condition] = AttentionMap(tokens, roles, weights, pictures)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise DataError(f"{path} cannot be read ({error}); remove it to have it made again") from None
        return maps

    def remove_pictures(self) -> None:
        """Removes the pictures of an earlier choice, which may be of other records: those that its index names.

        Raises:
            DataError: the index cannot be read.
        """
        index = self.path / INDEX
        if not index.exists():
            return
        try:
            records = json.loads(index.read_text(encoding="utf-8"))["records"]
            names = [str(value) for record in records for key, value in record.items() if key.startswith("png")]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{index} cannot be read ({error}); remove it, and the pictures beside it") from None
        for name in filter(_PICTURE.fullmatch, names):
            (self.path / name).unlink(missing_ok=True)
        index.unlink()  # last: killed here, the next run knows them still

    def write_index(self, about: Mapping[str, Any], records: Iterable[Mapping[str, Any]]) -> None:
        """Writes heatmaps.json: how the values were made, and those of every record."""
        values = {"version": 1, "about": about, "records": list(records)}
        whole_file.write_text(self.path / INDEX, json.dumps(values, ensure_ascii=False, allow_nan=False))
