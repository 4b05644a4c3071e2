"""The only folder that knows the tensor names of PyTorch checkpoints."""
