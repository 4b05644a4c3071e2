r"""The paper's recipe at full size: Qwen2.5-VL-3B, 8 experts in every FFN, about 20.8 B parameters.

    python -m moon_jax.train --config=configs/moon_3b.py --workdir=runs/moon_3b \
        --config.data.path=DATA --config.model.path=Qwen2.5-VL-3B-Instruct

What the paper states: the mix of modalities, cosine schedule, warm-up ratio 0.05, hard negatives, spatial and temporal
negatives. What it leaves open is ours: see the README's table. `model.path` is a folder of Qwen2.5-VL as published, or
a checkpoint of ours; each expert starts as a copy of its layer's FFN. Without it the weights are random.
Argument: no_crop, no_moe, no_neg, several_pictures, joined by commas.
"""

from moon_jax.config import defaults
from moon_jax.config_ablations import apply


def get_config(arg: str = ""):
    c = defaults()
    c.name = "moon_3b"
    c.data.format = "mbe"
    c.data.max_pixels = 448 * 448
    for prompt in (c.data.prompt, c.data.query_prompt):
        prompt.prefix = "<|im_start|>user\n"
        prompt.suffix = "<|im_end|>\n"
    c.data.workers = 8
    c.data.on_error = "skip"
    c.model.dtype = "bfloat16"
    c.moe.capacity_factor = 1.25
    c.moe.guided_capacity = 0.25
    c.moe.balance_loss = 0.01
    c.moe.z_loss = 0.001
    c.loss.ring_batches = 2
    c.train.batch_size = 256
    c.train.steps = round(1.7 * 2_694_397 / c.train.batch_size)
    c.train.lr = 1e-5
    c.mesh.fsdp = 16
    c.mesh.expert = 4
    c.eval.every = 1000
    c.train.checkpoint_every = 500
    apply(c, arg.split(","))
    return c
