"""The tokenizer of a baseline's folder: texts of strangers to ids, special tokens by their names."""

import json

import tokenizers

from moon_jax.data.policy import CHARACTERS_PER_TOKEN, well_formed
from moon_jax.evaluation.baselines.folder import TOKENIZER, BaselineError, ModelFolder


class Words:
    """Token ids of texts, by the folder's tokenizer.json as it was published.

    What looks like a special token in a text is plain text. A prompt is put together piece by piece: the template's
    special tokens by name, what stands between two of them by `encode`; that gives the ids of the whole prompt in one,
    as a tokenizer splits at special tokens first.
    """

    def __init__(self, folder: ModelFolder, special: tuple[str, ...]):
        """Reads the tokenizer.

        Args:
            folder: of the model.
            special: the template's special tokens; no text can produce them.

        Raises:
            BaselineError: it is no tokenizer.json, or lacks one of these tokens.
        """
        state = folder.json(TOKENIZER)
        file = folder.path / TOKENIZER
        try:
            for token in state.get("added_tokens", ()):
                token["special"] = token["special"] or token["content"] in special
            self._backend = tokenizers.Tokenizer.from_str(json.dumps(state))
        except Exception as error:  # the backend raises bare Exception
            raise BaselineError(f"{file} is not a tokenizer of the tokenizers library: {error}") from error
        self._backend.no_padding()
        self._backend.no_truncation()
        self._backend.encode_special_tokens = True
        self._special = {name: self._backend.token_to_id(name) for name in special}
        missing = [name for name, number in self._special.items() if number is None]
        if missing:
            raise BaselineError(f"{file} has no token {', '.join(missing)}: it is another model's tokenizer")
        self.size = self._backend.get_vocab_size()

    def __getitem__(self, name: str) -> int:
        """Returns the id of one of the special tokens."""
        return self._special[name]

    def encode(self, text: str, limit: int | None = None) -> tuple[list[int], bool]:
        """Returns the ids of a text and whether it was longer than `limit` tokens and cut."""
        most = None if limit is None else max(limit, 0)
        read = text if most is None else text[: most * CHARACTERS_PER_TOKEN]  # a million would take seconds
        ids = self._backend.encode(well_formed(read), add_special_tokens=False).ids
        return ids[:most], len(ids) > len(ids[:most]) or len(text) > len(read)
