"""MOON in JAX/Flax: multimodal product embeddings from Qwen2.5-VL with a guided mixture of experts."""
