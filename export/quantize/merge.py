"""A bundle with LoRAs merged into its weights, as a quantized weight cannot change later."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir

from latentrt.runtime.bundle import Bundle
from latentrt.runtime.bundle.manifest import Addition
from latentrt.runtime.weights import changed_weights, checked_factors, sha256_of_lora

from .temporary import with_models


def with_loras(source: Bundle, folder: Path, loras: Mapping[Path | str, float]) -> Bundle:
    """The bundle itself without LoRAs; else one in a new folder, without goldens, as those are of the checkpoint.

    Raises `InputError` for files that do not fit.
    """
    if not loras:
        return source
    wanted = checked_factors(loras)
    models = {}
    for graph, weights in changed_weights(source, wanted).items():
        model = models[graph] = ir.load(source.file(source.graph(graph).file))
        for name, array in weights.items():
            value = model.graph.initializers[name]
            values = array.view(ml_dtypes.bfloat16) if array.dtype == np.uint16 else array
            value.const_value = ir.Tensor(values, dtype=value.dtype, name=name)
    merged = with_models(source, folder, models, own_weights=True)
    additions = [Addition("lora", path.name, sha256_of_lora(path), weight) for path, weight in wanted.items()]
    checkpoint = source.manifest.checkpoint
    checkpoint = replace(checkpoint, additions=(*checkpoint.additions, *additions))
    return Bundle(folder, replace(merged.manifest, checkpoint=checkpoint, golden=None))
