"""Our side of the comparison: documents of the oracle packed into one batch, and the model run on one device."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from oracle import IMAGE_PAD, Expected

from moon_jax.config import MeshConfig, ModelConfig, MoEConfig, Role, VisionConfig
from moon_jax.data.documents import EncodedDocument
from moon_jax.data.images import patchify
from moon_jax.data.packing import BatchShape, pack
from moon_jax.models.moon import abstract
from moon_jax.parallel.mesh import BATCH_SPEC, make_mesh, place_batch, shardings

DENSE = MoEConfig(experts=0)


def encode(document: Expected, vision: VisionConfig) -> EncodedDocument:
    """The document with the oracle's ids and our own pixels, which equal every frame of the oracle's."""
    factor = vision.patch_size * vision.spatial_merge_size
    pictures = tuple(patchify(image, vision, min_pixels=factor**2, max_pixels=10**8) for image in document.images)
    for picture, theirs, grid in zip(pictures, document.pixels, document.grids, strict=True):
        assert picture.grid == grid
        frames = theirs.reshape(-1, vision.in_channels, vision.temporal_patch_size, vision.patch_size**2)
        for frame in range(vision.temporal_patch_size):
            wanted = frames[:, :, frame].reshape(picture.patches.shape)
            np.testing.assert_allclose(picture.patches, wanted, rtol=0, atol=2e-5)
    roles = np.where(document.ids == IMAGE_PAD, Role.IMAGE, Role.TITLE).astype(np.int32)
    return EncodedDocument(document.ids, roles, pictures)


def pack_together(documents: Sequence[EncodedDocument], vision: VisionConfig) -> dict[str, np.ndarray]:
    """One shard in which documents share rows and pictures share slots, both with padding left over."""
    longest = max(len(d.tokens) for d in documents)
    pictures = [p for d in documents for p in d.pictures]
    largest = max((len(p.patches) for p in pictures), default=1)
    shape = BatchShape(
        rows=len(documents),
        row_tokens=longest + min(len(d.tokens) for d in documents) + 3,
        image_slots=max(len(pictures), 1),
        slot_patches=math.ceil(3 * largest / vision.window_patches + 1) * vision.window_patches,
        documents=len(documents) + 1,
    )
    batch = pack(documents, shape, vision)
    assert (batch["segment_ids"] == 2).any() or len(documents) < 2
    assert (batch["patch_picture"] == 2).any() or len(pictures) < 2
    return batch


def run(params: Any, config: ModelConfig, batch: dict[str, np.ndarray], documents: int) -> dict[str, np.ndarray]:
    """Visual tokens [I * P / merge_unit, D], hidden states [R, S, D] and embeddings [documents, D] of one shard."""
    visual, hidden, embeddings = jax.jit(forward(config, documents))(place_params(params, config), place(batch))
    return {"visual": np.asarray(visual)[0], "hidden": np.asarray(hidden)[0], "embeddings": np.asarray(embeddings)[0]}


def place(batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """The batch with its shard axis on the one device."""
    return place_batch({name: array[None] for name, array in batch.items()}, one_device())


def place_params(params: Any, config: ModelConfig) -> Any:
    """The loaded arrays on the one device, with the shardings that the model asks for."""
    return jax.device_put(params, shardings(abstract(config, DENSE)[2], one_device()))


def one_device() -> jax.sharding.Mesh:
    return make_mesh(MeshConfig(data=1), jax.devices()[:1])


def forward(config: ModelConfig, documents: int):
    """The function (params, batch [1, ...]) -> visual tokens, hidden states, embeddings, each with a shard axis."""
    graphdef, _, specs = abstract(config, DENSE)

    def shard(params, batch):
        batch = {name: array[0] for name, array in batch.items()}
        model = nnx.merge(graphdef, params)
        visual = model.vision(*(batch[n] for n in ("patches", "patch_picture", "patch_window", "patch_positions")))
        fields = ("image_slots", "segment_ids", "positions", "roles")
        hidden, _ = model.text(batch["tokens"], visual, *(batch[n] for n in fields))
        embeddings, _ = model.embed(batch, documents)
        return visual[None], hidden[None], embeddings[None]

    return jax.shard_map(shard, mesh=one_device(), in_specs=(specs, BATCH_SPEC), out_specs=(BATCH_SPEC,) * 3)


def tokens_of(batch: dict[str, np.ndarray], document: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows, columns) of a document's tokens, in their order."""
    owner = np.take_along_axis(batch["document_of_segment"], batch["segment_ids"], axis=1)
    return np.nonzero(owner == document)
