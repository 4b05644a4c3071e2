"""Greedy decoding with a cache of keys and values, inside the one shard_map like everything else.

The prompts run through the model once; then one new token of every row at a time. The prompt's keys and values are
only read from then on, the new tokens' are a small buffer beside them: nothing large is ever copied.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int, Int32

from moon_jax.config import ConfigError, ModelConfig, MoEConfig, Role
from moon_jax.models import head as heads
from moon_jax.models import moon
from moon_jax.models.attention import Keys, attention, cached_attention
from moon_jax.models.text import TextModel
from moon_jax.parallel.collectives import gather_param
from moon_jax.parallel.mesh import BATCH_AXES, BATCH_SPEC, place_batch

NOTHING = -1  # in the place of a token after the end of a continuation


class Generator:
    """Continues prompts with parameters that lie on the mesh; compiles once for each shape of a batch.

    Usage, with batches of `data/prompts.py` (one prompt a row, padding on either side):

        generator = Generator(config.model, config.moe, mesh)
        tokens = generator(params, prompt_batch(prompts, shape, ...), 64, eos_ids=(151645, 151643))
        answers = [row[row != NOTHING] for row in tokens[:len(prompts)]]

    Greedy means the most likely token and nothing else: penalties that a generation_config.json may ask for are not
    applied. Routing is dropless, and new tokens have Role.OTHER, so that a continuation depends on its prompt alone.
    """

    def __init__(self, model: ModelConfig, moe: MoEConfig, mesh: Mesh):
        """Prepares the compiled function; parameters are given to each call.

        Raises:
            ConfigError: attention is not causal.
        """
        if model.attention != "causal":
            raise ConfigError(f"config.model.attention {model.attention!r} cannot generate text; only 'causal' can")
        self.mesh = mesh
        moe = dataclasses.replace(moe, capacity_factor=0.0, guided_capacity=0.0)
        self._graphdef, _, self._specs = moon.abstract(model, moe, mesh)
        self._jitted = jax.jit(self._generate, static_argnames="max_new_tokens")

    def __call__(
        self,
        params: Any,
        batch: Mapping[str, np.ndarray],
        max_new_tokens: int,
        eos_ids: Sequence[int] = (),
        head: Float[Array, "v d"] | None = None,
    ) -> Int32[np.ndarray, "prompts new"]:
        """Returns the new tokens of every row of the global batch, shard after shard, on every process.

        A row ends with the first of the `eos_ids` (which is there) and NOTHING after it; a row without a prompt is
        NOTHING throughout.

        Args:
            params: the model's parameters, sharded as `moon.abstract` says.
            batch: this host's shards [G, ...] of `prompt_batch`.
            max_new_tokens: at most so many; another number compiles again.
            eos_ids: token ids that end a continuation; () = none.
            head: the output head where it is not tied to the token embedding, sharded as `head_spec` says.
        """
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")
        with jax.set_mesh(self.mesh):
            eos = np.array([NOTHING - 1, *eos_ids], np.int32)  # no token has the first: there is always one to ask
            out = self._jitted(params, head, place_batch(batch, self.mesh), eos, max_new_tokens=max_new_tokens)
            return np.asarray(multihost_utils.process_allgather(out, tiled=True)).reshape(-1, max_new_tokens)

    def _generate(self, params, head, batch, eos_ids, max_new_tokens: int) -> Int[Array, "g r new"]:
        def shard(params, head, batch, eos_ids):
            batch = {name: array[0] for name, array in batch.items()}  # the shard axis, of length 1 in here
            return generate(nnx.merge(self._graphdef, params), batch, max_new_tokens, eos_ids, head)[None]

        specs = (self._specs, None if head is None else heads.head_spec(head.shape, self.mesh), BATCH_SPEC, P())
        return jax.shard_map(shard, mesh=self.mesh, in_specs=specs, out_specs=BATCH_SPEC)(
            params, head, dict(batch), eos_ids
        )


def generate(
    model: moon.Moon,
    batch: Mapping[str, Array],
    max_new_tokens: int,
    eos_ids: Int[Array, " eos"],
    head: Array | None = None,
) -> Int[Array, "r new"]:
    """Returns the greedy continuations of one shard's prompts, each ended by an eos token and NOTHING after it.

    Args:
        model: with local shards of the parameters.
        batch: one shard of a batch of prompts, one a row (the fields of `prompt_batch` without their shard axis).
        max_new_tokens: at least 1.
        eos_ids: tokens that end a row.
        head: local shard of an untied head; None = the token embedding.
    """
    text, dtype = model.text, jnp.dtype(model.text.config.dtype)
    table = gather_param(text.embed, dtype)  # both are held throughout, or every token would gather them again
    head = table if head is None else heads.gather_head(head, dtype)
    real = batch["segment_ids"] > 0
    hidden, prompt = _read_prompts(model, batch)
    position = jnp.where(real, batch["positions"].max(0), -1).max(1) + 1  # of the first new token, t = h = w

    def pick(hidden: Float[Array, "r d"], finished: Bool[Array, " r"]) -> tuple[Array, Array]:
        token = heads.likeliest(hidden, head)
        return jnp.where(finished, NOTHING, token), finished | jnp.isin(token, eos_ids)

    def unfinished(finished: Bool[Array, " r"]) -> Bool[Array, ""]:
        return lax.psum((~finished).sum(), BATCH_AXES) > 0  # all devices leave the loop together: it has collectives

    def step(state):
        number, token, finished, cache, out, _ = state
        x = heads.look_up(jnp.maximum(token, 0), table)[:, None]
        x, cache = _next_hidden(text, x, position + number - 1, number - 1, (prompt, real), cache)
        token, finished = pick(x[:, 0], finished)
        return number + 1, token, finished, cache, out.at[:, number].set(token), unfinished(finished)

    last = jnp.where(real, jnp.arange(real.shape[1]), 0).max(1)
    token, finished = pick(jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0], ~real.any(1))
    out = jnp.full_like(token, NOTHING, shape=(len(token), max_new_tokens)).at[:, 0].set(token)
    room = lambda x: jnp.zeros_like(x, shape=(*x.shape[:2], max(max_new_tokens - 1, 1), *x.shape[3:]))  # noqa: E731
    state = (jnp.int32(1), token, finished, jax.tree.map(room, prompt), out, unfinished(finished))
    return lax.while_loop(lambda state: (state[0] < max_new_tokens) & state[-1], step, state)[4]


def _read_prompts(model: moon.Moon, batch: Mapping[str, Array]) -> tuple[Float[Array, "r s d"], tuple[Array, Array]]:
    """Returns the prompts' last hidden states, and the keys and values [layers, r, s, k, h] of their tokens."""
    text, segment_ids = model.text, batch["segment_ids"]

    def attend(_, q, k, v):
        return attention(q, k, v, segment_ids, causal=True, impl=text.config.attention_impl), (k, v)

    x = text.look_up(batch["tokens"], model.visual(batch), batch["image_slots"])
    hidden, (_, cache) = text.run_layers(x, batch["positions"], batch["roles"], attend, remat="none")
    return hidden, cache


