"""Prompts to embeddings. Knows CLIP's tokens, weights of words, and text encoders by name."""
