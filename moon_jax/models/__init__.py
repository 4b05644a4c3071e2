"""The Qwen2.5-VL encoder as functional Flax, written for one shard."""
