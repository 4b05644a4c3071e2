"""The multiplications of a training step, counted by hand: two for each multiply-add, matrix products only.

Every weight matrix meets every token of its part once: forward one product, backward two (for what comes in, for the
weight itself), and one again where remat computes a layer twice. What attention multiplies depends on how it is
implemented (attention_work.py). The norms, activations and the optimizer are left out: below one in a hundred.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from moon_jax.config import Config, MeshConfig, MoEConfig
from moon_jax.data.packing import BatchShape
from moon_jax.parallel.mesh import abstract_mesh
from moon_jax.planning.attention_work import attention_products
from moon_jax.training.state import Trainer
from moon_jax.weights.source import named

LAYERS = ("vision/blocks/", "text/layers/")
NO_PRODUCTS = ("norm", "bias", "layer_scale", "class_token", "position_table")
EXPERTS = ("gate", "up", "down")  # under text/layers/moe/


@dataclasses.dataclass(frozen=True)
class Part:
    """Products of one part of the model in one step, of one device."""

    forward: float
    backward: float = 0.0
    again: float = 0.0  # computed a second time by remat

    @property
    def total(self) -> float:
        """All of them."""
        return self.forward + self.backward + self.again

    def __add__(self, other: "Part") -> "Part":
        return Part(self.forward + other.forward, self.backward + other.backward, self.again + other.again)


def step_flops(trainer: Trainer, shape: BatchShape, expert_rows: float) -> dict[str, Part]:
    """Returns {"vision" | "merger" | "text" | "experts" | "attention" | "pooling" | "loss": products} of one device.

    Args:
        trainer: its config, parameters and mesh.
        shape: of one batch shard.
        expert_rows: rows that the experts of one device multiply with an expert's matrices in one layer, whole experts
            counted: with hidden widths that are sharded, each device does its slice of every row.
    """
    config, mesh = trainer.config, trainer.mesh.shape
    tokens, patches = shape.rows * shape.row_tokens, shape.image_slots * shape.slot_patches
    counts = {"vision": patches, "merger": patches // config.model.vision.merge_unit, "text": tokens}
    recompute = config.model.remat != "none"
    specs, learning = named(trainer.specs), named(trainer.split(trainer.shapes)[0])
    tower_learns = "vision/patch_embed" in learning
    parts: dict[str, Part] = {}

    def add(name: str, part: Part) -> None:
        parts[name] = parts.get(name, Part(0.0)) + part

    for name, leaf in named(trainer.shapes).items():
        place = "merger" if name.startswith("vision/merger/") else name.split("/")[0]
        last = name.split("/")[-1]
        if any(word in last for word in NO_PRODUCTS) or name == "text/embed":
            continue
        rows, part = float(counts[place]), place
        in_tile = name.startswith("vision/blocks/") and config.model.vision.kind == "internvl"
        if in_tile:
            rows *= 1 + 1 / config.model.vision.window_patches  # the class token
        size = math.prod(leaf.shape) / _ways(specs[name], mesh)
        if name.startswith("text/layers/moe/") and last in EXPERTS:  # rows are those of whole experts
            rows, part = expert_rows, "experts"
            size = math.prod(leaf.shape) / leaf.shape[1] / (mesh["tensor"] if "tensor" in axes_of(specs[name]) else 1)
        if last == "patch_embed":
            size /= leaf.shape[0]  # the kernel's frames are added up first
        forward = 2 * rows * size
        passed_on = place != "vision" or (tower_learns and last != "patch_embed")  # something before it learns
        backward = forward * ((name in learning) + passed_on)
        twice = (
            recompute
            and name.startswith(LAYERS)
            and passed_on
            and (
                last != "down" or part == "experts" or in_tile  # whose LayerScale learns from what comes out of it
            )
        )
        add(part, Part(forward, backward, forward if twice else 0.0))

    for part in _attention(trainer, shape, tower_learns):
        add("attention", part)
    text = config.model.text
    pooling = 2.0 * tokens * shape.documents * text.hidden_size
    add("pooling", Part(pooling, pooling))
    triplets = shape.documents // 3
    candidates = 2 * config.train.batch_size * (config.loss.ring_batches + 1)
    loss = 2.0 * triplets * candidates * text.hidden_size
    add("loss", Part(loss, 2 * loss))
    return parts


def _attention(trainer: Trainer, shape: BatchShape, tower_learns: bool) -> Iterator[Part]:
    """Yields the products of the language model's layers, of the tower's blocks on pictures and of those on windows."""
    model, mesh, specs = trainer.config.model, trainer.mesh.shape, named(trainer.specs)
    text, vision, impl = model.text, model.vision, model.attention_impl
    shapes = {name: leaf.shape for name, leaf in named(trainer.shapes).items()}
    q_heads = math.prod(shapes["text/layers/q"][2:-1]) / _ways(specs["text/layers/q"][2:], mesh)
    v_heads = vision.num_heads / _ways(specs["vision/blocks/proj"][1:3], mesh)
    full, patches = len(set(vision.full_blocks)), shape.image_slots * shape.slot_patches
    causal = model.attention == "causal"
    windows = (vision.depth - full) * patches // vision.window_patches
    tiles = vision.kind == "internvl"  # with their class tokens; windows are in plain XLA whatever the setting
    of_windows, within = (impl, vision.window_patches + 1) if tiles else ("xla", vision.window_patches)
    for heads, products, learns in (
        (shape.rows * q_heads * text.num_hidden_layers,
         attention_products(impl, shape.row_tokens, text.head_dim, causal), True),
        (shape.image_slots * v_heads * full,
         attention_products(impl, shape.slot_patches, vision.head_dim, False), tower_learns),
        (windows * v_heads, attention_products(of_windows, within, vision.head_dim, False), tower_learns),
    ):  # fmt: skip
        forward, backward = heads * products.forward, heads * products.backward
        yield Part(forward, backward, forward * (model.remat != "none")) if learns else Part(forward)


def model_flops(trainer: Trainer, shape: BatchShape) -> float:
    """Returns the products of one device that the model itself asks for: what MFU counts.

    Nothing computed twice, a token visits top_k experts (the guided ones are left out: few tokens visit them), causal
    attention sees half of the pairs, and devices that compute the same share it. Padding of the batch counts as work:
    the static shape is what a step computes.
    """
    config, mesh = trainer.config, trainer.mesh
    moe = dataclasses.replace(config.moe, strategy=MoEConfig.strategy, placement=MoEConfig.placement)
    model = dataclasses.replace(config.model, attention_impl="xla")  # which computes no scores twice
    whole = _on_one_device(dataclasses.replace(config, mesh=MeshConfig(1, 1, 1, 1), moe=moe, model=model))
    tokens = shape.rows * shape.row_tokens
    parts = step_flops(whole, shape, float(tokens * config.moe.top_k))
    total = sum(part.forward + part.backward for part in parts.values())
    text = config.model.text
    causal = config.model.attention == "causal"
    half = 2 * tokens * shape.row_tokens * text.num_attention_heads * text.head_dim * text.num_hidden_layers * 3
    return (total - half * causal) / mesh.shape["tensor"]


@functools.lru_cache(maxsize=4)
def _on_one_device(config: Config) -> Trainer:
    return Trainer(config, abstract_mesh(config.mesh))


def axes_of(spec: Iterable[Any]) -> tuple[str, ...]:
    """Returns the mesh axes that a PartitionSpec (or a part of one) names."""
    return tuple(name for entry in spec if entry for name in (entry if isinstance(entry, tuple) else (entry,)))


def _ways(spec: Iterable[Any], mesh_shape: Mapping[str, int]) -> int:
    """Returns over how many devices the gathered weight stays split: all axes but `fsdp`."""
    return math.prod(mesh_shape[name] for name in axes_of(spec) if name != "fsdp")
