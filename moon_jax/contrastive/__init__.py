"""The contrastive loss and its ring of past batches."""
