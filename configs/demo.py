"""The demo: a small MOON trained from scratch on the drawn catalogue in minutes on a CPU, then evaluated.

    python -m moon_jax.train --config=configs/demo.py --workdir=runs/demo

Argument: no_crop, no_moe, no_neg, several_pictures, joined by commas.
"""

from moon_jax.config import defaults
from moon_jax.config_ablations import apply


def get_config(arg: str = ""):
    c = defaults()
    c.name = "demo"
    c.data.format = "catalogue"
    c.data.catalogue_products = 2800
    c.data.min_pixels, c.data.max_pixels = 32 * 32, 64 * 64
    c.data.max_aspect = 4.0
    c.data.title_tokens = 16
    c.data.category_tokens = 12
    c.data.attribute_tokens = 20
    c.data.row_tokens, c.data.row_share = 128, 0.8
    c.model.attention = "bidirectional"
    c.model.vision.update(
        depth=2, hidden_size=128, intermediate_size=256, num_heads=4, patch_size=16, window_size=64,
        fullatt_block_indexes=(1,),
    )  # fmt: skip
    c.model.text.update(
        vocab_size=2048, hidden_size=128, intermediate_size=256, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, mrope_section=(4, 6, 6),
    )  # fmt: skip
    c.moe.update(experts=4, top_k=1, gate="softmax_all", capacity_factor=1.25, guided_capacity=0.25, balance_loss=0.01)
    c.loss.temperature = 0.1
    c.loss.ring_warmup_ratio = 5 / 7
    c.train.batch_size = 64
    c.train.steps = 210
    c.train.lr = 2e-3
    c.train.log_every = 10
    c.eval.every = 0
    c.eval.color_histogram = True
    apply(c, arg.split(","))
    return c