def _next_hidden(text: TextModel, x: Float[Array, "r 1 d"], position: Int[Array, " r"], place: Array, prompt, cache):
    """Returns the last hidden states of one new token a row, and the cache of new tokens with it in its place.

    Args:
        text: the language model.
        x: embeddings of the new tokens.
        position: of each, the same for t, h and w.
        place: number of the token among the new ones, the same in every row.
        prompt: ((keys, values) [layers, r, s, k, h], which of them are real [r, s]).
        cache: (keys, values) [layers, r, new, k, h].
    """
    read, real = prompt
    before = jnp.broadcast_to(jnp.arange(cache[0].shape[2]) <= place, (len(x), cache[0].shape[2]))

    def attend(layer, q, k, v):
        (read_k, read_v), made = layer
        made = tuple(
            lax.dynamic_update_slice_in_dim(m, new, place, axis=1) for m, new in zip(made, (k, v), strict=True)
        )
        return cached_attention(q, (Keys(read_k, read_v, real), Keys(*made, before))), made

    positions = jnp.broadcast_to(position[:, None], (3, len(x), 1))
    roles = jnp.full(x.shape[:2], int(Role.OTHER))
    hidden, (_, cache) = text.run_layers(x, positions, roles, attend, (read, cache), remat="none")
    return hidden, cache
