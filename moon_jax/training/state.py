"""The train state, and the jitted functions that make and change it.

The forward and the loss run inside ONE shard_map over all mesh axes; the optimizer and the ring update are ordinary
jitted code around it, where Explicit axes keep every sharding. Frozen parameters go into the forward beside those that
are differentiated: they get no gradient, no reduce-scatter and no moments, and come out of the step as they went in.
"""

import functools
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Key

from moon_jax.config import Config, ConfigError
from moon_jax.contrastive import ring as rings
from moon_jax.contrastive.loss import Triplets, info_nce
from moon_jax.models import moon
from moon_jax.moe.dispatch import check_strategy
from moon_jax.moe.router_stats import router_losses
from moon_jax.parallel.mesh import (
    BATCH_AXES,
    BATCH_SPEC,
    batch_shards,
    check_divisible,
    replicated_dimensions,
    shardings,
)
from moon_jax.training.optim import hold_routers, join, optimizer, schedule, split_frozen
from moon_jax.weights.source import Source, named, place


class TrainState(NamedTuple):
    """Everything that a step changes; donated to the step, written to the checkpoint."""

    step: Array  # int32, steps done
    params: Any  # nested dict of float32 arrays
    opt_state: Any  # of the parameters that learn
    ring: rings.Ring | None  # None for k = 0


