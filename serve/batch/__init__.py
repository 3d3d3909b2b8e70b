"""Jobs drawn on a Ray cluster: the same files and the same report as on one machine. Needs the extra `ray`."""

from .draw import Report, draw, outcomes
from .model import Model

__all__ = ["Model", "Report", "draw", "outcomes"]
