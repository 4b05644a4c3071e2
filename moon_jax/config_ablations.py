"""The ablations of the paper (5.3) and others as words: `--config=configs/shop.py:both,no_crop`, and as variants.

A variant is a config under a name, one of several that are compared: `full`, `no_crop`, `no_crop+no_moe`, or with
settings of its own `cold:loss.temperature=0.02+no_neg`.
"""

import ast
import re
from collections.abc import Mapping
from typing import Any

import ml_collections

from moon_jax.config import Config, ConfigError, resolve

FULL = "full"  # the variant that nothing is taken from, which the others are compared with


def no_crop(config: ml_collections.ConfigDict) -> None:
    """The core crop is not fed beside the whole picture."""
    config.data.crop = False


def no_moe(config: ml_collections.ConfigDict) -> None:
    """Every FFN stays the plain one."""
    config.moe.experts = 0


def no_neg(config: ml_collections.ConfigDict) -> None:
    """Negatives come only from the query's own group of triplets (its hard negatives included), none from the past."""
    config.loss.ring_batches = 0
    config.loss.group_size = min(8, config.train.batch_size)


def several_pictures(config: ml_collections.ConfigDict) -> None:
    """Up to eight pictures of an item are fed instead of its first one."""
    config.data.images_per_item = 8
    config.data.slot_share = min(0.6, config.data.slot_share)  # few items have eight


ABLATIONS = {"no_crop": no_crop, "no_moe": no_moe, "no_neg": no_neg, "several_pictures": several_pictures}


def apply(config: ml_collections.ConfigDict, words: list[str], choices: tuple[str, ...] = ()) -> str | None:
    """Applies the ablations among `words`; returns the one word that is a choice of the config itself, if any.

    Args:
        config: changed in place.
        words: the config's argument, split at its commas.
        choices: the config's own words.

    Raises:
        ValueError: a word is neither; the message lists what there is.
    """
    chosen = [word for word in words if word in choices]
    unknown = [word for word in words if word and word not in ABLATIONS and word not in choices]
    if unknown or len(chosen) > 1:
        raise ValueError(
            f"the config's argument {','.join(words)!r} is not understood; it takes "
            f"{'one of ' + ', '.join(choices) + ', and ' if choices else ''}any of {', '.join(ABLATIONS)}"
        )
    for word in words:
        if word in ABLATIONS:
            ABLATIONS[word](config)
    config.name = "_".join([config.name, *(word for word in words if word)])
    return chosen[0] if chosen else None


def variants(base: ml_collections.ConfigDict, said: str) -> dict[str, Config]:
    """Returns the config of every variant by its name, `full` first whether it is named or not.

    Args:
        base: what the variants change; stays as it is.
        said: variants joined by commas: [NAME:]PART+PART, a part is a word of ABLATIONS or KEY=VALUE. The name may be
            left out where all parts are words.

    Raises:
        ConfigError: a variant that is not understood, named twice, or whose settings cannot work.
    """
    out = {FULL: _variant(base, FULL, [])}
    for one in re.split(r",(?![^(\[]*[)\]])", said):  # not inside of a tuple
        name, colon, rest = one.strip().rpartition(":")
        parts = [part.strip() for part in re.split(r"\+(?=\s*[a-z_])", rest)]
        if not colon:
            name = rest
        if name == FULL and not colon:
            continue
        if name in out or not re.fullmatch(r"\w[\w.+-]*", name):
            raise ConfigError(
                f"the variant {one.strip()!r} needs a name of its own, of letters, digits, '_', '-', '.' and '+': "
                "NAME:KEY=VALUE+KEY=VALUE, or words joined by '+'"
            )
        out[name] = _variant(base, name, parts)
    return out


def _variant(base: ml_collections.ConfigDict, name: str, parts: list[str]) -> Config:
    config = ml_collections.ConfigDict(base.to_dict())
    settings = [part.partition("=") for part in parts if "=" in part]
    unknown = [part for part in parts if "=" not in part and part not in ABLATIONS]
    if unknown:
        raise ConfigError(
            f"the variant {name!r}: {', '.join(map(repr, unknown))} is neither KEY=VALUE nor one of {FULL}, "
            f"{', '.join(ABLATIONS)}"
        )
    for part in parts:
        if part in ABLATIONS:
            ABLATIONS[part](config)
    values = config.to_dict()
    for key, _, value in settings:
        _set(values, key.strip().removeprefix("config."), value.strip())
    values["name"] = f"{values['name']}_{name}"
    try:
        return resolve(values)
    except ConfigError as error:
        raise ConfigError(f"the variant {name!r}: {error}") from error


def _set(values: dict[str, Any], key: str, said: str) -> None:
    """Puts a value, written as in Python, at a dotted key; `resolve` judges both."""
    *groups, name = key.split(".")
    group: Any = values
    for one in groups:
        group = group.get(one) if isinstance(group, Mapping) else None
    if not isinstance(group, dict):
        raise ConfigError(f"config.{key} does not exist: there is no group {'.'.join(groups)!r}")
    if isinstance(group.get(name), str):
        group[name] = said
        return
    try:
        group[name] = ast.literal_eval({"true": "True", "false": "False"}.get(said, said))
    except (ValueError, SyntaxError):
        group[name] = said
