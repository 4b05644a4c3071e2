"""Who goes where: the guided router of the paper (3.1), apart from how tokens get there (dispatch.py).

Experts are numbered in their PHYSICAL order: the category expert (the paper's N-1) is expert 0, the attribute expert
(the paper's N) is expert N // 2, the general experts are the others. So the two guided experts, which few tokens
visit, live on different shards of the `expert` axis whenever it has more than one.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int, Key

from moon_jax.config import MoEConfig, Role
from moon_jax.parallel.mesh import BATCH_AXES

CATEGORY_EXPERT = 0


def attribute_expert(experts: int) -> int:
    """Returns the number of the expert that is reserved for attribute tokens."""
    return experts // 2


def general_experts(experts: int) -> np.ndarray:
    """Returns the numbers of the N - 2 experts that every token may visit."""
    return np.setdiff1d(np.arange(experts), [CATEGORY_EXPERT, attribute_expert(experts)])


def noise_keys(key: Key[Array, ""], layers: int) -> Key[Array, " layers"]:
    """Returns the keys of the router noise of this batch shard, one a layer.

    Another key for every shard of (data, fsdp, expert), the same over `tensor`, whose devices hold the same tokens. So
    the noise of a run depends on the number of batch shards, and on nothing else of the mesh.

    Args:
        key: of the training step, the same on every device.
        layers: how many layers.
    """
    return jax.random.split(jax.random.fold_in(key, lax.axis_index(BATCH_AXES)), layers)


def route(
    logits: Float[Array, "t n"],
    roles: Int[Array, " t"],
    config: MoEConfig,
    noise: Float[Array, "t general"] | None = None,
) -> tuple[Int[Array, "t routes"], Float[Array, "t routes"]]:
    """Returns (ids, weights) [T, top_k + 1]: the experts that each token visits and their weights.

    The first top_k routes are the best general experts; the last is the guided expert of a category or attribute
    token. The id N means "nothing": a route that is not taken, all routes of padding; its weight is 0.

    Args:
        logits: float32 router outputs for all N experts.
        roles: `Role` of each token.
        config: `gate` "softmax_active": softmax over the experts the token visits, the weights sum to 1;
            "softmax_all": softmax over all N, the weights of the others are dropped (the paper's wording).
            `guided` "add": the guided expert beside the general ones; "exclusive": instead of them.
        noise: added to the logits of the general experts for the choice alone; the weights are those of the logits.
    """
    n = config.experts
    general = general_experts(n)
    candidates = logits[:, general]
    _, which = lax.top_k(lax.stop_gradient(candidates if noise is None else candidates + noise), config.top_k)
    # kept under remat: computed again in bfloat16 a near-tie may fall the other way, and then what dispatch had brought
    # would meet the gradients of other tokens
    which = checkpoint_name(which, "dispatched")
    best = jnp.take_along_axis(candidates, which, axis=1)
    guided = jnp.full(roles.shape, n)
    guided = jnp.where(roles == Role.CATEGORY, CATEGORY_EXPERT, guided)
    guided = jnp.where(roles == Role.ATTRIBUTE, attribute_expert(n), guided)
    guided_logit = jnp.take_along_axis(logits, jnp.minimum(guided, n - 1)[:, None], axis=1)
    ids = jnp.concatenate([jnp.asarray(general)[which], guided[:, None]], axis=1)
    if config.guided == "exclusive":
        others = jnp.arange(config.top_k + 1) < config.top_k
        ids = jnp.where((guided < n)[:, None] & others, n, ids)
    ids = jnp.where((roles == Role.PADDING)[:, None], n, ids)
    taken = ids < n
    chosen = jnp.concatenate([best, guided_logit], axis=1)
    if config.gate == "softmax_all":
        weights = jnp.exp(chosen - jax.nn.logsumexp(logits, axis=1, keepdims=True))
    else:
        weights = jax.nn.softmax(jnp.where(taken, chosen, -1e30), axis=1)
    return ids.astype(jnp.int32), jnp.where(taken, weights, 0.0)
