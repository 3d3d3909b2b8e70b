"""Worker for OpenVINO GenAI, with models converted by optimum-intel.

Options: `device`, and properties of OpenVINO such as INFERENCE_PRECISION_HINT. OpenVINO GenAI has no interface for one
call of the UNet. Calls run on the same model, compiled with the same properties at the size of the pictures, as
`Text2ImagePipeline.reshape` does it.
"""

from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai
from PIL import Image

from .protocol import Job, guided, serve, timed, versions

_loaded: dict[str, Any] = {}


class GivenLatents(openvino_genai.Generator):  # type: ignore[misc]
    """Returns the given initial latents where the pipeline draws noise."""

    def __init__(self, latents: Any) -> None:
        super().__init__()
        self.latents = latents

    def next(self) -> float:
        """One value; deterministic schedulers never call it."""
        raise ValueError("the pipeline draws noise beyond the initial latents")

    def randn_tensor(self, shape: Any) -> Any:
        """The initial latents."""
        return openvino.Tensor(self.latents.reshape(tuple(shape)))


def load(job: Job) -> dict[str, Any]:
    """Open a converted model with the scheduler's config."""
    properties = dict(job["options"])
    device = properties.pop("device", "CPU")
    if job.get("part") == "unet":
        core = openvino.Core()
        unet = core.read_model(Path(job["model"]) / "unet" / "openvino_model.xml")
        _loaded.update(compile=lambda: core.compile_model(unet, device, properties), unet=unet)
    else:
        pipe = openvino_genai.Text2ImagePipeline(job["model"], device, **properties)
        pipe.set_scheduler(openvino_genai.Scheduler.from_config(job["scheduler"]))
        _loaded["pipe"] = pipe
    return {"properties": properties, "versions": versions("openvino-genai", "openvino")}


def draw(job: Job) -> tuple[Any, int]:
    """Draw one picture."""
    pipe = _loaded["pipe"]
    found = pipe.generate(
        job["prompt"],
        num_inference_steps=job["steps"],
        guidance_scale=job["guidance_scale"],
        height=job["size"],
        width=job["size"],
        generator=GivenLatents(np.load(job["latents"])),
    )
    calls = len(pipe.get_performance_metrics().raw_metrics.unet_inference_durations)
    return Image.fromarray(found.data[0]), calls


def call(job: Job) -> tuple[float, Any]:
    """One call of the UNet with both groups, and guidance. Compiles at the first call."""
    inputs = np.load(job["inputs"])
    sample, hidden_states = np.concatenate([inputs["sample"]] * 2), inputs["hidden_states"]
    if "request" not in _loaded:
        ports = {port.get_any_name(): port for port in _loaded["unet"].inputs}
        given = {"sample": sample.shape, "encoder_hidden_states": hidden_states.shape}
        timestep = {"timestep": [1] * ports["timestep"].get_partial_shape().rank.get_length()}
        _loaded["unet"].reshape({ports[name]: list(shape) for name, shape in {**given, **timestep}.items()})
        _loaded["timestep"] = ports["timestep"].get_element_type().to_dtype()
        _loaded["request"] = _loaded["compile"]().create_infer_request()
    request, scale = _loaded["request"], float(inputs["guidance_scale"])
    shape = request.get_tensor("timestep").shape
    values = {
        "sample": sample,
        "timestep": np.full(tuple(shape), inputs["timestep"], _loaded["timestep"]),
        "encoder_hidden_states": hidden_states,
    }
    return timed(lambda: guided(request.infer(values)[0], scale))


serve(load, draw, call)
