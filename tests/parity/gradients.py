"""How far d/d(every parameter) is from torch's autograd: of the embeddings, and of the next-token loss."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import measures
import numpy as np
import oracle
import ours
import torch
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from moon_jax.config import ModelConfig
from moon_jax.hf.names import table
from moon_jax.models import head as heads
from moon_jax.models.moon import abstract
from moon_jax.parallel.mesh import BATCH_SPEC, place_batch


def of_embeddings(pair: measures.Pair, seed: int = 0) -> dict[str, float]:
    """Errors by parameter, of a random projection of all embeddings."""
    config, count = pair.ours.config, len(pair.documents)
    weights = np.random.default_rng(seed).normal(size=(count, config.text.hidden_size)).astype(np.float32)
    pair.reference.zero_grad()
    for document, weight in zip(pair.documents, weights, strict=True):
        _, _, hidden = oracle.forward(pair.reference, document.ids, document.pixels, document.grids)
        (oracle.pool(hidden) @ torch.from_numpy(weight)).backward()

    forward = ours.forward(config, count)
    loss = lambda params, batch: (forward(params, batch)["embeddings"] * weights).sum()  # noqa: E731
    batch = ours.place(ours.pack_together(pair.encoded, config.vision))
    got = jax.jit(jax.grad(loss))(ours.place_params(pair.ours.params, config), batch)
    return _errors(got, pair.reference, config)


def of_next_tokens(pair: measures.Pair, answers: Sequence[int], mesh: Mesh | None = None) -> dict[str, float]:
    """Errors by parameter, and of the "loss" itself; with "text/lm_head" where the head is not tied.

    Args:
        pair: the model and its documents.
        answers: how many of the last tokens of each document are to be predicted.
        mesh: over whose batch shards the documents are dealt out; default: one device.
    """
    config, mesh = pair.ours.config, mesh or ours.one_device()
    theirs = _torch_loss(pair, answers)
    prompts = [dataclasses.replace(p, answer_tokens=n) for p, n in zip(pair.encoded, answers, strict=True)]
    graphdef, _, specs = abstract(config, ours.DENSE, mesh)

    def shard(trained, batch):
        batch = {name: array[0] for name, array in batch.items()}
        return nnx.merge(graphdef, trained["params"]).next_token_loss(batch, trained.get("head"))[:2]

    trained, in_specs = {"params": ours.place_params(pair.ours.params, config, mesh=mesh)}, {"params": specs}
    if pair.ours.head is not None:
        trained["head"] = ours.place_head(pair.ours, mesh)
        in_specs["head"] = heads.head_spec(pair.ours.head.shape, mesh)
    loss = jax.shard_map(shard, mesh=mesh, in_specs=(in_specs, BATCH_SPEC), out_specs=(P(), P()))
    with jax.set_mesh(mesh):
        batch = place_batch(ours.rows_of(prompts, config.vision, "left", mesh), mesh)
        (value, count), got = jax.jit(jax.value_and_grad(loss, has_aux=True))(trained, batch)
    assert count == sum(min(n, len(d.ids) - 1) for n, d in zip(answers, pair.documents, strict=True))
    errors = {"loss": abs(float(value) / theirs - 1)} | _errors(got["params"], pair.reference, config)
    if "head" in got:
        wanted = pair.reference.lm_head.weight.grad.numpy()
        errors["text/lm_head"] = measures.relative(np.asarray(got["head"]), wanted)
    return errors


def _torch_loss(pair: measures.Pair, answers: Sequence[int]) -> float:
    made, real = oracle.padded(pair.reference, pair.documents, "right")
    labels = np.full(real.shape, -100)
    for row, (document, answer) in enumerate(zip(pair.documents, answers, strict=True)):
        end = len(document.ids)
        labels[row, end - answer : end] = document.ids[end - answer :]
    pair.reference.zero_grad()
    loss = pair.reference(**made, labels=torch.from_numpy(labels)).loss
    loss.backward()
    return float(loss.detach())


def _errors(got: Mapping[str, Any], reference: oracle.Model, config: ModelConfig) -> dict[str, float]:
    """Every leaf of ours against the gradients that torch left in the reference, all of which are something."""
    theirs = {name: p.grad for name, p in reference.named_parameters()}
    errors = {}
    for row in table(config):
        leaf = got
        for name in row.path:
            leaf = leaf[name]
        want = np.stack([row.to_ours(theirs[name].numpy()) for name in row.hf_names("v5")]).reshape(row.shape)
        assert np.abs(want).max() > 0, row.leaf
        errors[row.leaf] = measures.relative(np.asarray(leaf), want)
        if row.leaf == "vision/blocks/k_bias":
            # Without rotary angles it moves all scores of a query alike: its gradient is 0, and what is left of it is
            # rounding. So it is measured by the queries' bias, which has one.
            scale = np.concatenate([theirs[name.replace("k_proj", "q_proj")].numpy() for name in row.hf_names("v5")])
            errors[row.leaf] = float(np.abs(np.asarray(leaf) - want).max() / np.sqrt(np.mean(scale**2)))
    assert len(errors) == len(jax.tree.leaves(got))
    return errors
