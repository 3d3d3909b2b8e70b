"""Kinds of options: which values they take, in Python, in JSON and on the command line.

A kind checks one value by itself. What depends on other options or on the number of images is checked by `Request`.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from latentrt.runtime.bundle import Manifest
from latentrt.runtime.errors import InputError, LatentRTError, shown
from latentrt.runtime.latents import FileRow, TorchGenerator, is_npy
from latentrt.runtime.limits import MAX_CHARACTERS, MAX_IMAGES, MAX_SIDE, MAX_STEPS, raised_by
from latentrt.runtime.scheduler import Plan
from latentrt.runtime.scheduler.config import plain
from latentrt.runtime.scheduler.document import PLAN_FORMAT, plan_from_document, plan_to_document

Check = Callable[[str, Any, Manifest], Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """The values of an option.

    Attributes:
        check: (name, value, manifest) -> the value in its normal form; raises `InputError`.
        schema: JSON schema of the value.
        flag: arguments of `argparse`'s `add_argument`.
        to_json: the checked value as JSON holds it.
    """

    check: Check
    schema: Mapping[str, Any]
    flag: Mapping[str, Any] = field(default_factory=dict)
    to_json: Callable[[Any], Any] = lambda value: value


def refuse(name: str, given: Any, expected: str) -> InputError:
    """The error for a value that an option does not take."""
    return InputError(f"{name}={shown(given)}: expected {expected}")


@contextmanager
def reading(name: str, value: Any) -> Iterator[None]:
    """Errors of a value's own methods, such as `__array__` or `__len__`, become an `InputError`."""
    try:
        yield
    except (LatentRTError, MemoryError):
        raise
    except Exception as error:
        raise InputError(
            f"{name} is a {type(value).__name__} that cannot be read: {type(error).__name__}: {str(error)[:200]}"
        ) from error


def is_integer(value: Any) -> bool:
    """Whether this is an integer of Python or numpy; booleans and arrays are not."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether this is a finite number of Python or numpy; booleans and arrays are not."""
    return is_integer(value) or (isinstance(value, float | np.floating) and bool(np.isfinite(value)))


def integer(least: int, most: int, *, limit: str = "") -> Kind:
    """An integer from `least` to `most`, which may be a limit of this name."""
    expected = f"an integer from {least} to {most}" + (f"; {raised_by(limit)}" if limit else "")

    def check(name: str, value: Any, _: Manifest) -> int:
        if not is_integer(value) or not least <= value <= most:
            raise refuse(name, value, expected)
        return int(value)

    return Kind(check, {"type": "integer", "minimum": least, "maximum": most}, {"type": int, "metavar": "N"})


def side() -> Kind:
    """Height or width in pixels: a multiple of the VAE's factor."""

    def check(name: str, value: Any, manifest: Manifest) -> int:
        factor = manifest.model.vae_scale_factor
        if not is_integer(value) or not factor <= value <= MAX_SIDE:
            raise refuse(name, value, f"an integer from {factor} to {MAX_SIDE}, a multiple of {factor}")
        if value % factor:
            below = int(value) // factor * factor
            raise refuse(name, value, f"a multiple of {factor}; the nearest are {below} and {below + factor}")
        return int(value)

    return Kind(check, {"type": "integer", "minimum": 1, "maximum": MAX_SIDE}, {"type": int, "metavar": "PIXELS"})


def layers() -> Kind:
    """Final layers of the text encoder to skip."""

    def check(name: str, value: Any, manifest: Manifest) -> int:
        count = min(encoder.hidden_states for encoder in manifest.model.text_encoders)
        if not is_integer(value) or not 0 <= value < count:
            raise refuse(name, value, f"an integer from 0 to {count - 1}: this text encoder has {count} layers")
        return int(value)

    return Kind(check, {"type": "integer", "minimum": 0}, {"type": int, "metavar": "N"})


