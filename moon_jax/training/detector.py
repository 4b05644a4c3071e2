"""Questions in, boxes out, with parameters given to each call: what evaluation and `moon_jax.detect` share."""

import concurrent.futures
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from jax.sharding import Mesh
from jaxtyping import Array, Float

from moon_jax.config import Config
from moon_jax.data import grounding, picture_files
from moon_jax.data.grounding import Frame, Question
from moon_jax.data.grounding_answers import SHIPPED, UNREADABLE, Found, find_box
from moon_jax.data.prompts import EncodedPrompt
from moon_jax.data.records import DataError
from moon_jax.data.tokenizer import Tokenizer
from moon_jax.parallel.mesh import batch_shards
from moon_jax.training.answerer import Answerer

WINDOW_BATCHES = 16  # questions are sorted by the size of their pictures within so many batches


class _Asked(NamedTuple):
    """A question that is ready: with its prompt, or settled without one."""

    question: Question
    frame: Frame | None
    prompt: EncodedPrompt | None
    found: Found | None


class Detector:
    """Asks a generative model where products are."""

    def __init__(
        self,
        config: Config,
        mesh: Mesh,
        tokenizer: Tokenizer,
        head: Callable[[], Float[Array, "v d"] | None] | None = None,
    ):
        """Prepares the compiled function; see `Answerer`.

        Args:
            config: `model`, `moe`, and of `data` the pictures' settings, `title_tokens`, `grounding` and `on_error`.
            mesh: where the parameters lie.
            tokenizer: of the model.
            head: gives the output head where it is not tied to the token embedding.

        Raises:
            ConfigError: attention is not causal.
        """
        self.config, self.tokenizer = config, tokenizer
        self._answerer = Answerer(config, mesh, tokenizer, head)
        self._shards = batch_shards(mesh)

    def detect(self, params: Any, questions: Sequence[Question]) -> list[Found]:
        """Returns what the model answers to each question, known boxes or not, in the order of the questions."""
        out: dict[int, Found] = {}
        numbers = {id(question): number for number, question in enumerate(questions)}
        for batch in self.batches(params, questions, self.config.eval.batch_documents, ask_shipped=True):
            out |= {numbers[id(question)]: found for question, found in batch}
        return [out[number] for number in range(len(questions))]

    def batches(
        self,
        params: Any,
        questions: Iterable[Question],
        batch_size: int,
        *,
        done: int = 0,
        ask_shipped: bool = False,
    ) -> Iterator[list[tuple[Question, Found]]]:
        """Yields questions with what was found, batch by batch, the same on every process.

        The order is a function of the questions alone: window after window, in each first what needs no answer, then
        the others by falling size of their pictures. So a run can be gone on with after any number of them.

        Args:
            params: the model's parameters, sharded as `moon.abstract` says.
            questions: any number.
            batch_size: questions of a batch on one batch shard.
            done: so many at the start of this order are left out.
            ask_shipped: also where the box is known.

        Raises:
            DataError: a picture cannot be read and `config.data.on_error` is "raise".
        """
        ready: list[list[_Asked]] = []  # made by the thread that runs ahead, used up behind it

        def prompts() -> Iterator[list[EncodedPrompt]]:
            for batch in self._plan(questions, batch_size * self._shards, done, ask_shipped):
                with concurrent.futures.ThreadPoolExecutor() as pool:  # Pillow lets go of the GIL
                    ready.append(list(pool.map(lambda question: self._prepare(question, ask_shipped), batch)))
                yield [asked.prompt for asked in ready[-1] if asked.prompt is not None]

        grounding_config = self.config.data.grounding
        for answers in self._answerer.answers(params, prompts(), grounding_config.max_new_tokens, batch_size):
            given, out = iter(answers), []
            for asked in ready.pop(0):
                found = asked.found
                if asked.prompt is not None:
                    title = asked.question.title
                    found = find_box(next(given), title, asked.frame, grounding_config.coordinates)
                out.append((asked.question, found))
            yield out

    def _plan(
        self, questions: Iterable[Question], batch: int, done: int, ask_shipped: bool
    ) -> Iterator[Sequence[Question]]:
        waiting, size = iter(questions), WINDOW_BATCHES * batch
        while window := list(itertools.islice(waiting, size)):
            if done >= len(window):
                done -= len(window)
                continue
            with concurrent.futures.ThreadPoolExecutor() as pool:
                pixels = list(pool.map(lambda question: self._pixels(question, ask_shipped), window))
            order = sorted(range(len(window)), key=lambda i: (pixels[i] > 0, -pixels[i]))
            settled = sum(count == 0 for count in pixels)
            cuts = [0, *range(settled, len(window), batch), len(window)]
            for start, stop in itertools.pairwise(cuts):
                part = [window[i] for i in order[start:stop]][done:]
                done = max(0, done - (stop - start))
                if part:
                    yield part

    def _pixels(self, question: Question, ask_shipped: bool) -> int:
        """Returns how many pixels the model will see, 0 where it will not be asked."""
        if question.image.box is not None and not ask_shipped:
            return 0
        try:
            size = picture_files.upright_size(question.image.path)
        except DataError:
            return 0
        wide, high = Frame.of(size, self.config.data, self.config.model.vision).seen
        return wide * high

    def _prepare(self, question: Question, ask_shipped: bool) -> _Asked:
        data, vision = self.config.data, self.config.model.vision
        if question.image.box is not None and not ask_shipped:
            return _Asked(question, None, None, Found(question.image.box, SHIPPED))
        try:
            image = picture_files.load(question.image.path)
        except DataError as error:
            if data.on_error == "raise":
                raise type(error)(f"{question.kind} {question.id}: {error}") from error
            return _Asked(question, None, None, Found(None, UNREADABLE, str(error)))
        picture = grounding.see(image, data, vision)
        prompt = grounding.ask(picture, question.title, self.tokenizer, data, vision)
        return _Asked(question, Frame.of(image.size, data, vision), prompt, None)
