"""What all baselines in torch share: weights loaded without a gap, documents in batches, unit vectors out."""

import abc
import collections
import concurrent.futures
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import transformers
from jaxtyping import Float, Float32
from PIL import Image
from tqdm import tqdm

from moon_jax.config import DataConfig
from moon_jax.data.documents import Document
from moon_jax.data.picture_files import load
from moon_jax.data.policy import shown
from moon_jax.data.views import pad_to_aspect
from moon_jax.evaluation.baselines.folder import BaselineError, ModelFolder

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MAX_ASPECT = DataConfig().max_aspect
_BUFFERS = ("position_ids", "inv_freq")  # old checkpoints hold them; they are computed
_READERS, _AHEAD = 4, 6  # threads, and batches that wait

A, B = TypeVar("A"), TypeVar("B")


@dataclasses.dataclass(frozen=True)
class Options:
    """How a baseline runs; see `open_baseline`."""

    device: str = "cpu"
    dtype: str = "float32"
    batch_size: int = 8
    max_pixels: int | None = None
    progress: bool = False


@dataclasses.dataclass
class Inputs:
    """A batch of documents as tensors. A document may be several rows of a tensor: `owners` says whose each row is."""

    documents: int
    tensors: dict[str, torch.Tensor]
    owners: dict[str, list[int]]
    pictures: int = 0
    cut_texts: int = 0


class TorchBaseline(abc.ABC):
    """A `Baseline`. A subclass says what it is, reads documents, loads the model and runs it on them."""

    name: str
    model_types: tuple[str, ...]  # what config.json may call the model
    rules: Mapping[str, str]  # "text", "image", "item", "several_pictures", "source": what `about` says of them

    def __init__(self, folder: ModelFolder, options: Options):
        """Reads all but the weights.

        Raises:
            BaselineError: see `open_baseline`.
        """
        if options.dtype not in DTYPES:
            raise BaselineError(f"{self.name}: the dtype is one of {', '.join(DTYPES)}, not {options.dtype!r}")
        if options.batch_size < 1 or (options.max_pixels is not None and options.max_pixels < 1):
            raise BaselineError(f"{self.name}: batch_size and max_pixels must be at least 1")
        self.folder, self.options = folder, options
        self.device = _device(options.device, self.name)
        self.dtype = DTYPES[options.dtype]
        self.set_up()
        settings = {**self.rules, "dtype": options.dtype, **self.settings()}
        self.fingerprint: str = folder.fingerprint({"name": self.name, **settings})
        self.about: dict[str, Any] = {
            **settings,
            "size": self.size,
            "crops": "none: the whole picture only",
            "strips": f"pictures longer than {MAX_ASPECT:g}:1 are padded with white to that ratio",
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        }
        self.counts: collections.Counter[str] = collections.Counter(documents=0, pictures=0, cut_texts=0)

    @functools.cached_property
    def model(self) -> torch.nn.Module:
        """The model with its weights, on the device."""
        return self.load_model().to(self.device).eval().requires_grad_(False)

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """Width of the vectors."""

    @abc.abstractmethod
    def set_up(self) -> None:
        """Reads the config and what texts and pictures need."""

    @abc.abstractmethod
    def load_model(self) -> torch.nn.Module:
        """Returns the model with the folder's weights."""

    @abc.abstractmethod
    def settings(self) -> dict[str, Any]:
        """Returns the numbers that decide the vectors: {"pixels": ..., "text_tokens": ...}."""

    @abc.abstractmethod
    def read(self, documents: Sequence[Document]) -> Inputs:
        """Returns the documents as tensors on the host; called by several threads at once."""

    @abc.abstractmethod
    def forward(self, inputs: Inputs) -> Float[torch.Tensor, "n d"]:
        """Returns a vector a document, of any length; `inputs` are on the device."""

    def embed(self, documents: Sequence[Document]) -> Float32[np.ndarray, "n d"]:
        """Returns one unit vector a document; see `Baseline`.

        Documents of like length share a batch; the same documents give the same bits.
        """
        for place, document in enumerate(documents):
            if not document.images and not text_of(document, ""):
                raise BaselineError(f"{self.name}: {_named(document, place)} has neither picture nor text to embed")
        order = sorted(
            range(len(documents)), key=lambda i: (len(documents[i].images), len(text_of(documents[i], "")), i)
        )
        size = self.options.batch_size
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        out = np.zeros((len(documents), self.size), np.float32)
        exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
        bar = tqdm(total=len(documents), desc=self.name, unit="document", disable=not self.options.progress)
        with torch.inference_mode(), exact, bar:
            read = _ahead(lambda rows: self.read([documents[i] for i in rows]), batches)
            for rows, inputs in zip(batches, read, strict=True):
                inputs.tensors = {name: value.to(self.device) for name, value in inputs.tensors.items()}
                out[rows] = torch.nn.functional.normalize(self.forward(inputs).float(), dim=-1).cpu().numpy()
                self.counts.update(documents=len(rows), pictures=inputs.pictures, cut_texts=inputs.cut_texts)
                bar.update(len(rows))
        wrong = np.flatnonzero(~(np.abs(np.linalg.norm(out, axis=1) - 1) < 1e-3))  # a zero vector, NaN, infinity
        if len(wrong):
            first = _named(documents[wrong[0]], int(wrong[0]))
            raise BaselineError(f"{self.name}: {len(wrong)} vectors are zero or no numbers, the first that of {first}")
        return out

    def weights(self, cls: type, config: Any, optional: Sequence[str] = (), **more: Any) -> torch.nn.Module:
        """Returns a transformers model with the folder's weights, every one of them.

        Args:
            cls: the class; code in the folder is never run.
            config: of the model.
            optional: names of parameters that need not be in the files, as they are not used.
            more: for from_pretrained.

        Raises:
            BaselineError: a parameter is missing, left over or of another shape, or a file is broken.
        """
        log = transformers.utils.logging
        shows, level = log.is_progress_bar_enabled(), log.get_verbosity()
        log.set_verbosity_error()  # what it warns of is an error here, told below
        if not self.options.progress:
            log.disable_progress_bar()
        try:
            model, info = cls.from_pretrained(
                self.folder.path, config=config, dtype=self.dtype, local_files_only=True, use_safetensors=True,
                output_loading_info=True, ignore_mismatched_sizes=True, **more,
            )  # fmt: skip
        except Exception as error:  # damaged files raise nearly anything
            raise BaselineError(f"{self.folder.path}: the weights cannot be loaded: {shown(error)}") from error
        finally:
            log.set_verbosity(level)
            if shows:
                log.enable_progress_bar()
        problems = {
            "missing": sorted(set(info["missing_keys"]) - set(optional)),
            "left over": sorted(k for k in info["unexpected_keys"] if not k.endswith(_BUFFERS)),
            "of another shape": sorted(str(k) for k in info["mismatched_keys"]),
        }
        told = [f"{len(names)} {what} ({', '.join(names[:5])})" for what, names in problems.items() if names]
        if told:
            raise BaselineError(f"{self.folder.path}: the weights do not fit its config: {'; '.join(told)}")
        return model

    def picture_processor(self) -> Any:
        """Returns the folder's picture processor in its Pillow form, the same with and without torchvision."""
        try:
            return transformers.AutoImageProcessor.from_pretrained(
                self.folder.path, backend="pil", local_files_only=True, trust_remote_code=False
            )
        except Exception as error:
            raise BaselineError(
                f"{self.folder.path}: preprocessor_config.json cannot be used: {shown(error)}"
            ) from error


