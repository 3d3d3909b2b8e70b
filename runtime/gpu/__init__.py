"""CUDA memory, streams, events and captured graphs, and engines bound to them."""
