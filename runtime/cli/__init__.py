"""The command `latentrt`."""

from .main import main

__all__ = ["main"]
