"""Schedulers compiled to coefficient tables. Knows nothing about text, guidance, masks or engines."""

from .plan import REGISTERS, Plan, resolve, scheduler_names

__all__ = ["REGISTERS", "Plan", "resolve", "scheduler_names"]
