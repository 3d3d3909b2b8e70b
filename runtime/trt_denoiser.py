"""The denoising loop on a GPU: everything is uploaded before the first call, and nothing waits until a step is read."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from .engine import Bucket, DenoiseStep, Float32, LoopTables
from .engine_choice import Choice
from .errors import InputError
from .scheduler import Plan
from .trt_lane import Context, Lane

if TYPE_CHECKING:
    from .trt_engine import TrtBackend

ALIGNED_ROWS = 256  # rows of any size end at a multiple of 256 bytes, where TensorRT can begin to write


class TrtDenoiser:
    """The loop for one bucket of sizes, on an engine that fits it and may compute a few images more."""

    def __init__(self, backend: "TrtBackend", choice: Choice, bucket: Bucket) -> None:
        self._backend, self._choice, self._bucket = backend, choice, bucket
        backend.load(choice.record)  # now, so that a damaged file is reported where the call stands

    def run(
        self,
        plans: Sequence[Plan],
        *,
        context: Float32,
        guidance: Float32,
        guidance_rescale: Float32,
        noise: Sequence[Float32],
        clean: Float32 | None = None,
    ) -> Iterator[DenoiseStep]:
        """See `Denoiser.run`."""
        tables = LoopTables.from_plans(plans, noise, clean).padded(self._choice.sizes["B"])
        with self._backend.lane() as lane:
            denoise = lane.context(self._backend.load(self._choice.record), self._choice.sizes, kept=True)
            denoise.resize(self._choice.sizes)
            for name, array in (("guidance", guidance), ("guidance_rescale", guidance_rescale)):
                denoise.write(name, _with_rows(array, self._choice.sizes["B"]))
            denoise.write("state", tables.state)
            self._write_keys_and_values(lane, denoise, context)
            yield from self._calls(lane, denoise, tables)

    def _calls(self, lane: Lane, denoise: Context, tables: LoopTables) -> Iterator[DenoiseStep]:
        """One launch for each call, and before it the rows of the tables that it reads."""
        coefficients = _Table(lane, denoise, "coefficients", len(tables.coefficients))
        lane.upload(coefficients.address, tables.coefficients)
        features = _Table(lane, denoise, "time_features", len(tables.timesteps))
        self._compute_time_features(lane, features, tables.timesteps)
        fresh = [array for array in tables.noise if array is not None]
        noise = _Table(lane, denoise, "noise", len(fresh))
        for i, array in enumerate(fresh):
            lane.upload(noise.address + i * noise.row_size, array)
        # Unused noise has coefficients of zero, so any finite numbers will do: those of the last draw, or zeros.
        draws = iter(range(len(fresh)))
        total, current = len(tables.timesteps), [0]
        try:
            for k in range(total):
                lane.stream.make_current()  # the caller may ask for the next step from another thread
                coefficients.copy_row(k)
                features.copy_row(k)
                if tables.noise[k] is not None:
                    noise.copy_row(next(draws))
                denoise.enqueue_and_copy("next_state", "state")
                current[0] = k
                yield DenoiseStep(k, total, partial(self._read, lane, denoise, current, k))
        finally:
            current[0] = -1  # the lane belongs to the next call

    def _read(self, lane: Lane, denoise: Context, current: Sequence[int], k: int, register: int) -> Float32:
        if current[0] != k:
            raise InputError(f"the state after call {k} is gone: look at a step before asking for the next one")
        lane.stream.make_current()
        spec = next(tensor for tensor in denoise.engine.spec.inputs if tensor.name == "state")
        state: Float32 = denoise.read(spec)
        return state[: self._bucket.batch, register].copy()

    def _write_keys_and_values(self, lane: Lane, denoise: Context, context: Float32) -> None:
        """The engine `context` writes straight into the inputs of `denoise`."""
        hidden_states = _with_rows(context, self._choice.sizes["B"]).reshape(-1, *context.shape[2:])
        sizes = {"n": len(hidden_states), "S": hidden_states.shape[1]}
        engine = self._backend.load(self._backend.choose("context", sizes).record)
        once = lane.context(engine, sizes, kept=False)
        once.resize(sizes, {tensor.name: denoise.addresses[tensor.name] for tensor in engine.spec.outputs})
        once.write("hidden_states", hidden_states)
        once.enqueue()

    def _compute_time_features(self, lane: Lane, table: "_Table", timesteps: Float32) -> None:
        """The engine `time` writes straight into the table: a row for each call, image and group."""
        rows = np.repeat(timesteps, self._choice.sizes["G"], axis=1).ravel()
        choice = self._backend.choose("time", {"n": len(rows)}, split=True)
        engine = self._backend.load(choice.record)
        once = lane.context(engine, choice.sizes, kept=False)
        row_size = table.size // len(rows)
        # Each run begins at an aligned address, whatever the size of a row.
        step = choice.sizes["n"] // ALIGNED_ROWS * ALIGNED_ROWS or choice.sizes["n"]
        for at in range(0, len(rows), step):
            piece = rows[at : at + step]
            once.resize({"n": len(piece)}, {"time_features": table.address + at * row_size})
            once.write("timesteps", piece)
            once.enqueue()


class _Table:
    """Rows on the device that become an input of `denoise`, one row for each call."""

    def __init__(self, lane: Lane, denoise: Context, name: str, rows: int) -> None:
        spec = next(tensor for tensor in denoise.engine.spec.inputs if tensor.name == name)
        self.row_size = denoise.size_of(spec)
        self.size = rows * self.row_size
        self.address = lane.block(name, self.size).address
        self._stream, self._target = lane.stream, denoise.addresses[name]

    def copy_row(self, k: int) -> None:
        self._stream.copy(self._target, self.address + k * self.row_size, self.row_size)


def _with_rows(array: Float32, rows: int) -> Float32:
    """The array with rows of zeros behind it."""
    return np.pad(array, [(0, rows - len(array)), *[(0, 0)] * (array.ndim - 1)])
