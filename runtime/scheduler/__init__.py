"""Schedulers compiled to coefficient tables. Knows nothing of text, guidance, masks or engines."""
