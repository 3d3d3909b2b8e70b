"""The flags that name a bundle and what runs it, and the pipeline that they load. Knows nothing of prompts."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from latentrt.runtime.pipeline import Pipeline


def add_bundle_flags(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `Pipeline.load`."""
    parser.add_argument("--bundle", type=Path, help="the bundle's folder; default: the small model that ships along")
    parser.add_argument(
        "--backend", default="auto", help="auto (default), tensorrt, tensorrt_rtx, openvino or onnxruntime"
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:1; default: the best that is found")
    parser.add_argument("--engines", type=Path, metavar="DIR", help="compiled engines, where not in the bundle")
    parser.add_argument("--trust-engines", action="store_true", help="load engines with code for the host, too")


def load_pipeline(arguments: argparse.Namespace) -> "Pipeline":
    """The pipeline that the flags ask for; errors are those of `Pipeline.load`."""
    from latentrt.runtime.pipeline import Pipeline

    return Pipeline.load(
        arguments.bundle,
        backend=arguments.backend,
        device=arguments.device,
        engines=arguments.engines,
        trust_engines=arguments.trust_engines,
    )
