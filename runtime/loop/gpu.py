"""The denoising loop on a GPU: uploads everything before the first call, and waits only when a step is read.

Knows lanes and addresses; knows nothing about the library, which is behind `GpuBackend`.
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

ALIGNED_ROWS = 256  # so many rows of any size are a multiple of 256 bytes, the alignment of output addresses


class GpuDenoiser:
    """The loop for one bucket of sizes, on an engine that may have a larger batch."""

    def __init__(self, backend: GpuBackend, bucket: Bucket) -> None:
        self._backend, self._bucket = backend, bucket
        # Loaded now, so that missing or damaged engines are reported before the loop starts.
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
        """For each call: copy its rows of the tables, launch `denoise`, and `blend` if there is a mask."""
        coefficients = _Table(lane, denoise, "coefficients", len(tables.coefficients))
        lane.upload(coefficients.address, tables.coefficients)
        features = _Table(lane, denoise, "time_features", len(tables.timesteps))
        self._compute_time_features(lane, features, rows)
        fresh = [array for array in tables.noise if array is not None]
        noise = _Table(lane, denoise, "noise", len(fresh))
        for i, array in enumerate(fresh):
            lane.upload(noise.address + i * noise.row_size, array)
        # Calls without a draw have noise coefficients of 0, so the input may keep the last draw or zeros.
        draws = iter(range(len(fresh)))
        total, current = len(tables.timesteps), [0]
        try:
            for k in range(total):
                lane.stream.make_current()  # the caller may continue from another thread
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
            current[0] = -1  # from here on, the lane may serve another call

    def _read(self, lane: Lane, denoise: Execution, current: Sequence[int], k: int, register: int) -> Float32:
        if current[0] != k:
            raise InputError(f"the state after call {k} is no longer available: read it before the next step")
        lane.stream.make_current()
        spec = next(tensor for tensor in denoise.engine.spec.inputs if tensor.name == "state")
        state: Float32 = denoise.read(spec)
        return state[: self._bucket.batch, register].copy()

    def _write_keys_and_values(self, lane: Lane, denoise: Execution, context: Float32) -> None:
        """Run `context`, which writes directly into the inputs of `denoise`."""
        hidden_states = _with_rows(context, self._denoise.sizes["B"]).reshape(-1, *context.shape[2:])
        sizes = {"n": len(hidden_states), "S": hidden_states.shape[1]}
        engine = self._backend.fitted("context", sizes).engine
        once = lane.context(engine, sizes, kept=False)
        once.resize(sizes, {tensor.name: denoise.addresses[tensor.name] for tensor in engine.spec.outputs})
        once.write("hidden_states", hidden_states)
        once.enqueue()

    def _compute_time_features(self, lane: Lane, table: "_Table", rows: Mapping[str, Float32]) -> None:
        """Run `time`, which writes directly into the table: one row per call, image and group."""
        count = len(rows["timesteps"])
        time = self._backend.fitted("time", {"n": count}, split=True)
        once = lane.context(time.engine, time.sizes, kept=False)
        row_size = table.size // count
        # Each run starts at an aligned address, whatever the size of a row.
        step = time.sizes["n"] // ALIGNED_ROWS * ALIGNED_ROWS or time.sizes["n"]
        for at in range(0, count, step):
            once.resize({"n": min(step, count - at)}, {"time_features": table.address + at * row_size})
            for name, array in rows.items():
                once.write(name, array[at : at + step])
            once.enqueue()


class _Blend:
    """The engine `blend` on the state of `denoise`: reads it in place, and its result is copied back."""

    def __init__(self, backend: GpuBackend, lane: Lane, denoise: Execution, sizes: Sizes, known: KnownParts) -> None:
        sizes = {symbol: sizes[symbol] for symbol in "Bhw"}
        blend = backend.fitted("blend", sizes)
        if blend.sizes != sizes:  # it would write beyond the end of the state
            raise BackendError(f"no engine of blend has the sizes of denoise, {sizes}: build both again")
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
    """A table on the device; one row per call becomes an input of `denoise`."""

    def __init__(self, lane: Lane, denoise: Execution, name: str, rows: int) -> None:
        spec = next(tensor for tensor in denoise.engine.spec.inputs if tensor.name == name)
        self.row_size = denoise.size_of(spec)
        self.size = rows * self.row_size
        self.address = lane.block(name, self.size).address
        self._stream, self._target = lane.stream, denoise.addresses[name]

    def copy_row(self, k: int) -> None:
        self._stream.copy(self._target, self.address + k * self.row_size, self.row_size)


def _with_rows(array: Float32, rows: int) -> Float32:
    """Pad with zeros to this many rows."""
    return np.pad(array, [(0, rows - len(array)), *[(0, 0)] * (array.ndim - 1)])
