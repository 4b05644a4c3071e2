"""Real product photos: shop pictures of groceries and studio pictures of clothes, from scratch on a CPU.

    python -m moon_jax.train --config=configs/shop.py:both --config.data.path=DATA --workdir=runs/shop

Argument: grocery | luma | both (default), and any of no_crop, no_moe, no_neg, joined by commas.
"""

from moon_jax.ablate import apply
from moon_jax.config import defaults

PARTS = {"grocery": ("grocery",), "luma": ("luma",), "both": ("grocery", "luma")}


def get_config(arg: str = "both"):
    c = defaults()
    c.name = "shop"
    c.data.path = "../shared/data"
    small_model(c)
    c.data.min_pixels = c.data.max_pixels = 96 * 96
    c.data.augment = True
    c.data.description = True
    c.train.batch_size = 32
    c.train.steps = 3000
    c.train.lr = 1e-3
    c.train.log_every = 20
    c.eval.every = 500
    choice = apply(c, arg.split(","), tuple(PARTS))
    c.data.parts = PARTS[choice or "both"]
    return c
