"""Our side of the comparison: documents of the oracle packed into one batch or one a row, and the model run on them."""

import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from oracle import IMAGE_PAD, TILES, Expected
from PIL import Image

from moon_jax.config import MeshConfig, ModelConfig, MoEConfig, Role, VisionConfig
from moon_jax.data.documents import EncodedDocument
from moon_jax.data.packing import BatchShape, pack
from moon_jax.data.patches import Picture, patchify
from moon_jax.data.prompts import EncodedPrompt, prompt_batch, prompt_shape
from moon_jax.hf.config import read_config
from moon_jax.hf.load import HFSource
from moon_jax.models import head as heads
from moon_jax.models.generate import NOTHING, Generator
from moon_jax.models.moon import abstract
from moon_jax.parallel.mesh import BATCH_AXES, BATCH_SPEC, batch_shards, host_shards, make_mesh, place_batch, shardings
from moon_jax.weights.source import LM_HEAD, nested

DENSE = MoEConfig(experts=0)


@dataclasses.dataclass(frozen=True)
class Ours:
    """A loaded model: numpy parameters, the output head [vocabulary, D] where it is not tied, sizes."""

    params: Any
    head: np.ndarray | None
    config: ModelConfig


def load(folder: pathlib.Path) -> Ours:
    """The model of a checkpoint folder, in float32."""
    config, info = read_config(folder)
    with HFSource(folder, config, tied=info.tied) as source:
        leaves = {name: source.read(name).astype(np.float32) for name in source.leaves}
    head = leaves.pop(LM_HEAD, None)
    return Ours(nested(leaves), head, config)


def encode(document: Expected, vision: VisionConfig) -> EncodedPrompt:
    """The document with the oracle's ids and our own pixels, which have the oracle's grids."""
    pictures = tuple(prepare(image, vision) for image in document.images)
    assert [picture.grid for picture in pictures] == list(document.grids)
    roles = np.where(document.ids == IMAGE_PAD, Role.IMAGE, Role.TITLE).astype(np.int32)
    return EncodedPrompt(document.ids, roles, pictures)


def prepare(image: Image.Image, vision: VisionConfig) -> Picture:
    """Our pixels of a picture, at the oracle's pixel budget."""
    if vision.kind == "internvl":
        return patchify(image, vision, min_pixels=1, max_pixels=TILES * vision.intern.image_size**2)
    return patchify(image, vision, min_pixels=(vision.patch_size * vision.spatial_merge_size) ** 2, max_pixels=10**8)


def pixel_error(encoded: EncodedDocument, document: Expected, vision: VisionConfig) -> float:
    """The largest difference of our pixels to any of the oracle's frames, which are equal to each other."""
    worst = 0.0
    for picture, theirs in zip(encoded.pictures, document.pixels, strict=True):
        if vision.kind == "internvl":
            theirs = _patches_of_tiles(theirs, vision)
        frames = theirs.reshape(-1, vision.in_channels, vision.temporal_patch_size, vision.patch_size**2)
        mine = picture.patches.reshape(-1, vision.in_channels, 1, vision.patch_size**2)
        worst = max(worst, float(np.abs(frames - mine).max()))
    return worst


def _patches_of_tiles(tiles: np.ndarray, vision: VisionConfig) -> np.ndarray:
    """Tiles [n, 3, side, side] as [patches, 3 * patch * patch], the four of a visual token side by side."""
    p, n = vision.patch_size, vision.tile_tokens
    cut = tiles.reshape(-1, 3, n, 2, p, n, 2, p).transpose(0, 2, 5, 3, 6, 1, 4, 7)
    return cut.reshape(-1, 3 * p * p)


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


def one_device() -> Mesh:
    return make_mesh(MeshConfig(data=1), jax.devices()[:1])


