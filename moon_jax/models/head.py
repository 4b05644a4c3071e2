"""The output head: hidden states -> logits over the vocabulary, and the next-token loss."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from moon_jax.parallel.collectives import gather_weight
from moon_jax.parallel.mesh import BATCH_AXES, partition_spec

AXES = ("vocab", "embed")  # of the head, tied to the token embedding or not
SPEC = partition_spec(AXES, 2)
CHUNK = 1024  # tokens whose logits exist at once in the loss


def gather_head(shard: Float[Array, "v d_shard"], dtype: jax.typing.DTypeLike) -> Float[Array, "v d"]:
    """Returns the whole head from its fsdp shard: that of `TextModel.embed`, or of an untied `lm_head`."""
    return gather_weight(shard, AXES, dtype)


def logits(hidden: Float[Array, "*b d"], head: Float[Array, "v d"]) -> Float[Array, "*b v"]:
    """Returns float32 logits: added up in float32 whatever the types of the two factors."""
    return jnp.einsum("...d,vd->...v", hidden, head, preferred_element_type=jnp.float32)


def next_token_loss(
    hidden: Float[Array, "r s d"],
    head: Float[Array, "v d"],
    tokens: Int[Array, "r s"],
    segment_ids: Int[Array, "r s"],
    chosen: Bool[Array, "r s"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns (mean of -log p(token | what is before it), number of tokens) over the chosen tokens of the GLOBAL batch.

    The logits of `CHUNK` tokens exist at a time, in the backward pass too. The first token of a document is predicted
    by nothing and never counts; without any chosen token the loss is 0.

    Args:
        hidden: last hidden states of this shard.
        head: the whole head; in float32, or its gradient would add up over the chunks in less.
        tokens: token ids.
        segment_ids: number of the document in its row, 0 = padding.
        chosen: which tokens are to be predicted, e.g. those of an answer.
    """
    target, same = jnp.roll(tokens, -1, 1), jnp.roll(segment_ids, -1, 1) == segment_ids
    wanted = jnp.roll(chosen, -1, 1) & same & (segment_ids > 0)
    wanted = wanted.at[:, -1].set(False)  # a row does not go on at its start

    flat = [x.reshape(-1, *x.shape[2:]) for x in (hidden, target, wanted)]
    chunk = min(CHUNK, len(flat[0]))
    spare = -len(flat[0]) % chunk
    chunks = [jnp.pad(x, ((0, spare), *[(0, 0)] * (x.ndim - 1))).reshape(-1, chunk, *x.shape[1:]) for x in flat]

    def add_chunk(total, scanned):
        hidden, target, wanted = scanned
        scores = logits(hidden, head.astype(hidden.dtype))
        nll = jax.nn.logsumexp(scores, axis=-1) - jnp.take_along_axis(scores, target[:, None], axis=-1)[:, 0]
        return total + jnp.where(wanted, nll, 0.0).sum(), None

    zero = jnp.zeros_like(chunks[0], jnp.float32, shape=())
    total, _ = lax.scan(jax.checkpoint(add_chunk, prevent_cse=False), zero, chunks)
    total, count = lax.psum((total, wanted.sum().astype(jnp.float32)), BATCH_AXES)
    return total / jnp.maximum(count, 1.0), count
