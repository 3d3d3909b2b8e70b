"""Models for NVIDIA Triton Inference Server: their folders, and what its Python backend runs."""