def place(batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """The batch with its shard axis on the one device."""
    return place_batch({name: array[None] for name, array in batch.items()}, one_device())


def place_params(params: Any, config: ModelConfig, moe: MoEConfig = DENSE, mesh: Mesh | None = None) -> Any:
    """The loaded arrays on a mesh (default: the one device), with the shardings that the model asks for."""
    mesh = mesh or one_device()
    return jax.device_put(params, shardings(abstract(config, moe, mesh)[2], mesh))


def place_head(model: Ours, mesh: Mesh | None = None) -> jax.Array | None:
    """The untied head on a mesh, None where there is none."""
    if model.head is None:
        return None
    mesh = mesh or one_device()
    return jax.device_put(model.head, NamedSharding(mesh, heads.head_spec(model.head.shape, mesh)))


def run(model: Ours, batch: dict[str, np.ndarray], documents: int, moe: MoEConfig = DENSE) -> dict[str, np.ndarray]:
    """Visual tokens [I * P / merge_unit, D], hidden states [R, S, D], logits [R, S, V] and embeddings of one shard."""
    fn = jax.jit(forward(model.config, documents, moe, model.head is None))
    out = fn(place_params(model.params, model.config, moe), place(batch), place_head(model))
    return {name: np.asarray(array, np.float32)[0] for name, array in out.items()}


def forward(config: ModelConfig, documents: int, moe: MoEConfig = DENSE, tied: bool = True):
    """The function (params, batch [1, ...], head) -> {visual, hidden, logits, embeddings}, each with a shard axis."""
    graphdef, _, specs = abstract(config, moe, one_device())

    def shard(params, batch, head=None):
        batch = {name: array[0] for name, array in batch.items()}
        model = nnx.merge(graphdef, params)
        hidden, _ = model.hidden(batch)
        table = heads.gather_head(model.text.embed[...] if head is None else head, config.dtype)
        embeddings, _ = model.embed(batch, documents)
        out = {
            "visual": model.visual(batch), "hidden": hidden, "logits": heads.logits(hidden, table),
            "embeddings": embeddings,
        }  # fmt: skip
        return {name: array[None] for name, array in out.items()}

    head_spec = heads.head_spec((config.text.vocab_size, config.text.hidden_size), one_device())
    in_specs = (specs, BATCH_SPEC) if tied else (specs, BATCH_SPEC, head_spec)
    out_specs = dict.fromkeys(("visual", "hidden", "embeddings"), BATCH_SPEC)
    out_specs["logits"] = P(BATCH_AXES, None, None, "tensor")
    mapped = jax.shard_map(shard, mesh=one_device(), in_specs=in_specs, out_specs=out_specs)
    return (lambda params, batch, _=None: mapped(params, batch)) if tied else mapped


def tokens_of(batch: dict[str, np.ndarray], document: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows, columns) of a document's tokens, in their order."""
    owner = np.take_along_axis(batch["document_of_segment"], batch["segment_ids"], axis=1)
    return np.nonzero(owner == document)


def rows_of(
    prompts: Sequence[EncodedPrompt], vision: VisionConfig, side: str, mesh: Mesh | None = None
) -> dict[str, np.ndarray]:
    """The prompts one a row, dealt out over the batch shards of a mesh (default: the one device)."""
    mesh = mesh or one_device()
    shards = batch_shards(mesh)
    shape = prompt_shape(prompts, -(-len(prompts) // shards), shards, vision)
    return prompt_batch(prompts, shape, vision, host_shards(mesh), side)


def generate(
    model: Ours, prompts: Sequence[EncodedPrompt], new: int, eos: Sequence[int] = (), sides: Sequence[str] = ("left",),
    moe: MoEConfig = DENSE, mesh: Mesh | None = None,
) -> list[list[list[int]]]:  # fmt: skip
    """For each side of the padding the continuation of every prompt, without NOTHING."""
    mesh = mesh or one_device()
    generator = Generator(model.config, moe, mesh)
    params, head = place_params(model.params, model.config, moe, mesh), place_head(model, mesh)
    out = []
    for side in sides:
        tokens = generator(params, rows_of(prompts, model.config.vision, side, mesh), new, eos, head)
        assert (tokens[len(prompts) :] == NOTHING).all()
        out.append([row[row != NOTHING].tolist() for row in tokens[: len(prompts)]])
    return out
