"""The guided mixture of experts as a layer: its parameters, and the way of a token through it."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int, Key

from moon_jax.config import MoEConfig
from moon_jax.moe.dispatch import dispatch
from moon_jax.moe.router_stats import RouterStats, router_stats
from moon_jax.moe.routing import route
from moon_jax.moe.strategy import Experts, expert_axes
from moon_jax.parallel.collectives import enter_tensor, leave_tensor

ROUTER_STD = 0.02


class GuidedMoE(nnx.Module):
    """out(x) = sum over general experts + [role = category] G f_category + [role = attribute] G f_attribute.

    Equation of the paper's section 3.1; numbering of the experts: moe/routing.py.
    """

    def __init__(self, width: int, hidden: int, branches: int, config: MoEConfig, rngs: nnx.Rngs):
        n, (gate, up, down) = config.experts, expert_axes(config)
        draw = lambda shape, std, axes: nnx.Param(jax.random.normal(rngs.params(), shape) * std, axes=axes)  # noqa: E731
        self.router = draw((width, n), ROUTER_STD, ("embed", "routes"))
        self.gate = draw((n, width, hidden), width**-0.5, gate)
        self.up = draw((n, width, hidden), width**-0.5, up)
        self.down = draw((n, hidden, width), (hidden * branches) ** -0.5, down)
        self.config = config

    def __call__(
        self, x: Float[Array, "r s d"], roles: Int[Array, "r s"], noise_key: Key[Array, ""] | None = None
    ) -> tuple[Float[Array, "r s d"], RouterStats]:
        """Returns the layer's output and the router statistics of this shard.

        Args:
            x: input of the layer.
            roles: `Role` of each token.
            noise_key: of this layer and batch shard; the choice of the general experts is then made on logits with
                noise from N(0, `config.router_noise`). None = no noise, as in evaluation.
        """
        config = self.config
        tokens, roles = x.reshape(-1, x.shape[-1]), roles.reshape(-1)
        logits = jnp.matmul(
            tokens.astype(jnp.float32), self.router[...].astype(jnp.float32), precision=lax.Precision.HIGHEST
        )
        ids, weights = route(logits, roles, config)
        quiet_ids = ids
        if noise_key is not None:
            noise = config.router_noise * jax.random.normal(noise_key, (len(tokens), config.experts - 2))
            ids, weights = route(logits, roles, config, noise)
        experts = Experts(self.gate[...], self.up[...], self.down[...])
        entering = enter_tensor(tokens, experts.gate), enter_tensor(weights, experts.gate)
        out, dropped = dispatch(entering[0], ids, entering[1], experts, config)
        out = leave_tensor(out.astype(x.dtype)).reshape(x.shape)
        return out, router_stats(logits, ids, quiet_ids, roles, dropped, config)
