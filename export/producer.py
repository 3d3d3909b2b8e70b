"""What a manifest says of the programs that made a bundle."""

import importlib.metadata

from latentrt.runtime.bundle.manifest import Producer

_PACKAGES = ("torch", "diffusers", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy")


def this_producer() -> Producer:
    """This version of latentrt, and those of the libraries that the export depends on."""
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return Producer(importlib.metadata.version("latentrt"), versions)
