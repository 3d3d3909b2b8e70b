"""Random calls and altered bundles, each from a seed: `python -m tests.fuzz calls --seed 1 --count 5000`."""
