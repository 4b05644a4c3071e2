"""Where a run's weights come from: a checkpoint lends its sizes to the config and its weights to the first state."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from moon_jax.config import Config, ConfigError, ModelConfig, resolve, to_dict
from moon_jax.config_rules import size_problems
from moon_jax.training.pretrained import Pretrained, open_pretrained
from moon_jax.weights import folder
from moon_jax.weights.source import Source, Upcycled, fingerprint
from moon_jax.weights.spec import ModelSpec


@dataclasses.dataclass(frozen=True)
class Start:
    """What a run begins with.

    Attributes:
        config: of the run, with the sizes of the checkpoint.
        pretrained: the checkpoint; None where weights are drawn, or where a resumed run does without it.
        saved: `weights()` of the run that is resumed.
    """

    config: Config
    pretrained: Pretrained | None = None
    saved: Mapping[str, Any] | None = None

    @property
    def upcycles(self) -> bool:
        """Whether the config has experts and the checkpoint has none."""
        return self.pretrained is not None and self.config.moe.experts > 0 and not self.pretrained.spec.moe.experts

    @property
    def source(self) -> Source | None:
        """The weights to start with; None where they are drawn."""
        if not self.upcycles:
            return self.pretrained and self.pretrained.source
        moe = self.config.moe
        return Upcycled(self.pretrained.source, moe, self.config.train.seed, moe.upcycle_noise)

    def weights(self) -> dict[str, Any] | None:
        """Returns what the run's own checkpoints say of the weights that it started from, as JSON.

        {"fingerprint": ..., "tied": whether the output head is text/embed, "origin": see weights/card.py}; None where
        weights are drawn. The origin has digests of all files and is process 0's, which writes it.
        """
        if self.pretrained is None:
            return self.saved and dict(self.saved)
        found = fingerprint(self.pretrained.source)
        if self.saved and self.saved["fingerprint"] == found:
            return dict(self.saved)
        origin = dict(self.pretrained.origin()) if jax.process_index() == 0 else {}
        if self.upcycles:
            moe, seed = self.config.moe, self.config.train.seed
            noise = f", noise {moe.upcycle_noise:g}" if moe.upcycle_noise else ""
            copied = f"every FFN copied to {moe.experts} experts (seed {seed}{noise})"
            origin["changes"] = [*origin.get("changes", ()), copied]
        return {"fingerprint": found, "tied": self.pretrained.spec.tied, "origin": origin}

    def notes(self) -> list[str]:
        """Returns what the log should say about the start, a line each."""
        if self.pretrained is None:
            return []
        model, moe, theirs = self.config.model, self.config.moe, self.pretrained.spec.model
        lines = [f"starting from the weights of {model.path}"]
        if self.upcycles:
            lines[0] += f", every FFN copied to {moe.experts} experts"
            if moe.gate == "softmax_all":
                lines.append(
                    "with config.moe.gate = 'softmax_all' the weights of a token's experts sum to less than 1, so that "
                    "training does not start at the dense model; with 'softmax_active' it does"
                )
        if model.attention != theirs.attention:
            lines.append(f"the checkpoint's attention is {theirs.attention}; it becomes {model.attention}")
        return lines


def find(config: Config, saved: Mapping[str, Any] | None = None) -> Start:
    """Returns the start that `config.model.path` names; opens the checkpoint, but reads no weights.

    Args:
        config: as resolved.
        saved: meta of the training checkpoint that the run goes on from. It has the weights and the sizes, so that the
            folder may be gone; while it is there, the caller compares what `Start.weights` says now and then.

    Raises:
        WeightsError: the folder is no checkpoint that can be used.
        ConfigError: sizes or experts of config and checkpoint differ; names them all.
    """
    path, before = config.model.path, (saved or {}).get("weights")
    if not path:
        return Start(config)
    here = pathlib.Path(path).expanduser().exists()
    if saved is not None and not multihost_utils.broadcast_one_to_all(np.int32(here)):
        values, model = to_dict(config), saved["config"]["model"]
        values["model"] |= {name: model[name] for name in ("vision", "text", "attention")}
        return Start(resolve(values), None, before)
    pretrained = open_pretrained(path)
    return Start(adopt(config, pretrained.spec), pretrained, before)


def assets(config: Config, tokenizer_folder: pathlib.Path, meta: Mapping[str, Any], step: int) -> dict[str, bytes]:
    """Returns the files that make a training checkpoint a model: what it is, tokenizer, model card.

    Args:
        config: of the run, with the sizes that hold.
        tokenizer_folder: of the run.
        meta: of the run's checkpoints; "weights" is `Start.weights()`.
        step: of the checkpoint.

    Raises:
        WeightsError: the tokenizer is not whole.
    """
    weights = meta["weights"] or {"tied": True, "origin": {"kind": "random"}}
    spec = ModelSpec(config.model, config.moe, config.data, weights["tied"])
    origin = {"kind": "training", "name": config.name, "step": step, "origin": weights["origin"]}
    return folder.assets(spec, tokenizer_folder, origin)


def adopt(config: Config, spec: ModelSpec) -> Config:
    """Returns the config with the sizes and the attention of a checkpoint.

    A setting at its default takes the checkpoint's value. Bidirectional attention may be asked of a causal checkpoint:
    training can teach it.

    Raises:
        ConfigError: names every size that differs from both the default and the checkpoint's, and every setting of the
            experts that is not the one the weights were trained with.
    """
    default, problems, parts = ModelConfig(), [], {}
    for part in ("vision", "text"):
        ours, theirs, usual = (getattr(model, part) for model in (config.model, spec.model, default))
        parts[part] = theirs
        for field in dataclasses.fields(ours):
            value, other = getattr(ours, field.name), getattr(theirs, field.name)
            if value not in (other, getattr(usual, field.name)):
                problems.append(f"config.model.{part}.{field.name} is {value!r}, the checkpoint's is {other!r}")
    if spec.moe.experts:
        for name in ("experts", "top_k", "gate", "guided"):
            value, other = getattr(config.moe, name), getattr(spec.moe, name)
            if value != other:
                problems.append(f"config.moe.{name} is {value!r}, the checkpoint's is {other!r}")
        if config.moe.upcycle_noise:
            problems.append("config.moe.upcycle_noise is for dense weights; the checkpoint has experts")
    attention = spec.model.attention if config.model.attention == default.attention else config.model.attention
    if config.loss.kind == "next_token" and not spec.tied:
        problems.append(
            "config.loss.kind = 'next_token' needs an output head tied to the token embedding; the checkpoint has "
            "one of its own, which training leaves out"
        )
    adopted = dataclasses.replace(config, model=dataclasses.replace(config.model, attention=attention, **parts))
    problems += size_problems(adopted)
    if problems:
        raise ConfigError(
            f"the config does not fit the checkpoint {config.model.path}, whose sizes hold where it names none:\n"
            + "\n".join(f"  - {p}" for p in problems)
        )
    return adopted
