"""Checkpoints of every supported form, as PyTorch modules."""
