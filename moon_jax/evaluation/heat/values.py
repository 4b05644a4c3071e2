"""What is shown of an attention map: chosen layers and heads averaged, by picture cell, token of text and role."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from moon_jax.config import ConfigError, Role
from moon_jax.data.tokenizer import Tokenizer
from moon_jax.evaluation.heat.maps import AttentionMap, visual_runs

TEXT_ROLES = (Role.TITLE, Role.CATEGORY, Role.ATTRIBUTE)
SCALES = ("relative", "share")
PIECE_TOKENS = 8  # a character is of at most 4 tokens, of which the first and the last may hold parts of others
_DIGITS = 6  # significant ones, in JSON


def heat_values(
    attention: AttentionMap,
    tokenizer: Tokenizer,
    layers: Sequence[int],
    heads: Sequence[int],
    even: Float64[Any, " n"],
    tiles: Sequence[tuple[int, int]] = (),
) -> dict[str, Any]:
    """Returns the values of one document, as JSON.

        tokens    number of tokens
        shares    attention to all tokens of a role: image, core (the crop), title, category, attribute, other (the
                  prompt and what stands around pictures); adds up to 1
        pictures  a list of {role, grid: [high, wide], share, relative}; the last two are rows of cells, a cell for each
                  visual token (of the tiles, where there are tiles)
        text      a list of {text, role, share, relative}, one for each token, or for the tokens of one character

    `share` is the attention to the token, `relative` its ratio to `even`.

    Args:
        attention: of the document.
        tokenizer: of the model.
        layers: numbers of the layers to average.
        heads: numbers of the heads to average.
        even: what the tokens would have without regard to what they hold (`even_attention`).
        tiles: (rows, columns) of tiles of every picture, where pictures are cut into tiles (InternVL).
    """
    share = attention.weights[np.ix_(layers, heads)].mean((0, 1), dtype=np.float64)
    pictures = []
    for number, ((grid, role), run) in enumerate(zip(attention.pictures, visual_runs(attention), strict=True)):
        cells, of_even = (cells_of(x[run].reshape(grid), tiles[number] if tiles else None) for x in (share, even))
        values = {"share": _rows(cells), "relative": _rows(cells / of_even)}
        pictures.append({"role": role.name.lower(), "grid": list(cells.shape), **values})
    text = []
    for said, there in pieces(attention, tokenizer):
        values = {"share": _short(share[there].sum()), "relative": _short(share[there].sum() / even[there].sum())}
        text.append({"text": said, "role": Role(attention.roles[there][0]).name.lower(), **values})
    roles = (Role.IMAGE, Role.CORE, *TEXT_ROLES, Role.OTHER)
    shares = {role.name.lower(): _short(share[attention.roles == role].sum()) for role in roles}
    return {"tokens": len(attention.tokens), "shares": shares, "pictures": pictures, "text": text}


def cells_of(values: Float64[np.ndarray, "h w"], tiles: tuple[int, int] | None) -> Float64[np.ndarray, "high wide"]:
    """Returns the values of a picture's visual tokens as cells of the picture.

    Tiles lie one below the other in the model, and last, where there are several, the whole picture as one more tile:
    what each of its tokens has is spread evenly over the cells of the tiles that show the same place.

    Args:
        values: of the visual tokens.
        tiles: (rows, columns) of tiles; None = the picture is whole.
    """
    if tiles is None:
        return values
    rows, columns = tiles
    side = values.shape[1]
    count = rows * columns
    cut = values[: count * side].reshape(rows, columns, side, side).swapaxes(1, 2).reshape(rows * side, columns * side)
    whole = values[count * side :]
    return cut + np.kron(whole, np.full((rows, columns), 1 / count)) if whole.size else cut


def pieces(attention: AttentionMap, tokenizer: Tokenizer) -> Iterator[tuple[str, slice]]:
    """Yields the texts of the document token by token; tokens that hold parts of one character come together."""
    edges = np.flatnonzero(np.diff(attention.roles, prepend=-1, append=-1)).tolist()
    for start, end in itertools.pairwise(edges):
        if attention.roles[start] not in TEXT_ROLES:
            continue
        while start < end:
            for stop in range(start + 1, min(start + PIECE_TOKENS, end) + 1):
                said = tokenizer.decode(attention.tokens[start:stop].tolist())
                if not said.endswith("\ufffd"):  # the last character is whole
                    break
            yield said, slice(start, stop)
            start = stop


def parse_numbers(text: str, count: int, flag: str) -> tuple[int, ...]:
    """Returns the numbers of a flag like "all", "3" or "0-5,11", in rising order.

    Args:
        text: of the flag.
        count: how many there are.
        flag: its name, for errors.

    Raises:
        ConfigError: it is none of these, or there are not so many.
    """
    if text.strip() == "all":
        return tuple(range(count))
    numbers: set[int] = set()
    for word in text.split(","):
        first, dash, last = (part.strip() for part in word.partition("-"))
        last = last if dash else first
        if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
            raise ConfigError(f'--{flag}={text}: {word!r} is no number and no range; write "all", "3" or "0-5,11"')
        if int(last) >= count:
            raise ConfigError(f"--{flag}={text}: this model has {count} {flag}, numbered from 0 to {count - 1}")
        numbers.update(range(int(first), int(last) + 1))
    return tuple(sorted(numbers))


def _rows(values: Float64[np.ndarray, "h w"]) -> list[list[float]]:
    return [[_short(value) for value in row] for row in values]


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
