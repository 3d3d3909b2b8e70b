"""Schedulers compiled to coefficient tables. Knows nothing about text, guidance, masks or engines."""

from latentrt.runtime.scheduler.samplers import REGISTERS

from .config import class_defaults
from .naming import resolve, scheduler_names
from .plan import Plan

__all__ = ["REGISTERS", "Plan", "class_defaults", "resolve", "scheduler_names"]
