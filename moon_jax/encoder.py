"""The library's door: `moon_jax.load` returns an `Encoder`, which turns records into unit vectors."""

import contextlib
import dataclasses
import functools
import itertools
import logging
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, Float32
from tqdm import tqdm

from moon_jax.config import Config, ConfigError, MeshConfig
from moon_jax.data import images
from moon_jax.data import prompts as chat
from moon_jax.data.documents import Document
from moon_jax.data.embed_records import Reader
from moon_jax.data.records import DataError
from moon_jax.data.sources import lines
from moon_jax.data.store import open_store
from moon_jax.data.tokenizer import Tokenizer
from moon_jax.models import head as heads
from moon_jax.models import moon
from moon_jax.parallel.mesh import batch_shards, check_divisible, make_mesh
from moon_jax.training.answerer import Answerer
from moon_jax.training.embedder import Embedder, Part, window_documents
from moon_jax.training.pretrained import Pretrained, open_pretrained
from moon_jax.weights.source import LM_HEAD, Source, WeightsError, place
from moon_jax.weights.spec import describe, parse

_LOG = logging.getLogger(__name__)
DTYPES = ("bfloat16", "float32")
ITERATOR_SHARE = 8  # an iterator is read in windows so much smaller than a list, for it may hold pictures


class Encoder:
    """A model with its weights, tokenizer and settings: what `moon_jax.load` returns.

    Attributes:
        config: the sizes of the model, and the settings of pictures, prompts and texts that came with it.
        mesh: where the parameters lie.
        tokenizer: of the model.
        params: the parameters, sharded.
    """

    def __init__(
        self,
        config: Config,
        mesh: Mesh,
        tokenizer: Tokenizer,
        params: Any,
        place_head: Callable[[], Float[Array, "v d"]] | None = None,
    ):
        """Binds parameters to their settings.

        Args:
            config: `model`, `moe` and `data` are used.
            mesh: where the parameters lie.
            tokenizer: of the model.
            params: nested dict of arrays, sharded as `moon.abstract` says.
            place_head: gives the output head where it is not tied to the token embedding, for `generate`.
        """
        self.config, self.mesh, self.tokenizer, self.params = config, mesh, tokenizer, params
        self._place_head = place_head
        self._embedder = Embedder(config, mesh, tokenizer)

    @functools.cached_property
    def _answerer(self) -> Answerer:
        return Answerer(self.config, self.mesh, self.tokenizer, self.head)

    def head(self) -> Float[Array, "v d"] | None:
        """Returns the output head, read once; None where it is the token embedding.

        Raises:
            WeightsError: it was left out of the checkpoint (training leaves an untied one out).
        """
        return self._head

    @functools.cached_property
    def _head(self) -> Float[Array, "v d"] | None:
        return self._place_head() if self._place_head else None

    @property
    def width(self) -> int:
        """Numbers in an embedding."""
        return self.config.model.text.hidden_size

    def encode(
        self,
        records: Iterable[Any],
        *,
        batch_size: int = 32,
        kind: str = "plain",
        image_store: str | pathlib.Path | None = None,
        on_error: str = "raise",
        progress: bool = False,
    ) -> Float32[np.ndarray, "n d"]:
        """Returns float32 unit vectors in the order of the records, on every process.

        A vector depends on its record alone. Records are sorted by size and batched with others like them; pictures are
        read when their batch is due, so that any number of them can be encoded. An iterator is read piece by piece.

        Args:
            records: dicts with any of id, text or title, description, category, attributes, images and boxes (see
                `moon_jax.data.embed_records`), or plain texts. Paths of pictures are relative to the current folder.
            batch_size: records of a batch on one device (one batch shard); fewer of very long ones.
            kind: "plain" takes a record as it stands, without a prompt. "query" and "item" have the prompt and the
                limits that the model was trained with; an item shows its first `config.data.images_per_item` pictures,
                and its description only if listings had theirs in training.
            image_store: a packed image store (moon_jax.pack_images, moon_jax.download). A picture is looked up in it by
                its path as given or its URL; one that it does not hold is read from its file.
            on_error: "skip" gives a record that cannot be used, or one of whose pictures cannot be read, a row of NaN
                and a warning in the log; "raise" stops.
            progress: show a bar.

        Raises:
            DataError: names the records that cannot be used and what is wrong with them; no image store is there.
        """
        if isinstance(records, (str, bytes, Mapping)):
            raise DataError("encode takes a list of records (or an iterator); put a single one into a list")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error is 'raise' or 'skip', not {on_error!r}")
        store = None if image_store is None else open_store(str(pathlib.Path(image_store).expanduser().absolute()))
        reader = Reader(kind, self.config.data, pathlib.Path.cwd(), store)
        size = window_documents(batch_size, self.mesh)
        total = len(records) if isinstance(records, Sequence) else None
        if total is None:  # its pictures may be in memory
            size = max(1, size // ITERATOR_SHARE)
        if total is not None and on_error == "raise":  # all errors at once, before anything is computed
            records = reader.documents(records)
        numbered = enumerate(records)
        blocks: list[np.ndarray] = []
        cut_texts = 0

        def windows() -> Iterator[list[Document | None]]:
            while window := [self._document(reader, *pair, on_error) for pair in itertools.islice(numbered, size)]:
                blocks.append(np.full((len(window), self.width), np.nan, np.float32))
                yield window

        with tqdm(total=total, unit="record", desc="encoding", disable=not progress or jax.process_index() != 0) as bar:
            for part in self.parts(windows(), batch_size=batch_size, on_error=on_error):
                kept = ~np.isin(part.rows, list(part.left_out))
                blocks[part.window][part.rows[kept]] = part.vectors[kept]
                cut_texts += part.info["cut_texts"]
                bar.update(len(part.rows))
        if cut_texts:
            _LOG.warning("%d texts are longer than this model was trained to read, and were cut", cut_texts)
        if store is not None and reader.looked_up[False]:
            _LOG.warning("%d pictures are not in the image store %s", reader.looked_up[False], store.folder)
        for what, count in reader.unread.items():
            _LOG.warning("%d items have %s, which this model does not read", count, what)
        return np.concatenate([np.zeros((0, self.width), np.float32), *blocks])

    def _chat_parts(self, prompt: Any, name: str) -> list[chat.Part]:
        data, parts = dataclasses.replace(self.config.data, crop=False), []
        reader = Reader("plain", data, pathlib.Path.cwd())
        for part in [prompt] if isinstance(prompt, str) else prompt:
            if isinstance(part, str):
                parts.append(part)
            elif isinstance(part, Mapping) and part.keys() == {"image"}:
                document = reader.documents([{"images": [part["image"]]}])[0]
                parts += images.pictures(document, data, self.config.model.vision)
            else:
                raise DataError(f"{name}: a prompt is made of texts and {{'image': ...}}, not {lines.short(part)}")
        return parts

    @staticmethod
    def _document(reader: Reader, number: int, record: Any, on_error: str) -> Document | None:
        if isinstance(record, Document):
            return record
        try:
            return reader.documents([record], number)[0]
        except DataError as error:
            if on_error == "raise":
                raise
            _LOG.warning("skipped: %s", error)
            return None

    def encode_query(self, records: Iterable[Any], **settings: Any) -> Float32[np.ndarray, "n d"]:
        """Returns the vectors of what customers look for: `encode` with the prompt of queries."""
        return self.encode(records, kind="query", **settings)

    def encode_item(self, records: Iterable[Any], **settings: Any) -> Float32[np.ndarray, "n d"]:
        """Returns the vectors of listings: `encode` with the prompt of items."""
        return self.encode(records, kind="item", **settings)

    @staticmethod
    def similarity(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> Float32[np.ndarray, "n m"]:
        """Returns the cosine of every vector of `a` with every vector of `b`, both from `encode`."""
        return np.asarray(a, np.float32) @ np.asarray(b, np.float32).T

    def generate(
        self, prompts: Iterable[Any], max_new_tokens: int = 128, *, batch_size: int = 8, system: str = chat.SYSTEM
    ) -> list[str]:
        """Returns what a generative model answers to each prompt: greedy, without penalties, special tokens left out.

        A model that was trained for embeddings has no use for this.

        Args:
            prompts: each a text, or a list of texts and pictures in their order, where a picture is {"image": path,
                Pillow image or bytes}.
            max_new_tokens: an answer is cut there, unless it ended before.
            batch_size: prompts of a batch on one device (one batch shard).
            system: the message before the prompt; "" = none.

        Raises:
            ConfigError: attention is not causal.
            WeightsError: the output head was left out of the checkpoint (training leaves an untied one out).
            DataError: a prompt or a picture of it cannot be used.
        """
        vision, numbered = self.config.model.vision, enumerate(prompts)

        def batches() -> Iterator[list[chat.EncodedPrompt]]:
            while part := list(itertools.islice(numbered, batch_size * batch_shards(self.mesh))):
                yield [
                    chat.encode_chat(
                        self._chat_parts(prompt, f"prompt {number}"), self.tokenizer, vision, system=system
                    )
                    for number, prompt in part
                ]

        answers = self._answerer.answers(self.params, batches(), max_new_tokens, batch_size)
        return list(itertools.chain.from_iterable(answers))

    def parts(
        self,
        windows: Iterable[Sequence[Document | None]],
        *,
        start: tuple[int, int] = (0, 0),
        batch_size: int = 32,
        on_error: str = "raise",
        alike: bool = False,
    ) -> Iterator[Part]:
        """Yields the vectors of documents batch by batch: `Embedder.parts` with this encoder's parameters.

        With `on_error` = "skip" a document of which a picture cannot be read is left out altogether. With `alike` the
        batches of a window have the same shapes on any number of devices, and so give the same bits on most backends.
        """
        return self._embedder.parts(
            self.params, windows, start=start, batch_documents=batch_size, on_error=on_error, whole=True, alike=alike
        )


def load(
    path: str | pathlib.Path,
    mesh: Mesh | MeshConfig | None = None,
    dtype: str | None = None,
    *,
    max_pixels: int | None = None,
    progress: bool = False,
    verify: bool = False,
) -> Encoder:
    """Returns the encoder of a checkpoint.

        encoder = moon_jax.load("runs/shop")
        vectors = encoder.encode_item([{"title": "Warm coat", "images": ["coat.jpg"]}])
        scores = encoder.similarity(encoder.encode_query(["something warm"]), vectors)

    Args:
        path: a Hugging Face folder of Qwen2.5-VL as it is, a converted model folder, a work folder of training, its
            checkpoints/ or one step in it.
        mesh: the devices; or the sizes of the mesh axes; None = a whole copy of the model on each device.
        dtype: "bfloat16" or "float32", of the weights and the computation; None = as the checkpoint is stored.
        max_pixels: instead of the model's own limit of a picture; changes the embeddings of larger ones. Hugging Face
            folders may allow pictures of millions of pixels.
        progress: show a bar in bytes.
        verify: check the digests of the files first.

    Raises:
        ConfigError: the mesh or the dtype does not fit.
        WeightsError: the folder cannot be used; names everything that is wrong with it.
    """
    found = open_pretrained(path, verify=verify)
    if max_pixels is not None:
        found = with_max_pixels(found, max_pixels)
    return from_pretrained(found, mesh, dtype, progress=progress)


def with_max_pixels(found: Pretrained, max_pixels: int) -> Pretrained:
    """Returns the opened checkpoint with another limit of a picture's pixels.

    Raises:
        WeightsError: it is smaller than the model's least number of pixels.
    """
    spec = dataclasses.replace(found.spec, data=dataclasses.replace(found.spec.data, max_pixels=max_pixels))
    return dataclasses.replace(found, spec=parse(describe(spec), f"max_pixels = {max_pixels}"))


def from_pretrained(
    found: Pretrained,
    mesh: Mesh | MeshConfig | None = None,
    dtype: str | None = None,
    *,
    progress: bool = False,
) -> Encoder:
    """Returns the encoder of an opened checkpoint; see `load`."""
    spec, source = found.spec, found.source
    with contextlib.suppress(TypeError):  # said below
        dtype = jnp.dtype(dtype or spec.model.dtype).name
    if dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r} must be one of {', '.join(DTYPES)}, or None for that of the checkpoint")
    if not isinstance(mesh, Mesh):
        mesh = make_mesh(mesh or MeshConfig())
    config = Config(model=dataclasses.replace(spec.model, dtype=dtype), moe=spec.moe, data=spec.data)
    words = found.load_tokenizer()
    _, shapes, specs = moon.abstract(config.model, config.moe, mesh)
    check_divisible(shapes, specs, mesh)
    stored = lambda path, x: jax.ShapeDtypeStruct(x.shape, "float32" if _is_router(path) else dtype)  # noqa: E731
    params = place(source, jax.tree_util.tree_map_with_path(stored, shapes), specs, mesh, progress=progress)
    place_head = None if spec.tied else functools.partial(_place_head, source, mesh, dtype)
    return Encoder(config, mesh, words, params, place_head)


def _place_head(source: Source, mesh: Mesh, dtype: str) -> Float[Array, "v d"]:
    if LM_HEAD not in source.leaves:
        raise WeightsError("the model has an output head of its own, which was left out of this checkpoint")
    leaf = source.leaves[LM_HEAD]
    sharding = NamedSharding(mesh, heads.head_spec(leaf.shape, mesh))
    read = lambda index: source.read(LM_HEAD, index).astype(dtype)  # noqa: E731
    return jax.make_array_from_callback(leaf.shape, sharding, read)


def _is_router(path: tuple[Any, ...]) -> bool:
    """Returns whether a parameter is one: float32 whatever the compute type, or tokens would go to other experts."""
    return jax.tree_util.keystr(path[-1:], simple=True) == "router"
