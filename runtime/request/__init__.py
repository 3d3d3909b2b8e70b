"""What a caller asks for, checked against one bundle."""

from .metadata import LoraFile, Source, png_text
from .options import OPTIONS, CallOptions
from .request import OUT_OF_MEMORY, Request
from .time_inputs import time_inputs

__all__ = ["OPTIONS", "OUT_OF_MEMORY", "CallOptions", "LoraFile", "Request", "Source", "png_text", "time_inputs"]
