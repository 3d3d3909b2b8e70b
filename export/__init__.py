"""latentrt's exporter: converts a Stable Diffusion checkpoint to a bundle, and builds engines for it.

from latentrt.export.write import ExportOptions, export_bundle

export_bundle("./stable-diffusion-v1-5", "engines/sd15", ExportOptions(precision="fp16"))

Exporting needs the extra `export`. `latentrt.export.build` does not: it needs TensorRT, or onnx-ir for ONNX Runtime.
"""

import os

# Before onnxruntime is imported: it reports each use to its maker, and writes to the home folder.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