class Trainer:
    """The jitted functions for one config and mesh: `init(seed)` or `start(source)`, and `train_step(documents)`.

    Attributes:
        shapes: ShapeDtypeStructs of the parameters, nested dicts.
        specs: their PartitionSpecs.
        replicated: a line for each dimension that `tensor` does not split, to be shown to the user.
        state_specs: PartitionSpecs of a whole TrainState.
    """

    def __init__(self, config: Config, mesh: Mesh | AbstractMesh):
        """Checks that config and mesh fit; compiles nothing.

        Raises:
            ConfigError: a parameter or the batch does not divide over the mesh.
        """
        self.config, self.mesh = config, mesh
        self.graphdef, self.shapes, self.specs = moon.abstract(config.model, config.moe, mesh)
        check_divisible(self.shapes, self.specs, mesh)
        check_strategy(config.moe, mesh.shape)
        axes = moon.logical_axes(config.model, config.moe)
        self.replicated = replicated_dimensions(self.shapes, axes, mesh)
        shards = batch_shards(mesh)
        if config.train.batch_size % shards:
            raise ConfigError(
                f"config.train.batch_size {config.train.batch_size} does not divide by the {shards} batch shards "
                f"of the mesh (data x fsdp x expert)"
            )
        self.optimizer = optimizer(config.train, config.moe.frozen_router_steps, named(axes))
        self.state_specs = self._state_specs()

    def split(self, params: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns (what learns, what is frozen) of a tree like the parameters'."""
        return split_frozen(params, self.config.train.frozen)

    def _state_specs(self) -> TrainState:
        opt_shapes = jax.eval_shape(self.optimizer.init, self.split(self.shapes)[0])
        masked = lambda x: isinstance(x, optax.MaskedNode)  # noqa: E731
        opt_specs = optax.tree_map_params(
            self.optimizer, lambda shape, spec: shape if masked(shape) else spec, opt_shapes,
            self.split(self.specs)[0], transform_non_params=lambda _: P(), is_leaf=masked,
        )  # fmt: skip
        ring = rings.SPECS if self.config.loss.ring_batches else None
        return TrainState(P(), self.specs, opt_specs, ring)

    def abstract_state(self) -> TrainState:
        """Returns the state's ShapeDtypeStructs with their shardings, for restoring and for lowering."""
        shapes = jax.eval_shape(self._init, jax.random.key(0))
        return jax.tree.map(
            lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding),
            shapes,
            shardings(self.state_specs, self.mesh),
        )

    def _init(self, key: jax.Array) -> TrainState:
        params = moon.build(self.config.model, self.config.moe, key)[1]
        return TrainState(jnp.int32(0), params, *self._beside(params))

    def _beside(self, params: Any) -> tuple[Any, rings.Ring | None]:
        """Returns the fresh optimizer state and ring for these parameters."""
        config, ring = self.config, None
        if config.loss.ring_batches:
            ring = rings.empty(config.loss.ring_batches, config.train.batch_size, config.model.text.hidden_size)
        return self.optimizer.init(self.split(params)[0]), ring

    def init(self, seed: int) -> TrainState:
        """Returns a fresh state, drawn in place: no device ever holds more than its shards."""
        with jax.set_mesh(self.mesh):
            return jax.jit(self._init, out_shardings=shardings(self.state_specs, self.mesh))(jax.random.key(seed))

    def start(self, source: Source) -> TrainState:
        """Returns a fresh state with the weights of a checkpoint, read straight into their shards in float32.

        Raises:
            WeightsError: names every missing, left-over and mis-shaped parameter.
        """
        params = place(source, self.shapes, self.specs, self.mesh, progress=True)
        step, _, *beside = shardings(self.state_specs, self.mesh)
        with jax.set_mesh(self.mesh):
            opt_state, ring = jax.jit(self._beside, out_shardings=tuple(beside))(params)
        return TrainState(jax.device_put(jnp.int32(0), step), params, opt_state, ring)

    def train_step(self, documents: int) -> Callable[[TrainState, Mapping[str, Array]], tuple[TrainState, dict]]:
        """Returns the jitted, donating step for batches with `documents` places per shard."""
        return jax.jit(functools.partial(self._train_step, documents), donate_argnums=0)

    def _train_step(self, documents: int, state: TrainState, batch: Mapping[str, Array]):
        loss_fn = jax.shard_map(
            functools.partial(self._loss, documents),
            mesh=self.mesh,
            in_specs=(*self.split(self.specs), BATCH_SPEC, self.state_specs.ring, P()),
            out_specs=(P(), (P(), P(None, BATCH_AXES), P(None, BATCH_AXES))),
        )
        learning, frozen = self.split(state.params)
        (loss, (metrics, entries, products)), gradients = jax.value_and_grad(loss_fn, has_aux=True)(
            learning, frozen, dict(batch), state.ring, self._noise_key(state.step)
        )
        gradients = hold_routers(gradients, state.step, self.config.moe.frozen_router_steps)
        updates, opt_state = self.optimizer.update(gradients, state.opt_state, learning)
        params = join(optax.apply_updates(learning, updates), frozen)
        ring = state.ring
        if ring is not None:
            warm = state.step >= round(self.config.loss.ring_warmup_ratio * self.config.train.steps)
            ring = jax.tree.map(lambda new, old: jnp.where(warm, new, old), rings.push(ring, entries, products), ring)
        metrics |= {
            "loss": loss,
            "grad_norm": optax.tree.norm(gradients),
            "lr": schedule(self.config.train)(state.step),
        }
        return TrainState(state.step + 1, params, opt_state, ring), metrics

    def _noise_key(self, step: Array) -> Key[Array, ""] | None:
        """Returns the key of the router noise of a step, by train.seed and the step alone: a resumed run goes on."""
        config = self.config
        if not (config.moe.experts and config.moe.router_noise):
            return None
        key = jax.random.fold_in(jax.random.key(config.train.seed), zlib.crc32(b"router noise"))
        return jax.random.fold_in(key, step)

    def _loss(
        self,
        documents: int,
        learning: Any,
        frozen: Any,
        batch: Mapping[str, Array],
        ring: rings.Ring | None,
        noise_key: Key[Array, ""] | None,
    ):
        batch = {name: array[0] for name, array in batch.items()}  # the shard axis, of length 1 in here
        model = nnx.merge(self.graphdef, join(learning, frozen))
        if self.config.loss.kind == "next_token":
            loss, metrics, stats, pushed = self._next_token(model, batch, noise_key)
        else:
            loss, metrics, stats, pushed = self._contrastive(model, documents, batch, ring, noise_key)
        if stats is not None:
            auxiliary, health = router_losses(stats, self.config.moe)
            loss, metrics = loss + auxiliary, metrics | health | {f"{self.config.loss.kind}_loss": loss}
        return loss, (metrics, *pushed)

    def _contrastive(
        self,
        model: moon.Moon,
        documents: int,
        batch: Mapping[str, Array],
        ring: rings.Ring | None,
        noise_key: Key[Array, ""] | None,
    ):
        """Returns (loss, metrics, router statistics, (embeddings, products) for the ring) of one batch shard."""
        embeddings, stats = model.embed(batch, documents, noise_key)
        parts = [embeddings[batch[name]] for name in ("query", "positive", "negative")]
        triplets = Triplets(*parts, batch["positive_product"], batch["negative_product"])
        loss, metrics = info_nce(triplets, ring, self.config.loss)
        entries = jax.lax.stop_gradient(jnp.stack([triplets.positive, triplets.negative]))
        products = jnp.stack([triplets.positive_product, triplets.negative_product])
        return loss, metrics, stats, (entries, products)

    @staticmethod
    def _next_token(model: moon.Moon, batch: Mapping[str, Array], noise_key: Key[Array, ""] | None):
        """Returns the same for the answers of one batch shard; nothing goes into a ring."""
        loss, predicted, stats = model.next_token_loss(batch, noise_key=noise_key)
        return loss, {"predicted_tokens": predicted}, stats, (None, None)
