"""The demo: a small MOON trained from scratch on the drawn catalogue in minutes on a CPU, then evaluated.

    python -m moon_jax.train --config=configs/demo.py --workdir=runs/demo

Argument: no_crop, no_moe, no_neg, joined by commas.
"""

from moon_jax.ablate import apply
from moon_jax.config import defaults


def get_config(arg: str = ""):
    c = defaults()
    c.name = "demo"
    c.data.format = "catalogue"
    c.data.catalogue_products = 2800
    c.data.min_pixels, c.data.max_pixels = 32 * 32, 64 * 64
    c.data.max_aspect = 4.0
    c.data.title_tokens = 24
    c.data.category_tokens = 20
    c.data.attribute_tokens = 28
    c.data.row_tokens, c.data.rows = 256, 31  # a batch has 5,700 tokens, 240 more or less; 0 = room for the worst one
    c.model.attention = "bidirectional"
    c.model.vision.update(
        depth=4, hidden_size=96, intermediate_size=256, num_heads=4, patch_size=8, window_size=32,
        fullatt_block_indexes=(1, 3),
    )  # fmt: skip
    c.model.text.update(
        vocab_size=2048, hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, mrope_section=(4, 6, 6),
    )  # fmt: skip
    c.moe.update(experts=4, top_k=1, capacity_factor=1.25, guided_capacity=0.25, balance_loss=0.01)
    c.train.batch_size = 32
    c.train.steps = 80
    c.train.lr = 2e-3
    c.train.log_every = 5
    c.eval.every = 0
    c.eval.color_histogram = True
    apply(c, arg.split(","))
    return c
