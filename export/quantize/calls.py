"""A bundle whose `denoise` is called one by one, at states of the caller's choice: for calibration and for the gate."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.arrays import DTYPES, Float32, Layers
from latentrt.runtime.backends import load_backend
from latentrt.runtime.bundle import Bundle, shape_at, takes
from latentrt.runtime.loop.tables import TimeFeatures
from latentrt.runtime.protocols import Trajectory
from latentrt.runtime.request import CallOptions, Request
from latentrt.runtime.scheduler import REGISTERS
from latentrt.runtime.stages import Stages

Inputs = Mapping[str, NDArray[Any]]
NO_INPUTS: Inputs = {}
# Called with the name of a graph and its outputs.
Note = Callable[[str, Inputs], None]


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """A call of `denoise`: the states before and after it (R, C, h, w), and the guided prediction (C, h, w)."""

    index: int
    before: Float32
    prediction: Float32
    after: Float32


class Caller:
    """A bundle on a backend of the CPU. Close it."""

    def __init__(self, bundle: Bundle, backend: str, note: Note = lambda *_: None) -> None:
        """`note` is told the outputs of text encoders, `denoise` and the VAE's decoder."""
        self._bundle, self.note = bundle, note
        self.backend = load_backend(bundle, backend, "cpu")
        self._stages = Stages(bundle, self.backend)
        self._features = TimeFeatures(self._stages.run)

    def trajectory(self, prompt: str, seed: int, options: CallOptions) -> Trajectory:
        """What a picture of this prompt starts from."""
        manifest = self._bundle.manifest
        wanted: CallOptions = {**options, "seed": seed}
        if takes(self._bundle.graph("denoise"), "extra"):
            height, width = options["height"] or 0, options["width"] or 0
            grey, all_of_it = np.full((height, width, 3), 127, np.uint8), np.full((height, width), 255, np.uint8)
            wanted |= {"image": grey, "mask_image": all_of_it, "strength": 1.0}
        config = self._bundle.read_json(manifest.scheduler)
        request = Request.from_call(manifest, config, prompt, wanted)
        (trajectory,) = self._stages.trajectories(request, run_encoder=self._run_encoder)
        return trajectory

    def calls(self, trajectory: Trajectory, more: Inputs = NO_INPUTS) -> Iterator[Call]:
        """The calls of a trajectory, one after the other; for `more` see `predictor`."""
        predict, state = self.predictor(trajectory, more), trajectory.initial_state()
        plan, draws = trajectory.plan, iter(trajectory.noise[1:])
        for index in range(len(plan)):
            prediction = predict(index, state)
            noise = next(draws) if plan.draws[index] else np.zeros_like(prediction)
            rows = np.concatenate([state, prediction[None], noise[None]])
            after = np.tensordot(plan.coefficients[index], rows, 1).astype(np.float32)
            yield Call(index, state, prediction, after)
            state = after

    def predictor(self, trajectory: Trajectory, more: Inputs = NO_INPUTS) -> Callable[[int, Float32], Float32]:
        """A function from the index of a call and a state (R, C, h, w) to the guided prediction (C, h, w).

        Args:
            more: further inputs of `denoise`, which are read at each call.
        """
        spec, sizes = self._bundle.graph("denoise"), trajectory.bucket.sizes(1)
        inputs = {s.name: np.zeros(shape_at(s, sizes), DTYPES[s.dtype].numpy) for s in spec.inputs}
        inputs |= self._stages.run("context", {"hidden_states": trajectory.context})
        inputs |= more
        if trajectory.extra is not None:
            inputs["extra"] = trajectory.extra[None]
        # The prediction becomes row 0 of the next state.
        inputs["coefficients"][0, 0, REGISTERS] = 1
        features = self._features.of(trajectory)

        def predict(index: int, state: Float32) -> Float32:
            inputs["state"][0], inputs["time_features"][:] = state, features[index]
            inputs["guidance"][0] = trajectory.guidance[index]
            outputs = self._stages.run("denoise", inputs)
            self.note("denoise", outputs)
            prediction: Float32 = outputs["next_state"][0, 0].copy()
            return prediction

        return predict

    def draw(self, prompt: str, seed: int, options: CallOptions, tick: Callable[[], object]) -> list[Call]:
        """All calls of a picture; `tick` is called once each is done."""
        made = []
        for call in self.calls(self.trajectory(prompt, seed, options)):
            made.append(call)
            tick()
        return made

    def decode(self, latents: Float32) -> NDArray[np.uint8]:
        """Latents (C, h, w) to a picture (H, W, 3)."""
        outputs = self._stages.run("vae_decoder", {"latents": latents[None]})
        self.note("vae_decoder", outputs)
        picture: NDArray[np.uint8] = outputs["images"][0]
        return picture

    def _run_encoder(self, graph: str, inputs: Inputs, layers: Layers) -> Inputs:
        outputs = self._stages.run(graph, inputs, layers)
        self.note(graph, outputs)
        return outputs

    def close(self) -> None:
        """Free all memory."""
        self._stages.close()


def call_options(bundle: Bundle, *, steps: int | None, height: int | None, width: int | None) -> CallOptions:
    """Options of every call: guidance scale 7.5, and the bundle's defaults."""
    defaults = bundle.manifest.defaults
    return {
        "num_inference_steps": steps or defaults.num_inference_steps,
        "guidance_scale": 7.5,
        "height": height or defaults.height,
        "width": width or defaults.width,
    }
