"""Flags of the command line for tasks that begin from a picture, for large ones, and for what SDXL is told of sizes."""

import argparse
from typing import Any

from latentrt.runtime.request.time_inputs import SIZE_OPTIONS

# Flag -> the option of `Pipeline.__call__` that it is.
_OPTIONS = {"image": "image", "mask": "mask_image", "strength": "strength", "vae_tiling": "vae_tiling"}
_SIZES = {name: name for name in SIZE_OPTIONS}


def add_picture_flags(parser: argparse.ArgumentParser) -> None:
    """Add them to a parser."""
    parser.add_argument("--image", metavar="FILE", help="picture to start from; the result has its size")
    parser.add_argument("--mask", metavar="FILE", help="light where the picture is drawn anew, dark where it is kept")
    parser.add_argument("--strength", type=float, help="0 to 1, how much of the picture is drawn anew")
    for name in SIZE_OPTIONS:
        pair = ("TOP", "LEFT") if "crops" in name else ("HEIGHT", "WIDTH")
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, nargs=2, type=int, metavar=pair, help="of the picture's origin, for SDXL")
    parser.add_argument(
        "--vae-tiling", action="store_true", default=None, help="large pictures in tiles, with less memory"
    )


def picture_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Those that were given, as options of `Pipeline.__call__`."""
    given = {option: getattr(arguments, flag) for flag, option in {**_OPTIONS, **_SIZES}.items()}
    return {option: value for option, value in given.items() if value is not None}
