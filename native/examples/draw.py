"""Draws a picture through the C functions, by ctypes alone. Usage: draw.py LIBLATENTRT BUNDLE OUT.png"""

import ctypes
import sys
from pathlib import Path

lib = ctypes.CDLL(sys.argv[1])
lib.latentrt_error_text.restype = ctypes.c_char_p


class Text(ctypes.Structure):
    """latentrt_text."""

    _fields_ = (("data", ctypes.c_char_p), ("length", ctypes.c_size_t))


class Request(ctypes.Structure):
    """The beginning of latentrt_request: what a smaller struct lacks has its default."""

    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("prompts", ctypes.POINTER(Text)),
        ("prompts_count", ctypes.c_size_t),
    )


def check(status: int, error: ctypes.c_void_p) -> None:
    """Raise for a failure."""
    if status:
        raise RuntimeError(lib.latentrt_error_text(error).decode())


pipeline, images, error = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
check(lib.latentrt_open(sys.argv[2].encode(), None, ctypes.byref(pipeline), ctypes.byref(error)), error)
request, prompt = Request(), b"a large red star on a blue background"
lib.latentrt_request_init(ctypes.byref(request), ctypes.c_size_t(ctypes.sizeof(request)))
request.prompts, request.prompts_count = ctypes.pointer(Text(prompt, len(prompt))), 1
arguments = (pipeline, ctypes.byref(request), None, None, ctypes.byref(images), ctypes.byref(error))
check(lib.latentrt_draw(*arguments), error)
png, length = ctypes.POINTER(ctypes.c_ubyte)(), ctypes.c_size_t()
arguments = (images, ctypes.c_size_t(0), ctypes.byref(png), ctypes.byref(length), ctypes.byref(error))
check(lib.latentrt_images_png(*arguments), error)
Path(sys.argv[3]).write_bytes(ctypes.string_at(png, length.value))
lib.latentrt_images_free(images)
lib.latentrt_close(pipeline)
