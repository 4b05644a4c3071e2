"""What a run would be, worked out from its config alone: nothing is allocated, no data is read."""

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from moon_jax.config import Config
from moon_jax.data.grounding_batches import plan_shape
from moon_jax.data.packing import BatchShape, batch_shape
from moon_jax.parallel.mesh import AXES, abstract_mesh, batch_shards, is_spec
from moon_jax.training.state import Trainer

GIB = 2**30
_MOMENTS = {"adamw": "AdamW", "muon": "Muon and AdamW"}


def describe(config: Config) -> str:
    """Returns the table that `--dry-run` prints: parameters, mesh, negatives, tokens, bytes per device, steps.

    Raises:
        ConfigError: the model or the batch does not divide over the mesh.
    """
    mesh = abstract_mesh(config.mesh)
    trainer = Trainer(config, mesh)
    state = trainer.abstract_state()
    shards = batch_shards(mesh)
    triplets = config.train.batch_size // shards
    contrastive = config.loss.kind == "contrastive"
    shape = batch_shape(3 * triplets, config.data, config.model.vision) if contrastive else plan_shape(config, triplets)
    total, learning = _count(state.params), trainer.split(state.params)[0]
    active = total - _idle_parameters(config)
    k, batch = config.loss.ring_batches, config.train.batch_size
    per_device = device_bytes(trainer, shape)
    group = config.loss.group_size
    negatives = f"{2 * group - 1:,} (own group)" if group else f"{2 * batch * (k + 1) - 1:,} (k = {k})"
    visual = shape.image_slots * shape.slot_patches // config.model.vision.merge_unit
    rows = [
        ("run", config.name),
        ("parameters", f"{total:,} ({total / 1e9:.2f} B), of which {active:,} are used by one token"),
        ("trainable", _trainable(_count(learning), total, config)),
        ("mesh", " x ".join(f"{name}={mesh.shape[name]}" for name in AXES) + f" = {mesh.size} devices"),
        *(("replicated", line) for line in trainer.replicated),
        ("batch", f"{batch} {'triplets' if contrastive else 'questions'} over {shards} shards, {triplets} each"),
        *([("negatives per query", negatives)] if contrastive else []),
        ("packed shard", f"{shape.rows} rows x {shape.row_tokens} tokens, {visual:,} visual tokens at most"),
        ("tokens per step", f"{shards * shape.rows * shape.row_tokens:,} (places, over all shards)"),
        *((f"bytes per device: {name}", f"{size / GIB:.3f} GiB") for name, size in per_device.items()),
        ("bytes per device: sum", f"{sum(per_device.values()) / GIB:.3f} GiB, without activations"),
        (
            "steps",
            f"{config.train.steps:,} = {config.train.steps * batch:,} {'triplets' if contrastive else 'questions'}",
        ),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def device_bytes(trainer: Trainer, shape: BatchShape) -> dict[str, int]:
    """Returns what lies on one device whatever happens there: state, gradients and a batch of this shape, in bytes."""
    mesh, specs, state = trainer.mesh, trainer.state_specs, trainer.abstract_state()
    learning = trainer.split(state.params)[0]
    return {
        "parameters (float32)": _bytes(state.params, trainer.specs, mesh),
        "gradients (float32)": _bytes(learning, trainer.split(trainer.specs)[0], mesh),
        f"{_MOMENTS[trainer.config.train.optimizer]} moments (float32)": _bytes(state.opt_state, specs.opt_state, mesh),
        "ring": _bytes(state.ring, specs.ring, mesh),
        "batch": _batch_bytes(shape, trainer.config),
    }


def _trainable(learning: int, total: int, config: Config) -> str:
    if not config.train.frozen:
        return "all of them"
    return f"{learning:,} ({learning / total:.1%}); frozen: {', '.join(config.train.frozen)}"


def _count(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _idle_parameters(config: Config) -> int:
    """Returns the parameters of the experts that a title or image token does not visit."""
    if not config.moe.experts:
        return 0
    text = config.model.text
    expert = 3 * text.hidden_size * text.intermediate_size
    return text.num_hidden_layers * (config.moe.experts - config.moe.top_k) * expert


def _bytes(tree: Any, specs: Any, mesh: Mesh | AbstractMesh) -> int:
    sizes = jax.tree.map(
        lambda spec, leaf: math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize // _ways(spec, mesh),
        specs,
        tree,
        is_leaf=is_spec,
    )
    return sum(jax.tree.leaves(sizes))


def _ways(spec: jax.sharding.PartitionSpec, mesh: Mesh | AbstractMesh) -> int:
    names = [name for entry in spec if entry for name in (entry if isinstance(entry, tuple) else (entry,))]
    return math.prod(mesh.shape[name] for name in names)


def _batch_bytes(shape: BatchShape, config: Config) -> int:
    patches = shape.image_slots * shape.slot_patches
    return 4 * (patches * (config.model.vision.patch_dim + 4) + 7 * shape.rows * shape.row_tokens)
