"""CUDA behind names: memory, streams, captured graphs, and lanes made of them."""
