"""The guided mixture of experts as a layer: parameters and router health."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int

from moon_jax.config import MoEConfig, Role
from moon_jax.moe.dispatch import Experts, dispatch
from moon_jax.moe.routing import attribute_expert, general_experts, route
from moon_jax.parallel.collectives import enter_tensor, leave_tensor
from moon_jax.parallel.mesh import BATCH_AXES

ROUTER_STD = 0.02


class RouterStats(NamedTuple):
    """Sums over the valid tokens of one batch shard, of one layer (stacked over layers by the scan)."""

    tokens: Float[Array, "*layers"]
    load: Float[Array, "*layers n"]  # routes to each expert
    probability: Float[Array, "*layers general"]  # softmax over the general experts
    entropy: Float[Array, "*layers"]  # of that softmax, nats
    z: Float[Array, "*layers"]  # squared logsumexp of the raw logits
    dropped: Float[Array, "*layers"]  # routes that found no place


class GuidedMoE(nnx.Module):
    """out(x) = sum over general experts + [role = category] G f_category + [role = attribute] G f_attribute.

    Equation of the paper's section 3.1; numbering of the experts: moe/routing.py.
    """

    def __init__(self, width: int, hidden: int, branches: int, config: MoEConfig, rngs: nnx.Rngs):
        n, wide = config.experts, ("experts", "embed", "ffn")
        draw = lambda shape, std, axes: nnx.Param(jax.random.normal(rngs.params(), shape) * std, axes=axes)  # noqa: E731
        self.router = draw((width, n), ROUTER_STD, ("embed", "routes"))
        self.gate = draw((n, width, hidden), width**-0.5, wide)
        self.up = draw((n, width, hidden), width**-0.5, wide)
        self.down = draw((n, hidden, width), (hidden * branches) ** -0.5, ("experts", "ffn", "embed"))
        self.config = config

    def __call__(self, x: Float[Array, "r s d"], roles: Int[Array, "r s"]) -> tuple[Float[Array, "r s d"], RouterStats]:
        """Returns the layer's output and the router statistics of this shard."""
        config = self.config
        tokens, roles = x.reshape(-1, x.shape[-1]), roles.reshape(-1)
        logits = jnp.matmul(
            tokens.astype(jnp.float32), self.router[...].astype(jnp.float32), precision=lax.Precision.HIGHEST
        )
        ids, weights = route(logits, roles, config)
        experts = Experts(self.gate[...], self.up[...], self.down[...])
        out, dropped = dispatch(enter_tensor(tokens), ids, enter_tensor(weights), experts, config)
        out = leave_tensor(out).astype(x.dtype).reshape(x.shape)
        return out, _stats(logits, ids, roles, dropped, config)


def _stats(logits, ids, roles, dropped, config: MoEConfig) -> RouterStats:
    valid = (roles != Role.PADDING).astype(jnp.float32)
    log_p = jax.nn.log_softmax(logits[:, general_experts(config.experts)], axis=1)
    p = jnp.exp(log_p)
    return RouterStats(
        tokens=valid.sum(),
        load=jax.nn.one_hot(ids, config.experts, dtype=jnp.float32).sum((0, 1)),
        probability=(p * valid[:, None]).sum(0),
        entropy=-((p * log_p).sum(1) * valid).sum(),
        z=(jax.nn.logsumexp(logits, axis=1) ** 2 * valid).sum(),
        dropped=dropped.astype(jnp.float32),
    )


def router_losses(stats: RouterStats, config: MoEConfig) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Returns (the weighted auxiliary loss, router health of the global batch per layer).

    The sums are added up over all devices BEFORE the product of fractions and probabilities, so the loss does not
    depend on the device count. Balance (Switch Transformer, over the general experts): M sum_e fraction_e p_e.

    Args:
        stats: of this shard, stacked over layers.
        config: the coefficients.
    """
    total = RouterStats(*lax.psum(stats, BATCH_AXES))
    tokens = jnp.maximum(total.tokens, 1.0)
    general = general_experts(config.experts)
    routed = total.load[:, general]
    fraction = routed / jnp.maximum(routed.sum(1, keepdims=True), 1.0)
    balance = (len(general) * (fraction * total.probability / tokens[:, None]).sum(1)).mean()
    z = (total.z / tokens).mean()
    health = {
        "router/load": total.load / tokens[:, None],
        "router/entropy": total.entropy / tokens,
        "router/category_tokens": total.load[:, 0],
        "router/attribute_tokens": total.load[:, attribute_expert(config.experts)],
        "router/dropped": total.dropped,
        "router/balance_loss": balance,
        "router/z_loss": z,
    }
    return config.balance_loss * balance + config.z_loss * z, health
