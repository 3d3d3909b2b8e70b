"""The PyTorch-free runtime."""
