"""latentrt's exporter: converts a Stable Diffusion checkpoint to a bundle, and builds engines for it.

from latentrt.export.write import ExportOptions, export_bundle

export_bundle("./stable-diffusion-v1-5", "engines/sd15", ExportOptions(precision="fp16"))

Exporting needs the extra `export`. `latentrt.export.build` does not: it needs TensorRT, or onnx-ir for ONNX Runtime.
"""
