"""Our encoder for the tasks of `mteb` (Massive Text Embedding Benchmark, version 2), texts and pictures.

    import mteb, moon_jax
    from moon_jax.evaluation.mteb_adapter import MtebEncoder

    model = MtebEncoder(moon_jax.load("runs/shop"), "me/shop")
    mteb.evaluate(model, mteb.get_tasks(["STS12"]), encode_kwargs={"batch_size": 64})

mteb is imported only where it asks for the model's description; install it with `pip install mteb`. It fetches the data
of its tasks itself, unless they are on the machine already (HF_HUB_OFFLINE=1).
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from moon_jax.data.records import DataError
from moon_jax.encoder import Encoder

KINDS = {"query": "query", "document": "item"}  # mteb's prompt type -> the kind of document; none is "plain"
_TEXTS, _PICTURES = ("text", "query"), ("image",)


class MtebEncoder:
    """An `Encoder` as mteb's EncoderProtocol wants it.

    A query has the prompt of queries, a document that of listings, and what is neither (classification, similarity of
    sentences) is taken as it stands; so texts of documents are cut at `config.data.title_tokens`, others are not.
    """

    def __init__(self, encoder: Encoder, name: str = "moon_jax/moon", revision: str | None = None):
        """Binds an encoder.

        Args:
            encoder: as `moon_jax.load` gives it.
            name: of the model in mteb's results: ORGANISATION/MODEL.
            revision: of the weights, in the results.
        """
        self.encoder, self._name, self._revision = encoder, name, revision

    def encode(
        self, inputs: Iterable[Mapping[str, Any]], *, prompt_type: Any = None, **settings: Any
    ) -> Float32[np.ndarray, "n d"]:
        """Returns unit vectors in the order of the inputs.

        Args:
            inputs: batches (mteb's DataLoader): "text", and "image" with a Pillow image or a list of them, a list each.
            prompt_type: "query", "document" or None.
            settings: `batch_size` and `show_progress_bar` are used; the task, its split and subset change nothing.

        Raises:
            DataError: an input is neither a text nor a picture.
        """
        kind = "plain" if prompt_type is None else KINDS[getattr(prompt_type, "value", prompt_type)]
        return self.encoder.encode(
            _records(inputs),
            kind=kind,
            batch_size=settings.get("batch_size") or 32,
            progress=bool(settings.get("show_progress_bar")),
        )

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Float32[np.ndarray, "n m"]:
        """Returns the cosine of every vector with every other; each side is [n, d] or one vector [d]."""
        return self.encoder.similarity(_rows(embeddings1), _rows(embeddings2))

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Float32[np.ndarray, " n"]:
        """Returns the cosine of each vector with the one in its place on the other side."""
        return np.einsum("nd,nd->n", _rows(embeddings1), _rows(embeddings2))

    @property
    def mteb_model_meta(self) -> Any:
        """What mteb writes into its results (mteb.models.ModelMeta).

        Raises:
            ImportError: mteb is not installed.
        """
        try:
            from mteb.models.model_meta import ModelMeta, ScoringFunction
        except ImportError as error:
            raise ImportError("mteb is not installed: pip install 'mteb>=2'") from error
        import jax  # only for the sizes of arrays

        leaves = jax.tree.leaves(self.encoder.params)
        return ModelMeta(
            loader=None, name=self._name, revision=self._revision or "local", release_date=None, languages=None,
            n_parameters=sum(leaf.size for leaf in leaves),
            memory_usage_mb=sum(leaf.nbytes for leaf in leaves) / 2**20, max_tokens=None,
            embed_dim=self.encoder.width, license=None, open_weights=None, public_training_code=None,
            public_training_data=None, framework=["JAX"], similarity_fn_name=ScoringFunction.COSINE,
            use_instructions=False, training_datasets=None, modalities=["text", "image"],
        )  # fmt: skip


def _records(batches: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for batch in batches:
        texts = next((list(batch[name]) for name in _TEXTS if name in batch), None)
        pictures = next((list(batch[name]) for name in _PICTURES if name in batch), None)
        if texts is None and pictures is None:
            raise DataError(f"this model embeds texts and pictures; the task gives {', '.join(batch) or 'nothing'}")
        for number in range(len(texts if texts is not None else pictures)):
            text = "" if texts is None else texts[number]
            shown = [] if pictures is None or pictures[number] is None else pictures[number]
            yield {"text": text or "", "images": shown}


def _rows(vectors: Any) -> Float[np.ndarray, "n d"]:
    return np.atleast_2d(np.asarray(vectors, np.float32))
