"""Every error that latentrt raises on purpose.

    LatentRTError
    ├── BundleError          a bundle is missing, malformed, altered or of another version
    ├── CheckpointError      a checkpoint cannot be exported: a file is missing or is not what its name says
    ├── ExportError          an export or build failed
    │   └── ParityError      an exported graph does not compute what PyTorch computes
    ├── SchedulerError       an unknown scheduler, or a config that cannot be compiled to a plan
    ├── InputError           an argument of a call: size, steps, seeds, shapes
    ├── BackendError         a backend is unknown, not installed or cannot run here
    └── NonFiniteError       the model returned NaN or infinity

Each message says what was given, what is allowed and what to do. Wrong values are also `ValueError`, so that callers
who do not know latentrt catch them too.
"""

from collections.abc import Iterable


def nearest_names(given: object, known: Iterable[str], count: int = 1) -> list[str]:
    """The known names that are most like a given one, in any case; none when nothing is near."""
    import difflib  # here, because it is only needed for an error

    by_lower = {name.lower(): name for name in sorted(known)}
    return [by_lower[n] for n in difflib.get_close_matches(str(given).lower(), by_lower, n=count, cutoff=0.5)]


class LatentRTError(Exception):
    """Base of all errors that latentrt raises on purpose."""


class BundleError(LatentRTError, ValueError):
    """A bundle is missing, malformed, altered or of another version."""


class CheckpointError(LatentRTError, ValueError):
    """A checkpoint cannot be exported: a file is missing or is not what its name says."""


class ExportError(LatentRTError, RuntimeError):
    """An export or build failed."""


class ParityError(ExportError):
    """An exported graph does not compute what PyTorch computes."""


class SchedulerError(LatentRTError, ValueError):
    """An unknown scheduler, or a config that cannot be compiled to a plan."""


class InputError(LatentRTError, ValueError):
    """An argument of a call is wrong: size, steps, seeds, shapes."""


class BackendError(LatentRTError, RuntimeError):
    """A backend is unknown, not installed or cannot run here."""


class NonFiniteError(LatentRTError, ArithmeticError):
    """The model returned NaN or infinity."""
