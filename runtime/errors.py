"""The errors that latentrt raises.

    LatentRTError
    ├── BundleError          a bundle is missing, malformed, altered or of another version
    ├── CheckpointError      a checkpoint cannot be exported: a file is missing or invalid
    ├── ExportError          an export or build failed
    │   └── ParityError      an exported graph does not compute what PyTorch computes
    ├── SchedulerError       an unknown scheduler, or a config that cannot be compiled to a plan
    ├── InputError           an invalid argument of a call: size, steps, seeds, shapes
    ├── BackendError         a backend is unknown, not installed or cannot run here
    │   └── OutOfMemoryError     the GPU has no memory left for this call
    └── NonFiniteError       the model returned NaN or infinity

Each message says what was given, what is allowed and what to do. Errors about invalid values are also `ValueError`, so
that generic handlers catch them.
"""

from collections.abc import Iterable


def unknown(what: str, given: object, known: Iterable[str]) -> str:
    """The message for an unknown name: suggests similar names, or lists all of them if none is similar."""
    names = list(known)
    nearest = nearest_names(given, names, 3)
    hint = f"did you mean {' or '.join(map(repr, nearest))}?" if nearest else f"expected one of {', '.join(names)}"
    return f"unknown {what} {shown(given)}; {hint}"


def shown(value: object, most: int = 80) -> str:
    """`repr` in at most `most` characters; the type alone where `repr` fails, as for objects of others."""
    import reprlib  # imported here because only errors need it

    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = most
    short.maxlist = short.maxtuple = short.maxdict = short.maxset = 20
    try:
        text = repr(value[: most + 1]) if isinstance(value, str | bytes) else short.repr(value)
    except Exception:  # repr runs code of the object, and refuses integers of more than 4300 digits
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= most else text[:most] + "…"


def nearest_names(given: object, known: Iterable[str], count: int = 1) -> list[str]:
    """At most `count` known names that are similar to the given one, ignoring case."""
    import difflib  # imported here because only errors need it

    if not isinstance(given, str) or len(given) > 200:  # comparing takes time that grows with the length
        return []
    by_lower = {name.lower(): name for name in sorted(known)}
    return [by_lower[n] for n in difflib.get_close_matches(given.lower(), by_lower, n=count, cutoff=0.5)]


class LatentRTError(Exception):
    """Base class of all errors of latentrt."""


class BundleError(LatentRTError, ValueError):
    """A bundle is missing, malformed, altered or of another version."""


class CheckpointError(LatentRTError, ValueError):
    """A checkpoint cannot be exported: a file is missing or invalid."""


class ExportError(LatentRTError, RuntimeError):
    """An export or build failed."""


class ParityError(ExportError):
    """An exported graph does not compute what PyTorch computes."""


class SchedulerError(LatentRTError, ValueError):
    """An unknown scheduler, or a config that cannot be compiled to a plan."""


class InputError(LatentRTError, ValueError):
    """An argument of a call is invalid: size, steps, seeds, shapes."""


class BackendError(LatentRTError, RuntimeError):
    """A backend is unknown, not installed or cannot run here."""


class OutOfMemoryError(BackendError):
    """The GPU has no memory left for this call; smaller calls still work."""


class NonFiniteError(LatentRTError, ArithmeticError):
    """The model returned NaN or infinity."""