def number(least: float, most: float, *, above: bool = False) -> Kind:
    """A number from `least` (or `above` it) to `most`."""
    expected = f"a number {'above' if above else 'from'} {least:g}{', up' if above else ''} to {most:g}"

    def check(name: str, value: Any, _: Manifest) -> float:
        if not is_number(value) or not least <= value <= most or (above and value == least):
            raise refuse(name, value, expected)
        return float(value)

    schema = {"type": "number", "exclusiveMinimum" if above else "minimum": least, "maximum": most}
    return Kind(check, schema, {"type": float, "metavar": "X"})


def numbers() -> Kind:
    """A list of finite numbers."""

    def check(name: str, value: Any, _: Manifest) -> tuple[float, ...]:
        listed = isinstance(value, Sequence | np.ndarray) and not isinstance(value, str | bytes)
        listed = listed and getattr(value, "ndim", 1) == 1
        if not listed or len(value) > MAX_STEPS or not all(map(is_number, value)):
            raise refuse(name, value, f"a list of at most {MAX_STEPS} numbers")
        try:
            return tuple(map(float, value))
        except OverflowError:
            raise refuse(name, value, "numbers that fit a float") from None

    def parsed(text: str) -> list[float]:
        return [float(part) for part in text.split(",")]

    schema = {"type": "array", "items": {"type": "number"}}
    return Kind(check, schema, {"type": parsed, "metavar": "X,X,…"}, list)


def strengths() -> Kind:
    """A number from -10 to 10, or a list of such."""
    one, several = number(-10, 10), numbers()

    def check(name: str, value: Any, manifest: Manifest) -> float | tuple[float, ...]:
        if is_number(value):
            strength: float = one.check(name, value, manifest)
            return strength
        return tuple(one.check(name, strength, manifest) for strength in several.check(name, value, manifest))

    def parsed(text: str) -> float | list[float]:
        return [float(part) for part in text.split(",")] if "," in text else float(text)

    schema = {"anyOf": [dict(one.schema), {"type": "array", "items": dict(one.schema)}]}
    to_json = lambda value: list(value) if isinstance(value, tuple) else value  # noqa: E731
    return Kind(check, schema, {"type": parsed, "metavar": "X[,X,…]"}, to_json)


def boolean() -> Kind:
    """True or False."""

    def check(name: str, value: Any, _: Manifest) -> bool:
        if not isinstance(value, bool | np.bool_):
            raise refuse(name, value, "True or False")
        return bool(value)

    return Kind(check, {"type": "boolean"}, {"action": "store_true", "default": None})


def choice(*allowed: str) -> Kind:
    """One of several words."""

    def check(name: str, value: Any, _: Manifest) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise refuse(name, value, f"one of {', '.join(map(repr, allowed))}")
        return value

    return Kind(check, {"enum": list(allowed)}, {"choices": allowed})


def text() -> Kind:
    """A text, or one for each prompt."""

    def check(name: str, value: Any, _: Manifest) -> str | tuple[str, ...]:
        listed = isinstance(value, Sequence) and not isinstance(value, str | bytes)
        if listed and len(value) > MAX_IMAGES:
            raise refuse(name, value, f"at most {MAX_IMAGES} texts; {raised_by('MAX_IMAGES')}")
        texts = tuple(value) if listed else (value,)
        if not texts or not all(isinstance(text, str) for text in texts):
            raise refuse(name, value, "a text or a non-empty list of texts")
        if (longest := max(map(len, texts))) > MAX_CHARACTERS:
            allowed = f"at most {MAX_CHARACTERS:,}; {raised_by('MAX_CHARACTERS')}"
            raise InputError(f"{name} has a text of {longest:,} characters: expected {allowed}")
        # Plain texts, as subclasses may answer each time with another one.
        plain_texts = tuple(str.__str__(text) for text in texts)
        return plain_texts if listed else plain_texts[0]

    return Kind(check, _one_or_more({"type": "string"}), {"metavar": "TEXT"})


