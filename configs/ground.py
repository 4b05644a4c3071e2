"""A small model that learns to say where the product is: trained from scratch on the drawn catalogue on a CPU.

    python -m moon_jax.train --config=configs/ground.py --workdir=runs/ground
    python -m moon_jax.detect --model=runs/ground --input=runs/ground/catalogue --shipped=check --output=boxes.jsonl

It is asked and answers in fewer words than Qwen2.5-VL, which needs no training for this: see docs/detect.md.
"""

from moon_jax.config import defaults


def get_config():
    c = defaults()
    c.name = "ground"
    c.loss.kind = "next_token"
    c.loss.ring_batches = 0
    c.data.format = "catalogue"
    c.data.catalogue_products = 2800
    c.data.min_pixels, c.data.max_pixels = 16 * 16, 32 * 32
    c.data.max_aspect = 4.0
    c.data.title_tokens = 8
    c.data.augment = True
    c.data.augment_area = 0.4
    c.data.crop = False
    c.data.grounding.update(system="", prompt="{title}", untitled="product", answer="{box}", max_new_tokens=24)
    # 8 x 8 visual tokens; rope_theta so small that neighbouring ones are at different angles in the width too, whose
    # frequencies are the lowest.
    c.model.vision.update(
        depth=2, hidden_size=128, intermediate_size=256, num_heads=4, patch_size=4, spatial_merge_size=1,
        window_size=32, fullatt_block_indexes=(0, 1),
    )  # fmt: skip
    c.model.text.update(
        vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, mrope_section=(4, 6, 6), rope_theta=4.0,
    )  # fmt: skip
    c.moe.experts = 0
    c.train.batch_size = 32
    c.train.steps = 4000
    c.train.lr = 2e-3
    c.train.log_every = 50
    c.train.checkpoint_every = 500
    c.eval.every = 1000
    c.eval.max_queries = 200
    c.eval.metric = "unseen/query/IoU"
    return c
