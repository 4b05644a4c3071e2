"""From records to packed batches; numpy and Pillow, no jax."""
