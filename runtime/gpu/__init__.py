"""CUDA memory, streams, captured graphs, and lanes built from them."""
