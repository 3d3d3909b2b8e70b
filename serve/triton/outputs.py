"""The outputs of a model at Triton: those of the Open Inference Protocol, and what comes while pictures are drawn."""

from collections.abc import Mapping

from latentrt.serve.http.kserve.signature import OUTPUTS, Output
from latentrt.serve.http.kserve.tensors import BYTES

PROGRESS, PREVIEW = "progress", "preview"
# A response with one of these is not the last one.
OF_PROGRESS: Mapping[str, Output] = {
    output.name: output
    for output in (
        Output(PROGRESS, "INT64", (3,)),  # a picture's index, UNet calls that it has made, and how many it makes
        Output(PREVIEW, BYTES, (1,)),  # base64 of an unfinished picture's file; the progress is its own
    )
}


def outputs_of(*, progress: bool) -> Mapping[str, Output]:
    """By name. `progress`: of a model that tells it."""
    return {**OUTPUTS, **OF_PROGRESS} if progress else OUTPUTS
