"""The two tables of the vocabulary: token ids -> embeddings, and hidden states -> logits and the next-token loss.

Both may be split over `tensor` by token id: then a shard of `tensor` knows the ids from `_first(table)` on.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from moon_jax.parallel.collectives import enter_tensor, gather_weight, leave_tensor, over_tensor
from moon_jax.parallel.mesh import BATCH_AXES, partition_spec

AXES = ("vocab", "embed")  # of the head, tied to the token embedding or not
CHUNK = 1024  # tokens whose logits exist at once in the loss


def head_spec(shape: tuple[int, int], mesh: Mesh | AbstractMesh) -> P:
    """Returns the PartitionSpec of an untied head of shape [vocabulary, width]: that of the embedding."""
    return partition_spec(AXES, shape, mesh)


def gather_head(shard: Float[Array, "v d_shard"], dtype: jax.typing.DTypeLike) -> Float[Array, "v d"]:
    """Returns the head, whole but for `tensor`, from a shard of it: of `TextModel.embed` or of an untied `lm_head`."""
    return gather_weight(shard, AXES, dtype)


def look_up(tokens: Int[Array, "*b"], table: Float[Array, "v d"]) -> Float[Array, "*b d"]:
    """Returns the embeddings of the tokens; where the table is split, the shards add zeros to the one that has it.

    The gradients of a token that occurs often (every document has the template's) add up in float32.
    """
    place, here = _place(tokens, table)
    rows = table.astype(jnp.float32)[place].astype(table.dtype)
    return leave_tensor(jnp.where(here[..., None], rows, 0))


def logits(hidden: Float[Array, "*b d"], head: Float[Array, "v d"]) -> Float[Array, "*b v"]:
    """Returns the float32 logits of this shard's tokens: added up in float32 whatever the types of the two factors."""
    return jnp.einsum("...d,vd->...v", hidden, head, preferred_element_type=jnp.float32)


def likeliest(hidden: Float[Array, "*b d"], head: Float[Array, "v d"]) -> Int[Array, "*b"]:
    """Returns the token with the largest logit, the first of those that share it."""
    scores = logits(hidden, head)
    best, token = scores.max(axis=-1), jnp.argmax(scores, axis=-1).astype(jnp.int32) + _first(head)
    if not over_tensor(best):
        return token
    return lax.pmin(jnp.where(best == lax.pmax(best, "tensor"), token, jnp.iinfo(jnp.int32).max), "tensor")


def _first(table: Float[Array, "v d"]) -> Int[Array, ""] | int:
    """Returns the first token id of this shard's part of the table."""
    return lax.axis_index("tensor") * len(table) if over_tensor(table) else 0


def _place(tokens: Int[Array, "*b"], table: Float[Array, "v d"]) -> tuple[Int[Array, "*b"], Bool[Array, "*b"]]:
    """Returns each token's row in this shard's part of the table, and whether it is there (else any row)."""
    place = tokens - _first(table)
    return jnp.clip(place, 0, len(table) - 1), (place >= 0) & (place < len(table))


def _negative_log_likelihood(
    hidden: Float[Array, "c d"], head: Float[Array, "v d"], target: Int[Array, " c"]
) -> Float[Array, " c"]:
    scores = logits(hidden, head)
    top = lax.stop_gradient(scores.max(axis=-1))
    top = lax.pmax(top, "tensor") if over_tensor(top) else top
    total = leave_tensor(jnp.exp(scores - top[:, None]).sum(axis=-1))
    place, here = _place(target, head)
    wanted = jnp.take_along_axis(scores, place[:, None], axis=-1)[:, 0]
    return top + jnp.log(total) - leave_tensor(jnp.where(here, wanted, 0.0))


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
        head: from `gather_head`; in float32, or its gradient would add up over the chunks in less.
        tokens: token ids.
        segment_ids: number of the document in its row, 0 = padding.
        chosen: which tokens are to be predicted, e.g. those of an answer.
    """
    target, same = jnp.roll(tokens, -1, 1), jnp.roll(segment_ids, -1, 1) == segment_ids
    wanted = jnp.roll(chosen, -1, 1) & same & (segment_ids > 0)
    wanted = wanted.at[:, -1].set(False)  # a row does not go on at its start

    flat = [x.reshape(-1, *x.shape[2:]) for x in (enter_tensor(hidden, head), target, wanted)]
    chunk = min(CHUNK, len(flat[0]))
    spare = -len(flat[0]) % chunk
    chunks = [jnp.pad(x, ((0, spare), *[(0, 0)] * (x.ndim - 1))).reshape(-1, chunk, *x.shape[1:]) for x in flat]

    def add_chunk(total, scanned):
        hidden, target, wanted = scanned
        nll = _negative_log_likelihood(hidden, head.astype(hidden.dtype), target)
        return total + jnp.where(wanted, nll, 0.0).sum(), None

    zero = jnp.zeros_like(hidden, jnp.float32, shape=())
    total, _ = lax.scan(jax.checkpoint(add_chunk, prevent_cse=False), zero, chunks)
    total, count = lax.psum((total, wanted.sum().astype(jnp.float32)), BATCH_AXES)
    return total / jnp.maximum(count, 1.0), count