def text_of(document: Document, separator: str) -> str:
    """Returns the texts of a document in order, joined; a baseline knows no roles."""
    return separator.join(segment.text.strip() for segment in document.segments)


def pictures_of(document: Document) -> list[Image.Image]:
    """Returns the pictures of a document, whole and upright, RGB.

    Raises:
        ImageError: names the picture that cannot be read.
    """
    return [pad_to_aspect(load(ref.path), MAX_ASPECT) for ref in document.images]


def mean_by_owner(
    vectors: Float[torch.Tensor, "m d"], owners: Sequence[int], documents: int
) -> Float[torch.Tensor, "documents d"]:
    """Returns the unit mean of the unit vectors of every document, float32; zeros where a document has none."""
    counts = np.bincount(owners, minlength=documents).tolist()
    parts = torch.nn.functional.normalize(vectors.float(), dim=-1).split(counts)  # owners rise
    return torch.nn.functional.normalize(torch.stack([part.sum(0) for part in parts]), dim=-1)


def _ahead(function: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
    """Yields the function's results in order, while threads work on the next ones."""
    waiting: collections.deque[concurrent.futures.Future] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _device(name: str, baseline: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise BaselineError(f"{baseline}: the device {name!r} cannot be used: {shown(error)}") from error
    return device


def _named(document: Document, place: int) -> str:
    return document.name or f"document {place}"
