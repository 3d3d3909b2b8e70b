"""The denoising loop on a GPU: everything is uploaded before the first call, and nothing waits until a step is read.

Knows lanes and addresses; knows nothing of the library that computes, which is behind `GpuBackend`.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from latentrt.runtime.arrays import NO_INPUTS, Float32
from latentrt.runtime.bundle import Sizes
from latentrt.runtime.errors import BackendError, InputError
from latentrt.runtime.gpu.engine import GpuBackend
from latentrt.runtime.gpu.lane import Execution, Lane
from latentrt.runtime.protocols import Bucket, DenoiseStep
from latentrt.runtime.scheduler import Plan

from .tables import KnownParts, LoopTables, time_rows

ALIGNED_ROWS = 256  # rows of any size end at a multiple of 256 bytes, where TensorRT can begin to write


class GpuDenoiser:
    """The loop for one bucket of sizes, on an engine that fits it and may compute a few images more."""

    def __init__(self, backend: GpuBackend, bucket: Bucket) -> None:
        self._backend, self._bucket = backend, bucket
        # Now, so that what is missing or damaged is reported where the call stands.
        self._denoise = backend.fitted("denoise", bucket.sizes)

    def run(
        self,
        plans: Sequence[Plan],
        *,
        context: Float32,
        guidance: Float32,
        guidance_rescale: Float32,
        noise: Sequence[Float32],
        clean: Float32 | None = None,
        time_inputs: Mapping[str, Float32] = NO_INPUTS,
        extra: Float32 | None = None,
        mask: Float32 | None = None,
    ) -> Iterator[DenoiseStep]:
        """See `Denoiser.run`."""
        engine, sizes = self._denoise.engine, self._denoise.sizes
        batch = sizes["B"]
        tables = LoopTables.from_plans(plans, noise, clean).padded(batch)
        known = None if mask is None or clean is None else KnownParts.from_plans(plans, noise, clean, mask)
        padded = {name: _with_rows(array, batch) for name, array in time_inputs.items()}
        rows = time_rows(tables.timesteps, sizes["G"], padded)
        fixed = {"guidance": guidance, "guidance_rescale": guidance_rescale}
        if extra is not None:
            fixed["extra"] = extra
        with self._backend.lanes.lane() as lane:
            denoise = lane.context(engine, sizes, kept=True)
            denoise.resize(sizes)
            for name, array in fixed.items():
                denoise.write(name, _with_rows(array, batch))
            denoise.write("state", tables.state)
            self._write_keys_and_values(lane, denoise, context)
            blend = None if known is None else _Blend(self._backend, lane, denoise, sizes, known)
            yield from self._calls(lane, denoise, tables, rows, blend)

    def _calls(
        self,
        lane: Lane,
        denoise: Execution,
        tables: LoopTables,
        rows: Mapping[str, Float32],
        blend: "_Blend | None",
    ) -> Iterator[DenoiseStep]:
        """One launch for each call, and before it the rows of the tables that it reads; a second one blends."""
        coefficients = _Table(lane, denoise, "coefficients", len(tables.coefficients))
        lane.upload(coefficients.address, tables.coefficients)
        features = _Table(lane, denoise, "time_features", len(tables.timesteps))
        self._compute_time_features(lane, features, rows)
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
                if blend is not None:
                    blend.enqueue(k)
                current[0] = k
                yield DenoiseStep(k, total, partial(self._read, lane, denoise, current, k))
        finally:
            current[0] = -1  # the lane belongs to the next call

    def _read(self, lane: Lane, denoise: Execution, current: Sequence[int], k: int, register: int) -> Float32:
        if current[0] != k:
            raise InputError(f"the state after call {k} is gone: look at a step before asking for the next one")
        lane.stream.make_current()
        spec = next(tensor for tensor in denoise.engine.spec.inputs if tensor.name == "state")
        state: Float32 = denoise.read(spec)
        return state[: self._bucket.batch, register].copy()

    def _write_keys_and_values(self, lane: Lane, denoise: Execution, context: Float32) -> None:
        """The engine `context` writes straight into the inputs of `denoise`."""
        hidden_states = _with_rows(context, self._denoise.sizes["B"]).reshape(-1, *context.shape[2:])
        sizes = {"n": len(hidden_states), "S": hidden_states.shape[1]}
        engine = self._backend.fitted("context", sizes).engine
        once = lane.context(engine, sizes, kept=False)
        once.resize(sizes, {tensor.name: denoise.addresses[tensor.name] for tensor in engine.spec.outputs})
        once.write("hidden_states", hidden_states)
        once.enqueue()

    def _compute_time_features(self, lane: Lane, table: "_Table", rows: Mapping[str, Float32]) -> None:
        """The engine `time` writes straight into the table: a row for each call, image and group."""
        count = len(rows["timesteps"])
        time = self._backend.fitted("time", {"n": count}, split=True)
        once = lane.context(time.engine, time.sizes, kept=False)
        row_size = table.size // count
        # Each run begins at an aligned address, whatever the size of a row.
        step = time.sizes["n"] // ALIGNED_ROWS * ALIGNED_ROWS or time.sizes["n"]
        for at in range(0, count, step):
            once.resize({"n": min(step, count - at)}, {"time_features": table.address + at * row_size})
            for name, array in rows.items():
                once.write(name, array[at : at + step])
            once.enqueue()


class _Blend:
    """The engine `blend` on the state of `denoise`: reads it where it lies, and its result is copied there."""

    def __init__(self, backend: GpuBackend, lane: Lane, denoise: Execution, sizes: Sizes, known: KnownParts) -> None:
        sizes = {symbol: sizes[symbol] for symbol in "Bhw"}
        blend = backend.fitted("blend", sizes)
        if blend.sizes != sizes:  # it would write behind the end of the state
            raise BackendError(f"no engine of blend is for {sizes}, as that of denoise: build both again")
        known = known.padded(sizes["B"])
        self._context = lane.context(blend.engine, sizes, kept=True)
        self._context.resize(sizes, {"state": denoise.addresses["state"]})
        for name, array in known.fixed.items():
            self._context.write(name, array)
        self._rows = _Table(lane, self._context, "blend", len(known.blend))
        lane.upload(self._rows.address, known.blend)

    def enqueue(self, k: int) -> None:
        """Blend after call k."""
        self._rows.copy_row(k)
        self._context.enqueue_and_copy("next_state", "state")


class _Table:
    """Rows on the device that become an input of `denoise`, one row for each call."""

    def __init__(self, lane: Lane, denoise: Execution, name: str, rows: int) -> None:
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
