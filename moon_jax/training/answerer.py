"""Prompts in, answers out, with parameters given to each call: what evaluation, detection and `Encoder` share."""

import concurrent.futures
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from jax.sharding import Mesh
from jaxtyping import Array, Float

from moon_jax.config import Config
from moon_jax.data import prompts as chat
from moon_jax.data.prompts import EncodedPrompt
from moon_jax.data.tokenizer import Tokenizer
from moon_jax.models.generate import Generator
from moon_jax.parallel.mesh import batch_shards, host_shards
from moon_jax.training.embedder import exact


class Answerer:
    """Continues prompts greedily with parameters that lie on the mesh; compiles once for each shape of a batch."""

    def __init__(
        self,
        config: Config,
        mesh: Mesh,
        tokenizer: Tokenizer,
        head: Callable[[], Float[Array, "v d"] | None] | None = None,
    ):
        """Prepares the compiled function; parameters are given to each call.

        Args:
            config: `model` and `moe`.
            mesh: where the parameters lie.
            tokenizer: of the model.
            head: gives the output head where it is not tied to the token embedding.

        Raises:
            ConfigError: attention is not causal.
        """
        self.config, self.mesh, self.tokenizer = config, mesh, tokenizer
        self._generator = Generator(config.model, config.moe, mesh)
        self._head = head or (lambda: None)

    def answers(
        self, params: Any, batches: Iterable[Sequence[EncodedPrompt]], max_new_tokens: int, batch_size: int
    ) -> Iterator[list[str]]:
        """Yields the answers of each batch, special tokens left out; the next batch is made while one is computed.

        Args:
            params: the model's parameters, sharded as `moon.abstract` says.
            batches: prompts, at most `batch_size` for each batch shard; an empty batch has no answers.
            max_new_tokens: an answer is cut there, unless it ended before.
            batch_size: prompts of a batch on one shard.
        """
        shards, head, rows = batch_shards(self.mesh), self._head(), 1
        eos = chat.eos_ids(self.tokenizer)
        waiting = iter(batches)
        with concurrent.futures.ThreadPoolExecutor(1) as ahead:
            following = ahead.submit(next, waiting, None)
            while (prompts := following.result()) is not None:
                following = ahead.submit(next, waiting, None)
                if not prompts:
                    yield []
                    continue
                rows = min(batch_size, max(rows, -(-len(prompts) // shards)))  # a smaller batch takes the shape at hand
                shape = chat.prompt_shape(prompts, rows, shards, self.config.model.vision)
                batch = chat.prompt_batch(prompts, shape, self.config.model.vision, host_shards(self.mesh))
                with exact(self.config.model.dtype):
                    tokens = self._generator(params, batch, max_new_tokens, eos, head)
                yield [chat.answer_text(row, self.tokenizer) for row in tokens[: len(prompts)]]
