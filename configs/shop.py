"""Real product photos: shop pictures of groceries and studio pictures of clothes, from scratch on a CPU.

    python -m moon_jax.train --config=configs/shop.py:both --config.data.path=DATA --workdir=runs/shop

Argument: grocery | luma | both (default), and any of no_crop, no_moe, no_neg, several_pictures, joined by commas.
"""

from moon_jax.config import defaults
from moon_jax.config_ablations import apply

PARTS = {"grocery": ("grocery",), "luma": ("luma",), "both": ("grocery", "luma")}


def get_config(arg: str = "both"):
    c = defaults()
    c.name = "shop"
    c.data.path = "../shared/data"
    c.data.min_pixels, c.data.max_pixels = 32 * 32, 64 * 64
    c.data.max_aspect = 4.0
    c.data.augment = True
    c.data.augment_area = 0.35
    c.data.own_picture = 0.4
    c.data.own_box = 0.3
    c.data.title_dropout = 0.5
    c.data.title_tokens = 32
    c.data.category_tokens = 8
    c.data.attribute_tokens = 8
    c.data.row_tokens, c.data.row_share, c.data.slot_share = 192, 0.5, 0.9
    c.model.attention = "bidirectional"
    c.model.vision.update(
        depth=2, hidden_size=128, intermediate_size=256, num_heads=4, patch_size=8, window_size=32,
        fullatt_block_indexes=(1,),
    )  # fmt: skip
    c.model.text.update(
        vocab_size=2048, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, mrope_section=(4, 6, 6),
    )  # fmt: skip
    c.moe.update(experts=4, top_k=1, gate="softmax_all", capacity_factor=1.25, guided_capacity=0.25, balance_loss=0.01)
    c.loss.temperature = 0.07
    c.loss.ring_warmup_ratio = 0.5
    c.train.batch_size = 32
    c.train.steps = 2400
    c.train.optimizer = "muon"
    c.train.lr = 2e-3
    c.train.weight_decay = 0.05
    c.train.log_every = 20
    c.train.checkpoint_every = 600
    c.eval.every = 1200
    c.eval.metric = "seen/image/R@1"
    c.eval.color_histogram = True
    choice = apply(c, arg.split(","), tuple(PARTS))
    c.data.parts = PARTS[choice or "both"]
    return c
