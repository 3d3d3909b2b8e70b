"""Decides and runs what a device does next. Knows no HTTP."""
