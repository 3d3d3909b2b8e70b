"""Bundles that ship with latentrt: data only."""