def seeds() -> Kind:
    """A seed, or one for each image."""

    def check(name: str, value: Any, _: Manifest) -> int | tuple[int, ...]:
        several = isinstance(value, Sequence) and not isinstance(value, str | bytes)
        if several and len(value) > MAX_IMAGES:
            raise refuse(name, value, f"at most {MAX_IMAGES} seeds")
        values = list(value) if several else [value]
        if not values or not all(map(is_integer, values)):
            raise refuse(name, value, "an integer, or a list with one for each image")
        for seed in values:
            TorchGenerator(int(seed))  # checks the range
        return tuple(map(int, values)) if several else int(value)

    return Kind(check, _one_or_more({"type": "integer"}), {"type": int, "metavar": "N"})


def pair(first: str = "height", second: str = "width") -> Kind:
    """(height, width), or two other names, in pixels."""

    def check(name: str, value: Any, _: Manifest) -> tuple[int, int]:
        values = tuple(value) if isinstance(value, tuple | list) else ()
        if len(values) != 2 or not all(is_integer(v) and 0 <= v <= 2**24 for v in values):
            raise refuse(name, value, f"a pair of integers >= 0, ({first}, {second})")
        return int(values[0]), int(values[1])

    schema = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 2, "maxItems": 2}
    return Kind(check, schema, {"nargs": 2, "type": int, "metavar": (first.upper(), second.upper())}, list)


def array() -> Kind:
    """An array of floats; the code that reads it checks its shape."""

    def check(name: str, value: Any, _: Manifest) -> Any:
        return float_array(name, value)

    return Kind(check, {"type": "array"})


def latents() -> Kind:
    """An array, or the path of one in numpy's format, which `Request` reads."""

    def check(name: str, value: Any, _: Manifest) -> Any:
        if isinstance(value, FileRow):
            return value
        if not isinstance(value, str | os.PathLike):
            return float_array(name, value)
        if not is_npy(value):
            raise refuse(name, value, "an array, or the path of a .npy file")
        return value

    return Kind(check, {"type": "string"}, {"metavar": "FILE.npy"})


def float_array(name: str, value: Any) -> Any:
    """The value as a float32 array of finite numbers."""
    try:
        given = np.asarray(value)
        if given.dtype.kind not in "fiu":
            raise refuse(name, type(value).__name__, f"an array of numbers, got {given.dtype}")
        with np.errstate(over="ignore"):  # becomes infinity, and is refused
            array = np.asarray(given, np.float32)
    except (TypeError, ValueError, OverflowError, RecursionError):
        raise refuse(name, type(value).__name__, "an array of numbers") from None
    if not np.isfinite(array).all():
        raise InputError(f"{name} holds NaN or infinity, or numbers beyond float32: expected finite numbers")
    return array


def picture() -> Kind:
    """A picture, or one for each prompt; opened and checked by `latents.GivenImages`."""
    return Kind(lambda _name, value, _: value, _one_or_more({"type": "string"}), {"metavar": "FILE"})


def scheduler() -> Kind:
    """A scheduler's name, a config, or a plan."""

    def check(name: str, value: Any, _: Manifest) -> Any:
        if isinstance(value, Mapping):
            if len(value) > 1000 or not all(isinstance(key, str) for key in value):
                raise refuse(name, value, "a mapping of at most 1000 text keys")
            config = {str.__str__(key): value[key] for key in value}
            return plan_from_document(config) if config.get("format") == PLAN_FORMAT else plain(config)
        if not isinstance(value, str | Plan):
            raise refuse(name, value, "a scheduler's name, a diffusers config, or a Plan")
        return value

    def to_json(value: Any) -> Any:
        if isinstance(value, Plan):
            return plan_to_document(value)
        return value

    return Kind(check, {"type": ["string", "object"]}, {"metavar": "NAME"}, to_json)


def _one_or_more(item: Mapping[str, Any]) -> dict[str, Any]:
    return {"anyOf": [dict(item), {"type": "array", "items": dict(item), "minItems": 1}]}
