"""Benchmarks of what is drawn: how well pictures match their prompts, and what lower precision costs."""
