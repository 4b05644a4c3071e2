"""The analytic cost of a training step on a mesh: memory, products, bytes sent, time. Nothing is compiled.

The collectives of weights, activations and loss are counted by hand; what the MoE does is read from its traced program,
so that a new dispatch strategy needs no formula.
"""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Iterable

import jax.numpy as jnp

from moon_jax.config import Config
from moon_jax.data.packing import BatchShape
from moon_jax.parallel.mesh import BATCH_AXES
from moon_jax.planning.batch import planned_shape
from moon_jax.planning.flops import LAYERS, Part, axes_of, model_flops, step_flops
from moon_jax.planning.memory import estimated_bytes
from moon_jax.planning.moe_work import MoEWork, moe_work
from moon_jax.planning.network import Links, transfer_seconds
from moon_jax.training.state import Trainer
from moon_jax.weights.source import named

ATTAINABLE = 0.6  # share of the peak that matrix products of these sizes reach in practice, for predictions only

Transfers = dict[tuple[str, tuple[str, ...]], float]
"""(kind, mesh axes) -> bytes that the collectives of a step give out on one device."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one step, for one device. Bytes and seconds."""

    memory: dict[str, int]
    flops: dict[str, Part]
    model_flops: float  # what MFU counts
    transfers: Transfers
    arithmetic_seconds: float  # at the peak of the compute dtype
    network_seconds: float  # at the links' full speed, one collective after the other

    @property
    def peak_memory(self) -> int:
        """Sum of the parts."""
        return sum(self.memory.values())

    @property
    def step_seconds(self) -> float:
        """Predicted: products at `ATTAINABLE` of the peak, and nothing hides the collectives."""
        return self.arithmetic_seconds / ATTAINABLE + self.network_seconds


def cost_of(config: Config, trainer: Trainer, links: Links) -> Cost:
    """Returns the cost of the config's training step.

    Args:
        config: all settings.
        trainer: of this config on the mesh of `links`, or of one that differs in `moe.strategy` only.
        links: of a target and its mesh.
    """
    mesh = trainer.mesh.abstract_mesh
    shape = planned_shape(config, mesh)
    moe = moe_work(config, mesh, shape.rows * shape.row_tokens) if config.moe.experts else None
    flops = step_flops(trainer, shape, moe.rows if moe else 0.0)
    sent = transfers(trainer, shape, moe)
    total = sum(part.total for part in flops.values())
    return Cost(
        memory=estimated_bytes(trainer, shape, moe),
        flops=flops,
        model_flops=model_flops(trainer, shape),
        transfers=sent,
        arithmetic_seconds=total / links.target.chip.peak(config.model.dtype),
        network_seconds=sum(transfer_seconds(links, [(*k, v) for k, v in sent.items()], mesh.shape).values()),
    )


def transfers(trainer: Trainer, shape: BatchShape, moe: MoEWork | None) -> Transfers:
    """Returns the bytes of all collectives of a step, by kind and mesh axes.

    Args:
        trainer: config, parameters and mesh.
        shape: of a batch shard.
        moe: of one layer; None without experts.
    """
    config, mesh = trainer.config, trainer.mesh.shape
    out: Transfers = defaultdict(float)

    def send(kind: str, axes: Iterable[str], size: float | int) -> None:
        axes = tuple(name for name in mesh if name in axes and mesh[name] > 1)
        if axes:
            out[kind, axes] += size

    _weights(trainer, send)
    _activations(trainer, shape, send)
    if moe is not None:
        for transfer, count in moe.step.transfers.items():
            send(transfer.kind, transfer.axes, transfer.bytes * count * config.model.text.num_hidden_layers)
    loss = 4 * 2 * config.train.batch_size * config.model.text.hidden_size  # positives and negatives, float32
    send("all-gather", BATCH_AXES, loss * (1 + config.loss.ring_batches))
    send("reduce-scatter", BATCH_AXES, loss / math.prod(mesh[axis] for axis in BATCH_AXES))
    return dict(out)


def _weights(trainer: Trainer, send: Callable[[str, Iterable[str], float | int], None]) -> None:
    """Gathers of the weights but the experts' (in a layer again for the backward pass) and sums of their gradients."""
    config, mesh = trainer.config, trainer.mesh.shape
    width = jnp.dtype(config.model.dtype).itemsize
    specs, learning = named(trainer.specs), named(trainer.split(trainer.shapes)[0])
    tower_learns = "vision/patch_embed" in learning
    for name, leaf in named(trainer.shapes).items():
        if name.startswith("text/layers/moe/"):
            continue
        over = axes_of(specs[name])
        shard = math.prod(leaf.shape) / math.prod(mesh[axis] for axis in over)
        if "fsdp" in over:
            again = config.model.remat != "none" and name.startswith(LAYERS) and (tower_learns or "blocks" not in name)
            size = 4 if name == "vision/patch_embed" else width  # its frames are added up in float32
            send("all-gather", ("fsdp",), size * shard * mesh["fsdp"] * (1 + again))
            if name in learning:
                send("reduce-scatter", ("fsdp",), 4 * shard)
        if name in learning:
            send("all-reduce", [axis for axis in BATCH_AXES if axis not in over], 4 * shard)


def _activations(trainer: Trainer, shape: BatchShape, send: Callable[[str, Iterable[str], float | int], None]) -> None:
    """Sums over `tensor` of the blocks that are split there: one forward, one backward, attention's again in remat.

    Where the kv heads are whole and only the queries are split, the gradients of keys and values are summed, too.
    """
    model, specs = trainer.config.model, named(trainer.specs)
    text, vision, width = model.text, model.vision, jnp.dtype(model.dtype).itemsize
    stream = shape.rows * shape.row_tokens * text.hidden_size * width
    patches = shape.image_slots * shape.slot_patches
    picture = patches * vision.hidden_size * width
    attention = 2 + (model.remat != "none")
    sums = {
        "text/embed": stream,
        "text/layers/q": stream * text.num_hidden_layers * attention,
        "text/layers/ffn/gate": stream * text.num_hidden_layers * 2,
        "vision/blocks/proj": picture * vision.depth * attention,
        "vision/blocks/up": picture * vision.depth * 2,
        "vision/merger/fc1": picture + patches // vision.merge_unit * text.hidden_size * width,
    }
    split = {name for name, spec in specs.items() if "tensor" in axes_of(spec)}
    for name in sums.keys() & split:
        send("all-reduce", ("tensor",), sums[name])
    if "text/layers/q" in split and "text/layers/k" not in split:
        heads = 2 * text.num_key_value_heads * text.head_dim
        send("all-reduce", ("tensor",), stream / text.hidden_size * heads * text.num_hidden_layers)
