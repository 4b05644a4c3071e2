"""Retrieval tasks, metrics and baselines over saved embeddings."""
