"""The memory of a training step, estimated from the sizes of its arrays: good to rank by, not to rely on.

What compilers make of a layer differs by a third from this; `compiling` has the truth.
"""

import math

import jax.numpy as jnp

from moon_jax.config import Config
from moon_jax.data.packing import BatchShape
from moon_jax.planning.flops import axes_of
from moon_jax.planning.moe_work import MoEWork
from moon_jax.training.plan import device_bytes
from moon_jax.training.state import Trainer
from moon_jax.weights.source import named


def estimated_bytes(trainer: Trainer, shape: BatchShape, moe: MoEWork | None) -> dict[str, int]:
    """Returns the bytes on one device by what they are for; they add up to the peak.

    Args:
        trainer: config, parameters and mesh.
        shape: of a batch shard.
        moe: of one layer; None without experts.
    """
    config = trainer.config
    text, vision, width = config.model.text, config.model.vision, jnp.dtype(config.model.dtype).itemsize
    stream = shape.rows * shape.row_tokens * text.hidden_size * width
    picture = shape.image_slots * shape.slot_patches * vision.hidden_size * width
    layers = {
        "text": _text_layer(trainer, shape, moe, stream, width),
        "vision": _vision_layer(trainer, shape, picture, width),
        "embedding": (width + 4) * _gathered(trainer, "text/embed", 0),
    }
    kept = moe.arrivals * text.num_hidden_layers if moe and config.model.remat == "layer" else 0
    saved = stream * text.num_hidden_layers + picture * vision.depth
    if config.model.remat == "none":
        saved = layers["text"] * text.num_hidden_layers + layers["vision"] * vision.depth
    parts = device_bytes(trainer, shape) | {
        "saved for the backward pass": saved,
        "kept by dispatch": kept,
        "the largest layer": max(layers.values()),
    }
    return {name: round(size) for name, size in parts.items()}


def _gathered(trainer: Trainer, prefix: str, stacked: int) -> float:
    """Returns how many numbers the weights under a name have on a device, gathered over fsdp, of one layer."""
    mesh, specs = trainer.mesh.shape, named(trainer.specs)
    return sum(
        math.prod(leaf.shape[stacked:]) / math.prod(mesh[axis] for axis in axes_of(specs[name]) if axis != "fsdp")
        for name, leaf in named(trainer.shapes).items()
        if name.startswith(prefix)
    )


def _ways(trainer: Trainer, name: str) -> int:
    """Returns over how many devices `tensor` splits the block of a weight."""
    return trainer.mesh.shape["tensor"] if "tensor" in axes_of(named(trainer.specs)[name]) else 1


def _text_layer(trainer: Trainer, shape: BatchShape, moe: MoEWork | None, stream: int, width: int) -> float:
    text = trainer.config.model.text
    size = width * _gathered(trainer, "text/layers/", 1) + 8 * stream
    pairs = shape.rows * shape.row_tokens**2 * text.num_attention_heads / _ways(trainer, "text/layers/q")
    size += _scores(trainer.config, pairs, width)
    tensor = trainer.mesh.shape["tensor"]
    hidden = text.intermediate_size / (tensor if text.intermediate_size % tensor == 0 else 1)
    if moe is None:
        return size + 4 * stream / text.hidden_size * hidden
    one_gradient = 4 * _gathered(trainer, "text/layers/moe/gate", 1)
    return size + moe.rows * (3 * hidden + 3 * text.hidden_size) * width + 4 * moe.arrivals + one_gradient


def _vision_layer(trainer: Trainer, shape: BatchShape, picture: int, width: int) -> float:
    vision = trainer.config.model.vision
    patches = shape.image_slots * shape.slot_patches
    hidden = patches * vision.intermediate_size / _ways(trainer, "vision/blocks/up") * width
    reach = shape.slot_patches if vision.full_blocks else vision.window_patches
    pairs = patches * reach * vision.num_heads / _ways(trainer, "vision/blocks/proj")
    scores = _scores(trainer.config, pairs, width)
    return (width + 4) * _gathered(trainer, "vision/blocks/", 1) + 8 * picture + 4 * hidden + scores


def _scores(config: Config, pairs: float, width: int) -> float:
    """Returns the bytes of the attention weights where they exist: only the plain implementation writes them down."""
    return 3.0 * pairs * width if config.model.attention_impl == "xla" else 0.0
