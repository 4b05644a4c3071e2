"""Routing decisions of one run of a guided MoE, made again in another run of the same batch.

In bfloat16 a token whose two best experts are nearly equal may go to the other one, which says nothing about the
arithmetic. So the experts that a float32 run chose are given to the bfloat16 run, which weighs them by its own logits.
"""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from moon_jax.config import MoEConfig
from moon_jax.moe import layer


class Routes:
    """The experts [tokens, top_k + 1] that each layer sends its tokens to, in the order in which the layers run."""

    def __init__(self):
        self.recorded: list[np.ndarray] = []
        self.unforced: list[np.ndarray] = []  # what the replaying run would have chosen by itself

    def record(self):
        """A context in which a program that is compiled and run writes down its decisions."""
        return mock.patch.object(layer, "route", self._hooked(self._write))

    def replay(self):
        """A context in which a program that is compiled and run makes the recorded decisions."""
        return mock.patch.object(layer, "route", self._hooked(self._read))

    def _write(self, ids: np.ndarray) -> np.ndarray:
        self.recorded.append(np.array(ids))
        return self.recorded[-1]

    def _read(self, ids: np.ndarray) -> np.ndarray:
        self.unforced.append(np.array(ids))
        return self.recorded[len(self.unforced) - 1]

    def _hooked(self, hook):
        original = layer.route

        def route(logits, roles, config: MoEConfig):
            assert config.gate == "softmax_active"
            ids, _ = original(logits, roles, config)
            ids = jax.pure_callback(hook, jax.ShapeDtypeStruct(ids.shape, ids.dtype), ids)
            taken = ids < config.experts
            chosen = jnp.take_along_axis(logits, jnp.minimum(ids, config.experts - 1), axis=1)
            weights = jax.nn.softmax(jnp.where(taken, chosen, -1e30), axis=1)
            return ids, jnp.where(taken, weights, 0.0)

        return route
