"""Flags of the command line for tasks that begin from a picture, and for large ones."""

import argparse
from typing import Any

# Flag -> the option of `Pipeline.__call__` that it is.
_OPTIONS = {"image": "image", "mask": "mask_image", "strength": "strength", "vae_tiling": "vae_tiling"}


def add_picture_flags(parser: argparse.ArgumentParser) -> None:
    """Add them to a parser."""
    parser.add_argument("--image", metavar="FILE", help="picture to start from; the result has its size")
    parser.add_argument("--mask", metavar="FILE", help="light where the picture is drawn anew, dark where it is kept")
    parser.add_argument("--strength", type=float, help="0 to 1, how much of the picture is drawn anew")
    parser.add_argument(
        "--vae-tiling", action="store_true", default=None, help="large pictures in tiles, with less memory"
    )


def picture_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Those that were given, as options of `Pipeline.__call__`."""
    given = {option: getattr(arguments, flag) for flag, option in _OPTIONS.items()}
    return {option: value for option, value in given.items() if value is not None}
