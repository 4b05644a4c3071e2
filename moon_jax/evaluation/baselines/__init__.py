"""Methods to compare with: published models in local folders, each embedding documents in the way it was made for.

Every one is a file of this folder and a line of `CLASSES`; docs/baselines.md tells how each makes its embeddings and
where that comes from. They run in torch and transformers (extra [torch]), which are imported when one is opened.
"""

import importlib
import importlib.util
import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from moon_jax.data.documents import Document
from moon_jax.evaluation.baselines.folder import BaselineError, ModelFolder

__all__ = ["NAMES", "Baseline", "BaselineError", "open_baseline"]

CLASSES = {
    "clip": "clip:Clip",
    "fashionclip": "fashionclip:FashionClip",
    "siglip2": "siglip2:Siglip2",
    "siglip2_naflex": "siglip2:Siglip2NaFlex",
    "internvl3": "internvl3:InternVL3",
    "qwen2_5_vl": "qwen2_5_vl:Qwen25VL",
    "gme": "gme:Gme",
    "mm_embed": "mm_embed:MMEmbed",
}
NAMES: tuple[str, ...] = tuple(CLASSES)


@runtime_checkable
class Baseline(Protocol):
    """A model to compare with.

    Attributes:
        name: one of `NAMES`.
        fingerprint: sha256 of the folder's files and of the settings that decide the vectors.
        about: how text, picture and joint embeddings are made, their source, dtype, pixels and limits.
        counts: of all documents embedded so far: "documents", "pictures", "cut_texts" (those that were too long).
    """

    name: str
    fingerprint: str
    about: dict[str, Any]
    counts: Mapping[str, int]

    def embed(self, documents: Sequence[Document]) -> Float32[np.ndarray, "n d"]:
        """Returns one unit vector a document, in order.

        Raises:
            BaselineError: a document with neither picture nor text, weights that do not fit the config, or vectors
                that are no numbers.
            ImageError: names a picture that cannot be read.
        """
        ...


def open_baseline(
    name: str,
    folder: str | os.PathLike[str],
    *,
    device: str = "cpu",
    dtype: str = "float32",
    batch_size: int = 8,
    max_pixels: int | None = None,
    progress: bool = False,
) -> Baseline:
    """Returns the baseline in a local folder; the network is never asked.

    Its weights are read when the first document is embedded, so that saved vectors can be used without them.

    Args:
        name: one of `NAMES`.
        folder: as the model's page on the Hugging Face hub has it: config.json, tokenizer.json,
            preprocessor_config.json and *.safetensors.
        device: of torch: "cpu", "cuda", "cuda:1".
        dtype: of weights and computation: "float32", "bfloat16", "float16". Pooling is float32 always.
        batch_size: documents at a time.
        max_pixels: larger pictures are scaled down to it; by default what the folder says. Models that see pictures
            of one size only have no use for it.
        progress: show a bar.

    Raises:
        BaselineError: an unknown name, torch is not installed, another model's folder, a missing or damaged file, or a
            device that is not there.
    """
    if name not in CLASSES:
        raise BaselineError(f"there is no baseline {name!r}; there are: {', '.join(NAMES)}")
    missing = [package for package in ("torch", "transformers") if importlib.util.find_spec(package) is None]
    if missing:
        raise BaselineError(
            f"the baseline {name!r} needs {' and '.join(missing)}, not installed here: pip install 'moon-jax[torch]'"
        )
    from moon_jax.evaluation.baselines.torch_model import Options

    module, kind = CLASSES[name].split(":")
    found = getattr(importlib.import_module(f"{__name__}.{module}"), kind)
    options = Options(device, dtype, batch_size, max_pixels, progress)
    return found(ModelFolder(folder, name, found.model_types), options)
