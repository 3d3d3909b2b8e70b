"""A bundle's weights as arrays, and what changes them."""
