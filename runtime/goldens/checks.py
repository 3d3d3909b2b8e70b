"""One comparison with a golden output, and the file that holds them. Knows no bundle and no backend."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.errors import BundleError
from latentrt.runtime.files import open_regular


@dataclass(frozen=True, slots=True)
class GoldenCheck:
    """One comparison: what was compared, whether it passed, the value with its limit, and the value alone."""

    name: str
    passed: bool
    text: str
    value: float | None = None


def stored_arrays(file: Path, what: str) -> dict[str, NDArray[Any]]:
    """The arrays of a golden file by name; raises `BundleError` if it is damaged, with what to export again."""
    from safetensors import SafetensorError, safe_open

    try:
        with open_regular(file), safe_open(file, "np") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise damaged(file, what, error) from error


def damaged(file: Path, what: str, error: Exception) -> BundleError:
    """The error for a golden file that cannot be read."""
    return BundleError(f"{file} is damaged: {str(error)[:300]}. Export the {what} again")


def relative_error(got: NDArray[Any], expected: NDArray[Any]) -> float:
    """Euclidean norm of the difference over that of `expected`."""
    return float(np.linalg.norm(got.astype(np.float64) - expected) / np.linalg.norm(expected.astype(np.float64)))


def psnr(got: NDArray[np.uint8], expected: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio of bytes in dB; infinite for equal images."""
    error = float(np.mean((got.astype(np.float64) - expected.astype(np.float64)) ** 2))
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def within(name: str, got: NDArray[Any], expected: NDArray[Any], limit: float) -> GoldenCheck:
    """Whether the relative error is at most `limit`."""
    error = relative_error(got, expected)
    return GoldenCheck(name, error <= limit, f"relative error {error:.2e}, at most {limit:.2g}", error)


def alike(name: str, got: NDArray[np.uint8], expected: NDArray[np.uint8], floor: float) -> GoldenCheck:
    """Whether the PSNR of two pictures is at least `floor` dB."""
    value = psnr(got, expected)
    return GoldenCheck(name, value >= floor, f"PSNR {value:.1f} dB, at least {floor:g} dB", value)
