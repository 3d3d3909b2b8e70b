"""What a caller asks for, checked against one bundle."""

from .adapter_options import ImagePromptUse
from .metadata import LoraFile, Source, png_text
from .options import OPTIONS, CallOptions
from .request import OUT_OF_MEMORY, Request
from .time_inputs import time_inputs

__all__ = [
    "OPTIONS",
    "OUT_OF_MEMORY",
    "CallOptions",
    "ImagePromptUse",
    "LoraFile",
    "Request",
    "Source",
    "png_text",
    "time_inputs",
]
