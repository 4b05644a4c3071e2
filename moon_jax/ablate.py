"""The ablations of the paper (5.3) as words of a config's argument: `--config=configs/shop.py:both,no_crop`."""

import ml_collections


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


ABLATIONS = {"no_crop": no_crop, "no_moe": no_moe, "no_neg": no_neg}


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
