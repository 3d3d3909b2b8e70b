"""How often the host waits for the GPU inside the loop: once a call, for the event of the call before, and never else.

Counted in two ways: latentrt's own calls of CUDA, by wrapping them; and the calls of all libraries in the process, with
PyTorch's profiler if PyTorch has CUDA. The profiler traces the driver, so it sees ONNX Runtime and TensorRT as well.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any
from unittest import mock

from latentrt.runtime import Pipeline

from .backends import PROMPT, ensure_engines
from .places import Place, on_each_backend
from .report import Report

# Calls that wait for the GPU, or can wait, as allocating and freeing do.
WAITING = (
    "cudaStreamSynchronize", "cudaDeviceSynchronize",
    "cudaMemcpy", "cudaMemset", "cudaMalloc", "cudaFree", "cudaHostAlloc", "cudaFreeHost",
)  # fmt: skip
EVENTS = "cudaEventSynchronize"
LAUNCHES = "cudaGraphLaunch"
QUEUED = ("cudaMemcpyAsync", LAUNCHES, "cudaEventRecord")


def run(place: Place, report: Report, steps: int = 30) -> None:
    """Check what the host waits for, and that engines are launched once per call. ONNX Runtime launches by itself."""
    engines = ensure_engines(place, report, "plain")

    def count(backend: str, pipe: Pipeline) -> None:
        loop(pipe, 3, lambda: None)
        with counted_calls() as calls:
            inside = loop(pipe, steps, lambda: Counter(calls))
        waits = sum(inside[name] for name in WAITING)
        report.figure(f"{backend}: calls of latentrt in {steps - 2} calls of the loop", dict(inside))
        report.check(f"{backend}: the host waits", waits == 0, f"{waits} times, at most 0")
        events = inside[EVENTS]
        report.check(f"{backend}: waits for the call before", events <= steps - 2, f"{events}, at most one a call")
        queued = sum(inside[name] for name in QUEUED)
        report.check(f"{backend}: calls that queue", queued <= 3 * (steps - 2), f"{queued}, at most 3 a call")
        if backend != "onnxruntime":
            launches = inside[LAUNCHES]
            report.check(
                f"{backend}: captured graphs launched", launches == steps - 2, f"{launches}, {steps - 2} expected"
            )
        heard = profiled(pipe, steps)
        if heard is None:
            report.note("PyTorch has no CUDA here, so calls of other libraries were not counted")
            return
        report.figure(f"{backend}: calls of the whole process", dict(heard))
        waits = waits_among(heard)
        report.check(f"{backend}: any library waits", waits == 0, f"{waits} times, at most 0")

    on_each_backend(place, report, count, engines=engines)


def loop(pipe: Pipeline, steps: int, look: Callable[[], Any]) -> Any:
    """Run a loop; return how much `look()` grows from its first call to its last, or None if `look` returns None."""
    stream = pipe.stream(PROMPT, num_inference_steps=steps, scheduler="euler_a", seed=2, output_type="latent")
    next(stream)
    before = look()
    for _ in range(steps - 2):
        next(stream)
    after = look()
    for _ in stream:
        pass
    return None if after is None else after - before


@contextmanager
def counted_calls() -> Iterator[Counter[str]]:
    """Count the calls of CUDA's runtime through Python in this block, by name."""
    from cuda.bindings import runtime as cuda

    calls: Counter[str] = Counter()

    def counting(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def count(*arguments: Any) -> Any:
            calls[name] += 1
            return call(*arguments)

        return count

    names = [name for name in (*WAITING, *QUEUED, EVENTS) if hasattr(cuda, name)]
    counted: dict[str, Any] = {name: counting(name, getattr(cuda, name)) for name in names}
    with mock.patch.multiple(cuda, **counted):
        yield calls


def profiled(pipe: Pipeline, steps: int) -> Counter[str] | None:
    """Calls of CUDA by all libraries in the loop, without the profiler's own; None if PyTorch has no CUDA."""
    import torch

    if not torch.cuda.is_available():
        return None
    own = heard_by_profiler(lambda: None)
    stream = pipe.stream(PROMPT, num_inference_steps=steps, scheduler="euler_a", seed=2, output_type="latent")
    next(stream)
    heard = heard_by_profiler(lambda: [next(stream) for _ in range(steps - 2)])
    for _ in stream:
        pass
    return heard - own


def heard_by_profiler(work: Callable[[], object]) -> Counter[str]:
    """Count the CUDA calls while `work` runs, by name, such as cudaGraphLaunch or cuLaunchKernel."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        work()
    names = (event.name() for event in found.profiler.kineto_results.events())
    return Counter(name for name in names if re.match(r"cu(da)?[A-Z]", name))  # no kernels, such as cutlass_…


def waits_among(calls: Counter[str]) -> int:
    """How many of these calls of CUDA's runtime or driver wait, but for events."""
    plain = {name: re.sub(r"(_v\d+|_ptsz|_ptds)+$", "", name) for name in calls}
    waits = (name for name, short in plain.items() if short in WAITING or "Synchronize" in short)
    return sum(calls[name] for name in waits if "EventSynchronize" not in name)
