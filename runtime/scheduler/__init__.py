"""Schedulers compiled to coefficient tables. Knows nothing about text, guidance, masks or engines."""

from .config import class_defaults
from .plan import REGISTERS, Plan, resolve, scheduler_names

__all__ = ["REGISTERS", "Plan", "class_defaults", "resolve", "scheduler_names"]
