"""What a caller asks for, checked against one bundle."""

from .adapter_options import ImagePromptUse
from .metadata import LoraFile, Source, png_text
from .options import OPTIONS, CallOptions
from .passes import Call, ModelFacts, checked_call
from .request import OUT_OF_MEMORY, Request
from .time_inputs import time_inputs

__all__ = [
    "OPTIONS",
    "OUT_OF_MEMORY",
    "Call",
    "CallOptions",
    "ImagePromptUse",
    "LoraFile",
    "ModelFacts",
    "Request",
    "Source",
    "checked_call",
    "png_text",
    "time_inputs",
]
