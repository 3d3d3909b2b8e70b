"""Benchmarks of latentrt, run from the repository's root: `python -m benchmarks.speed.latency`."""
