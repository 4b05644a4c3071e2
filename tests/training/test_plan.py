"""The plan of a run against sums done by hand."""

import dataclasses
import re

import pytest

from moon_jax.config import Config, MeshConfig, ModelConfig, MoEConfig
from moon_jax.training.plan import describe

MERGER = 1280 + 5120 * 5120 + 5120 + 5120 * 2048 + 2048
EXPERTS = 36 * (8 * 3 * 2048 * 11008 + 2048 * 8)
VISION = 32 * (2 * 1280 + 4 * (1280 * 1280 + 1280) + 2 * (1280 * 3420 + 3420) + 3420 * 1280 + 1280) + 2 * 588 * 1280
ATTENTION = 2 * (2048 * 2048) + 2048 + 2 * (2048 * 256 + 256)
TEXT = 151936 * 2048 + 2048 + 36 * (2 * 2048 + ATTENTION)  # without FFN or experts
TOTAL = VISION + MERGER + TEXT + EXPERTS


def plan(freeze, **changes):
    config = Config(model=ModelConfig(path="checkpoint"), mesh=MeshConfig(data=1), **changes)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, freeze=freeze))
    return dict(re.split(r"  +", line, maxsplit=1) for line in describe(config).splitlines())


@pytest.mark.parametrize(
    ("freeze", "learning"),
    [
        ("vision", TEXT + EXPERTS + MERGER),
        ("llm", VISION + MERGER),
        ("backbone", EXPERTS + MERGER),
        ("vision,llm", MERGER),
    ],
)
def test_what_learns_has_gradients_and_moments_and_nothing_else_has(freeze, learning):
    rows = plan(freeze)
    assert rows["parameters"].startswith(f"{TOTAL:,} ")
    assert rows["trainable"].startswith(f"{learning:,} ({learning / TOTAL:.1%}); frozen: ")
    for name, numbers in (("parameters", TOTAL), ("gradients", learning), ("AdamW moments", 2 * learning)):
        assert rows[f"bytes per device: {name} (float32)"] == f"{4 * numbers / 2**30:.3f} GiB"


def test_all_of_them_learn_by_default():
    rows = plan("", moe=MoEConfig(experts=0))
    total = VISION + MERGER + TEXT + 36 * 3 * 2048 * 11008
    assert total == 3_754_622_976
    assert rows["parameters"] == f"{total:,} (3.75 B), of which {total:,} are used by one token"
    assert rows["trainable"] == "all of them"
    assert rows["bytes per device: AdamW moments (float32)"] == f"{8 * total / 2**30:.3f} GiB"


def test_shards_divide_the_bytes():
    whole = plan("llm", moe=MoEConfig(experts=0))
    config = Config(
        model=ModelConfig(path="checkpoint"), mesh=MeshConfig(1, 8, 1, 1), moe=MoEConfig(experts=0),
        train=dataclasses.replace(Config().train, freeze="llm"),
    )  # fmt: skip
    rows = dict(re.split(r"  +", line, maxsplit=1) for line in describe(config).splitlines())
    sizes = [float(r["bytes per device: AdamW moments (float32)"].split()[0]) for r in (whole, rows)]
    assert sizes[0] / sizes[1] == pytest.approx(8, rel=0.02), "all but norms and some biases lie over fsdp"
