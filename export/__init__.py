"""latentrt's exporter: a Stable Diffusion checkpoint becomes a bundle. Needs the extra `export`.

from latentrt.export.write import ExportOptions, export_bundle

export_bundle("./stable-diffusion-v1-5", "engines/sd15", ExportOptions(precision="fp16"))
"""
