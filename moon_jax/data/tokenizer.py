"""Qwen2's tokenizer: loaded from a Hugging Face folder, or a small one trained on the texts at hand."""

import dataclasses
import functools
import hashlib
import json
import pathlib
import re
from collections.abc import Iterable

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from moon_jax.data.policy import well_formed

IMAGE_PAD, VISION_START, VISION_END = "<|image_pad|>", "<|vision_start|>", "<|vision_end|>"
INTERN_PAD, INTERN_START, INTERN_END = "<IMG_CONTEXT>", "<img>", "</img>"  # InternVL's, beside Qwen2.5's own

# Qwen2.5-VL's special tokens, in the order of their ids (from <|endoftext|> = 151643).
SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", VISION_START, VISION_END, "<|vision_pad|>", IMAGE_PAD,
    "<|video_pad|>",
)  # fmt: skip

# How Qwen2 splits a text before BPE: contractions, words, single digits, punctuation, line ends, white space.
PRETOKENIZE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class TokenizerError(ValueError):
    """A tokenizer folder that cannot be used; the message says what is missing and what to do."""


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Text -> token ids. What a customer or a seller wrote can never become a special token.

    Any str is accepted: characters are normalised to NFC and encoded by their UTF-8 bytes, NUL and right-to-left marks
    like any other; only lone surrogates, which UTF-8 cannot hold, become U+FFFD.
    """

    backend: tokenizers.Tokenizer  # without its special tokens, so that it cannot produce them
    special: dict[str, int]  # every added token -> id
    vocab_size: int  # largest id + 1

    @property
    def fingerprint(self) -> str:
        """The sha256 of everything that decides which ids a text gets."""
        state = json.dumps([json.loads(self.backend.to_str()), self.special], sort_keys=True)
        return hashlib.sha256(state.encode()).hexdigest()

    @property
    def image_pad(self) -> int:
        """Id of the token that stands for one visual token."""
        return self.special[INTERN_PAD if self._intern else IMAGE_PAD]

    @property
    def vision_start(self) -> int:
        """Id of the token before a picture."""
        return self.special[INTERN_START if self._intern else VISION_START]

    @property
    def vision_end(self) -> int:
        """Id of the token after a picture."""
        return self.special[INTERN_END if self._intern else VISION_END]

    @property
    def _intern(self) -> bool:
        """Whether pictures stand between InternVL's tokens: no other tokenizer has them."""
        return all(name in self.special for name in (INTERN_PAD, INTERN_START, INTERN_END))

    def encode(self, text: str) -> list[int]:
        """Returns the token ids of an untrusted text; "<|image_pad|>" in it is plain text."""
        return self.backend.encode(well_formed(text), add_special_tokens=False).ids

    def encode_template(self, text: str) -> list[int]:
        """Returns the token ids of our own prompt text, in which special tokens are special ("<|im_start|>")."""
        ids: list[int] = []
        for piece in self._pieces.split(text):
            ids += [self.special[piece]] if piece in self.special else self.encode(piece) if piece else []
        return ids

    @functools.cached_property
    def _pieces(self) -> re.Pattern[str]:
        longest_first = sorted(self.special, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, longest_first))})")

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of token ids, special tokens by their names."""
        names = {number: name for name, number in self.special.items()}
        text, plain = [], []
        for number in ids:
            if number in names:
                text += [self.backend.decode(plain), names[number]]
                plain = []
            else:
                plain.append(number)
        return "".join(text) + self.backend.decode(plain)


def load(folder: str | pathlib.Path, vocab_size: int | None = None) -> Tokenizer:
    """Returns the tokenizer of a Hugging Face folder (tokenizer.json).

    Args:
        folder: as `save_pretrained` writes it and the hub has it.
        vocab_size: rows of the model's token table (config.model.text.vocab_size), to be checked against the ids.

    Raises:
        TokenizerError: no tokenizer.json, no single vision tokens in it, special tokens that plain text could produce,
            or ids beyond `vocab_size`.
    """
    folder = pathlib.Path(folder)
    file = folder / "tokenizer.json"
    if not file.exists():
        there = ", ".join(sorted(p.name for p in folder.iterdir())[:20]) if folder.is_dir() else "no such folder"
        raise TokenizerError(
            f"{folder} has no tokenizer.json ({there}). vocab.json and merges.txt alone do not say which tokens are "
            "special; let transformers write the file: AutoTokenizer.from_pretrained(...).save_pretrained(folder)"
        )
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
        special = {token["content"]: token["id"] for token in state.pop("added_tokens")}
        backend = tokenizers.Tokenizer.from_str(json.dumps(state | {"added_tokens": []}))
    except Exception as error:  # the backend raises bare Exception
        raise TokenizerError(f"{file} is not a tokenizer of the tokenizers library: {error}") from error
    _check(backend, special, file)
    largest = max(*backend.get_vocab(with_added_tokens=False).values(), *special.values())
    if vocab_size is not None and largest >= vocab_size:
        raise TokenizerError(
            f"{file} has ids up to {largest}, but config.model.text.vocab_size is {vocab_size}; it must be at least "
            f"{largest + 1}"
        )
    return Tokenizer(backend, special, largest + 1)


def _check(backend: tokenizers.Tokenizer, special: dict[str, int], file: pathlib.Path) -> None:
    missing = [name for name in (VISION_START, VISION_END, IMAGE_PAD) if name not in special]
    intern = [name for name in (INTERN_START, INTERN_END, INTERN_PAD) if name not in special]
    if missing and intern:
        raise TokenizerError(
            f"{file} has no special token {', '.join(missing)}: it would split into pieces and pictures would have no "
            "place. Use the tokenizer of a Qwen2.5-VL (or Qwen2-VL, InternVL) model"
        )
    ids = frozenset(special.values())
    plain = [name for name in special if ids.intersection(backend.encode(name, add_special_tokens=False).ids)]
    if plain:
        raise TokenizerError(f"{file}: plain text can produce the special tokens {', '.join(plain)}")


def train_bpe(texts: Iterable[str], folder: str | pathlib.Path, vocab_size: int) -> Tokenizer:
    """Returns a byte-level BPE trained on `texts`, and writes it to `folder` for AutoTokenizer.

    It is Qwen2's in all but the merges: NFC, the same pre-tokenizer, all 256 bytes, Qwen2.5-VL's special tokens after
    the vocabulary. The same texts give the same files.

    Args:
        texts: titles, descriptions, attributes ... of the training set.
        folder: gets tokenizer.json and tokenizer_config.json.
        vocab_size: an upper bound, special tokens included; few texts have fewer merges.

    Raises:
        TokenizerError: `vocab_size` cannot hold the bytes and the special tokens.
    """
    least = 256 + len(SPECIAL_TOKENS)
    if vocab_size < least:
        raise TokenizerError(
            f"the vocabulary needs at least {least} entries (bytes and special tokens), not {vocab_size}"
        )
    backend = build(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator((well_formed(text) for text in texts), trainer)
    return save(backend, folder)


def build(model: models.BPE) -> tokenizers.Tokenizer:
    """Returns Qwen2's tokenizer around a byte-level BPE: NFC and its pre-tokenizer, no added tokens yet."""
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(tokenizers.Regex(PRETOKENIZE), behavior="isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    return backend


def save(backend: tokenizers.Tokenizer, folder: str | pathlib.Path, plain: Iterable[str] = ()) -> Tokenizer:
    """Returns the tokenizer of a `build`, written to `folder` as a Qwen2Tokenizer for AutoTokenizer.

    `SPECIAL_TOKENS` get the ids behind the vocabulary; `plain` follows, which are single tokens too but which
    transformers does not hide from readers as it does special ones.
    """
    for names, special in (SPECIAL_TOKENS, True), (plain, False):
        backend.add_tokens([tokenizers.AddedToken(name, special=special, normalized=False) for name in names])
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "add_prefix_space": False,
        "model_max_length": 131072,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return load(folder)
