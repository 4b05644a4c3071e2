"""What the router did: sums over the tokens of a shard, and of them the auxiliary losses and the numbers of the log."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from moon_jax.config import MoEConfig, Role
from moon_jax.moe.routing import CATEGORY_EXPERT, attribute_expert, general_experts
from moon_jax.parallel.mesh import BATCH_AXES

ROLES = tuple(role for role in Role if role != Role.PADDING)  # the rows of everything that is split by role


class RouterStats(NamedTuple):
    """Sums over the valid tokens of one batch shard, of one layer (stacked over layers by the scan)."""

    tokens: Float[Array, "*layers roles"]
    load: Float[Array, "*layers roles n"]  # routes to each expert, dropped ones too
    preferred: Float[Array, "*layers general"]  # routes to the general experts if there were no noise
    probability: Float[Array, "*layers general"]  # softmax over the general experts
    entropy: Float[Array, "*layers"]  # of that softmax, nats
    z: Float[Array, "*layers"]  # squared logsumexp of the raw logits
    dropped: Float[Array, "*layers"]  # routes that found no place


def router_stats(
    logits: Float[Array, "t n"],
    ids: Int[Array, "t routes"],
    quiet_ids: Int[Array, "t routes"],
    roles: Int[Array, " t"],
    dropped: Int[Array, ""],
    config: MoEConfig,
) -> RouterStats:
    """Returns the sums of one layer.

    Args:
        logits: of the router, without noise.
        ids: where the tokens went, as `route` says.
        quiet_ids: where they would have gone without noise.
        roles: `Role` of each token.
        dropped: routes that found no place.
        config: number of experts.
    """
    general = general_experts(config.experts)
    by_role = (roles[:, None] == jnp.array(ROLES)).astype(jnp.float32)
    valid = by_role.sum(1)
    visits = lambda ids: jax.nn.one_hot(ids, config.experts, dtype=jnp.float32).sum(1)  # noqa: E731
    log_p = jax.nn.log_softmax(logits[:, general], axis=1)
    p = jnp.exp(log_p)
    return RouterStats(
        tokens=by_role.sum(0),
        load=by_role.T @ visits(ids),
        preferred=visits(quiet_ids)[:, general].sum(0),
        probability=(p * valid[:, None]).sum(0),
        entropy=-((p * log_p).sum(1) * valid).sum(),
        z=(jax.nn.logsumexp(logits, axis=1) ** 2 * valid).sum(),
        dropped=dropped.astype(jnp.float32),
    )


def router_losses(stats: RouterStats, config: MoEConfig) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Returns (the weighted auxiliary loss, router health of the global batch).

    The sums are added up over all devices BEFORE the product of fractions and probabilities, so the loss does not
    depend on the device count. Balance (Switch Transformer, over the general experts): M sum_e fraction_e p_e. Both
    losses are of the router without noise: noise changes which experts learn, not what is asked of the router.

    Health, [layers] if not said otherwise, every load being counted before any route is dropped:
        router/load: [layers, N] routes to each expert per token.
        router/load_by_role: [layers, roles, N] routes to each expert per token of the role, in the order of `ROLES`.
        router/role_tokens: [roles] tokens of each role.
        router/imbalance, router/general_imbalance: the largest load over the mean one, of all and of the general
            experts; 1 = even, 0 = no tokens.
        router/entropy: nats, of the softmax over the general experts.
        router/category_tokens, router/attribute_tokens: tokens at the guided experts.
        router/dropped: routes that found no place.
        router/balance_loss, router/z_loss: scalars, without their coefficients.

    Args:
        stats: of this shard, stacked over layers.
        config: the coefficients.
    """
    total = RouterStats(*lax.psum(stats, BATCH_AXES))
    tokens = jnp.maximum(total.tokens.sum(1), 1.0)
    general = general_experts(config.experts)
    load = total.load.sum(1)
    fraction = total.preferred / jnp.maximum(total.preferred.sum(1, keepdims=True), 1.0)
    balance = (len(general) * (fraction * total.probability / tokens[:, None]).sum(1)).mean()
    z = (total.z / tokens).mean()
    health = {
        "router/load": load / tokens[:, None],
        "router/load_by_role": total.load / jnp.maximum(total.tokens, 1.0)[..., None],
        "router/role_tokens": total.tokens[0],
        "router/imbalance": _imbalance(load),
        "router/general_imbalance": _imbalance(load[:, general]),
        "router/entropy": total.entropy / tokens,
        "router/category_tokens": load[:, CATEGORY_EXPERT],
        "router/attribute_tokens": load[:, attribute_expert(config.experts)],
        "router/dropped": total.dropped,
        "router/balance_loss": balance,
        "router/z_loss": z,
    }
    return config.balance_loss * balance + config.z_loss * z, health


def shortened(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the metrics of a step as a line of the log holds them.

    The load by role is a mean over layers there, and both loads have four decimals: else they would be most of the log.
    """
    out = dict(metrics)
    for name, axis in (("router/load", ()), ("router/load_by_role", 0)):
        if name in metrics:
            out[name] = np.asarray(metrics[name], np.float64).mean(axis).round(4)
    return out


def _imbalance(load: Float[Array, "layers n"]) -> Float[Array, " layers"]:
    return load.max(1) * load.shape[1] / jnp.maximum(load.sum(1), 1.0)
