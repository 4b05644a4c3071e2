"""A training run of a tiny model on eight devices, for the tests of several processes; the argument is the data."""

from moon_jax.config import defaults


def get_config(arg: str):
    c = defaults()
    c.data.format, c.data.path = "catalogue", arg
    c.data.update(min_pixels=256, max_pixels=256, title_tokens=8, category_tokens=6, attribute_tokens=6, row_share=0.7)
    c.model.vision.update(
        depth=1, hidden_size=16, intermediate_size=24, num_heads=2, patch_size=4, window_size=16,
        fullatt_block_indexes=(0,),
    )  # fmt: skip
    c.model.text.update(
        vocab_size=320, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, mrope_section=(1, 1, 2),
    )  # fmt: skip
    c.moe.update(experts=4)
    c.mesh.update(data=2, fsdp=2, expert=2)
    c.loss.ring_batches = 1
    c.train.update(batch_size=8, steps=24, lr=1e-3, log_every=1, checkpoint_every=4, keep_checkpoints=9)
    c.eval.update(batch_documents=16, every=0, ks=(1, 5))
    return c
