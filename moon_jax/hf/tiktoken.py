"""A tiktoken rank file (`qwen.tiktoken`) -> the same tokenizer as a Hugging Face folder, for AutoTokenizer and for us.

The vocabulary of Qwen2.5-VL is public without its weights: Alibaba's package `dashscope` (Apache-2.0) holds the rank
file, one token a line: base64 of its bytes, and its id, which is also its priority. The library `tokenizers` wants the
pair of tokens that each token is merged from. It follows from the priorities: the merges that come before a token,
applied to its bytes, leave exactly two parts.
"""

import base64
import binascii
import collections
import importlib.util
import itertools
import pathlib
from collections.abc import Iterator, Mapping, Sequence

from tokenizers import models

from moon_jax.data.tokenizer import Tokenizer, TokenizerError, build, save

# What Qwen2.5 adds behind its special tokens.
PLAIN_TOKENS = (
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>",
    "<|file_sep|>",
)  # fmt: skip


def qwen_ranks() -> pathlib.Path:
    """Returns the rank file of Qwen2.5-VL in the installed package dashscope, whose code is not run.

    Raises:
      TokenizerError: it is not installed, or has no such file.
    """
    spec = importlib.util.find_spec("dashscope")
    for folder in (spec and spec.submodule_search_locations) or ():
        file = pathlib.Path(folder) / "resources" / "qwen.tiktoken"
        if file.is_file():
            return file
    raise TokenizerError("no resources/qwen.tiktoken of the package dashscope: pip install --no-deps dashscope")


def convert_tiktoken(file: str | pathlib.Path, folder: str | pathlib.Path) -> Tokenizer:
    """Returns the tokenizer of a rank file with Qwen2.5-VL's added tokens behind it, and writes it to `folder`.

    Args:
      file: see `qwen_ranks`; its ids must be 0, 1, 2, ... without a gap.
      folder: gets tokenizer.json and tokenizer_config.json (a Qwen2Tokenizer).

    Raises:
      TokenizerError: names the lines that cannot be read, the ids and bytes that are missing or occur twice, and the
        tokens that no merge leads to.
    """
    ranks = read_ranks(file)
    vocabulary = {_printable(token): rank for token, rank in ranks.items()}
    merges = [(_printable(left), _printable(right)) for left, right in merged_pairs(ranks, file)]
    return save(build(models.BPE(vocabulary, merges)), folder, PLAIN_TOKENS)


def read_ranks(file: str | pathlib.Path) -> dict[bytes, int]:
    """Returns token -> id of a rank file, in the order of the ids.

    Raises:
      TokenizerError: as `convert_tiktoken`.
    """
    try:
        lines = pathlib.Path(file).read_bytes().splitlines()
    except OSError as error:
        raise TokenizerError(f"{file} cannot be read: {error.strerror}") from error
    ranks: dict[bytes, int] = {}
    wrong = []
    for number, line in enumerate(lines, start=1):
        try:
            token, rank = line.split()
            token, rank = base64.b64decode(token, validate=True), int(rank)
        except (ValueError, binascii.Error):
            if line.strip():
                wrong.append(f"line {number} is not a base64 token and its id")
            continue
        if not token or token in ranks:
            wrong.append(f"line {number} has {'the same token as another' if token else 'no token'}")
        ranks[token] = rank
    ids = collections.Counter(ranks.values())
    missing = [rank for rank in range(len(ranks)) if rank not in ids]
    if missing and not wrong:
        twice = [rank for rank, times in ids.items() if times > 1]
        wrong.append(f"of the ids 0 to {len(ranks) - 1} are missing: {_some(missing)}; occur twice: {_some(twice)}")
    lacking = [f"0x{byte:02x}" for byte in range(256) if bytes([byte]) not in ranks]
    if lacking:
        wrong.append(f"no token for the bytes {_some(lacking)}")
    _refuse(file, wrong)
    return dict(sorted(ranks.items(), key=lambda item: item[1]))


def merged_pairs(ranks: Mapping[bytes, int], file: str | pathlib.Path = "ranks") -> Iterator[tuple[bytes, bytes]]:
    """Gives the two tokens that each token of more than one byte is merged from, in the order of `ranks`.

    Raises:
      TokenizerError: names the tokens that cannot be reached.
    """
    lost = []
    for token, rank in ranks.items():
        if len(token) == 1:
            continue
        parts = _merge(token, ranks, rank)
        if len(parts) == 2:
            yield parts[0], parts[1]
        else:
            lost.append(f"token {rank} ({token!r}) is never merged from two others")
    _refuse(file, lost)


def _merge(token: bytes, ranks: Mapping[bytes, int], below: int) -> list[bytes]:
    """Returns the parts of a token after all merges of a lower rank, the lowest first and from the left."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        found = [ranks.get(left + right, below) for left, right in itertools.pairwise(parts)]
        rank = min(found)
        if rank >= below:
            break
        at = found.index(rank)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def _refuse(file: str | pathlib.Path, wrong: list[str]) -> None:
    if wrong:
        more = f"\n  - and {len(wrong) - 20} more" if len(wrong) > 20 else ""
        shown = "".join(f"\n  - {message}" for message in wrong[:20])
        raise TokenizerError(f"{file} is not a tiktoken rank file that can be used:{shown}{more}")


def _some(things: Sequence[object]) -> str:
    return (", ".join(map(str, things[:20])) or "none") + (" ..." if len(things) > 20 else "")


def _alphabet() -> dict[int, str]:
    """Returns the character that stands for each byte in tokenizer.json: itself if it is visible, else from U+0100."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + n) for n, byte in enumerate(hidden)}


_CHARACTERS = _alphabet()


def _printable(token: bytes) -> str:
    return "".join(map(_CHARACTERS.__getitem__, token))
