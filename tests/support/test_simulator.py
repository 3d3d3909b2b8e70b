"""The simulated GPU has the shape of the real libraries, and catches what they would not."""

import re
import threading
from typing import Any

import numpy as np
import pytest
import tensorrt_rtx
from cuda.bindings import runtime as real_cuda
from support.simulator import Cuda, Fault, simulated_tensorrt
from support.simulator import tensorrt as simulated

OK = real_cuda.cudaError_t.cudaSuccess
CALLS = sorted(name for name in vars(Cuda) if re.match(r"cuda[A-Z]", name) and callable(getattr(Cuda, name)))
CALLS = [name for name in CALLS if not isinstance(getattr(Cuda, name), type)]
FACTS_OF_THE_SIMULATION = {"capturable", "onnx", "inputs", "initializers", "refittable", "shapes", "content", "flags",
    "profiles", "device", "invalid", "timing_cache", "limits", "strategy", "array", "engine"}  # fmt: skip


def checked(answer: tuple[Any, ...]) -> Any:
    status, *values = answer
    assert status == OK
    return values[0] if values else None


# --- the same shape as the real thing -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CALLS)
def test_a_call_of_cuda_exists_and_takes_as_many_arguments(name: str) -> None:
    signature = (getattr(real_cuda, name).__doc__ or "").splitlines()[0]
    parameters = re.fullmatch(rf"{name}\((.*)\)", signature)
    assert parameters is not None, signature
    wanted = len([p for p in parameters[1].split(",") if p])
    code = getattr(Cuda, name).__code__
    assert code.co_argcount - 1 == wanted, signature


@pytest.mark.parametrize(
    "name",
    [
        *("cudaError_t", "cudaMemcpyKind", "cudaStreamCaptureMode"),
        *("cudaStreamNonBlocking", "cudaHostAllocDefault"),
        *("cudaEventDefault", "cudaEventDisableTiming"),
    ],
)
def test_a_constant_of_cuda_is_the_real_one(name: str) -> None:
    assert getattr(Cuda, name) is getattr(real_cuda, name)


CLASSES = [
    kind for kind in vars(simulated).values() if isinstance(kind, type) and kind.__module__ == simulated.__name__
]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_a_class_of_tensorrt_has_what_is_simulated(kind: type) -> None:
    real = getattr(tensorrt_rtx, kind.__name__)
    methods = {name for name in vars(kind) if not name.startswith("_")} - FACTS_OF_THE_SIMULATION - {"trt"}
    assert {name for name in methods if not hasattr(real, name)} == set()


def test_the_module_has_nothing_that_the_real_one_lacks() -> None:
    trt = simulated_tensorrt(Cuda())
    names = {name for name in vars(trt) if not name.startswith("_")} - {"cuda"}
    assert {name for name in names if not hasattr(tensorrt_rtx, name)} == set()


# --- what it catches --------------------------------------------------------------------------------------------------


@pytest.fixture
def gpu() -> Cuda:
    return Cuda()


def stream(gpu: Cuda) -> int:
    return int(checked(gpu.cudaStreamCreateWithFlags(real_cuda.cudaStreamNonBlocking)))


def pinned(gpu: Cuda, content: bytes) -> int:
    address = int(checked(gpu.cudaHostAlloc(len(content), 0)))
    gpu.view((address, len(content)))[:] = np.frombuffer(content, np.uint8)
    return address


TO_GPU, TO_HOST = real_cuda.cudaMemcpyKind.cudaMemcpyHostToDevice, real_cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost


def test_work_is_done_when_somebody_waits(gpu: Cuda) -> None:
    here, there = stream(gpu), checked(gpu.cudaMalloc(4))
    source, target = pinned(gpu, b"abcd"), pinned(gpu, b"....")
    checked(gpu.cudaMemcpyAsync(there, source, 4, TO_GPU, here))
    checked(gpu.cudaMemcpyAsync(target, there, 4, TO_HOST, here))
    assert gpu.view((target, 4)).tobytes() == b"\xff" * 4
    checked(gpu.cudaStreamSynchronize(here))
    assert gpu.view((target, 4)).tobytes() == b"abcd"


def test_pinned_memory_that_is_changed_too_early_is_a_fault(gpu: Cuda) -> None:
    here, there, source = stream(gpu), checked(gpu.cudaMalloc(4)), pinned(gpu, b"abcd")
    checked(gpu.cudaMemcpyAsync(there, source, 4, TO_GPU, here))
    gpu.view((source, 4))[0] = 0
    with pytest.raises(Fault, match="pinned memory was changed"):
        gpu.cudaStreamSynchronize(here)


def test_memory_beyond_its_end_or_its_life_is_a_fault(gpu: Cuda) -> None:
    here, there = stream(gpu), checked(gpu.cudaMalloc(100))
    with pytest.raises(Fault, match="not allocated memory"):
        gpu.cudaMemsetAsync(there, 0, 101, here)
    checked(gpu.cudaFree(there))
    with pytest.raises(Fault, match="not allocated memory"):
        gpu.cudaMemsetAsync(there, 0, 1, here)
    with pytest.raises(Fault, match="freed"):
        gpu.cudaFree(there)


def test_two_streams_at_one_block_are_a_fault(gpu: Cuda) -> None:
    one, two, there = stream(gpu), stream(gpu), checked(gpu.cudaMalloc(8))
    checked(gpu.cudaMemsetAsync(there, 0, 4, one))
    checked(gpu.cudaMemsetAsync(there + 4, 0, 4, two))  # beside it
    with pytest.raises(Fault, match="two streams"):
        gpu.cudaMemsetAsync(there + 3, 0, 2, two)
    checked(gpu.cudaStreamSynchronize(one))
    checked(gpu.cudaMemsetAsync(there + 3, 0, 1, two))


def test_waiting_breaks_a_capture(gpu: Cuda) -> None:
    here, there = stream(gpu), checked(gpu.cudaMalloc(8))
    mode = real_cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    checked(gpu.cudaStreamBeginCapture(here, mode))
    checked(gpu.cudaMemsetAsync(there, 0, 8, here))
    assert gpu.cudaMalloc(8)[0] == real_cuda.cudaError_t.cudaErrorStreamCaptureUnsupported
    assert gpu.cudaStreamEndCapture(here)[0] == real_cuda.cudaError_t.cudaErrorStreamCaptureInvalidated
    assert gpu.view((there, 8)).tobytes() == b"\xff" * 8


def test_a_graph_is_replayed_with_its_addresses(gpu: Cuda) -> None:
    here, there = stream(gpu), checked(gpu.cudaMalloc(8))
    checked(gpu.cudaStreamBeginCapture(here, real_cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal))
    checked(gpu.cudaMemsetAsync(there, 7, 8, here))
    graph = checked(gpu.cudaGraphInstantiate(checked(gpu.cudaStreamEndCapture(here)), 0))
    for _ in range(2):
        gpu.view((there, 8))[:] = 0
        checked(gpu.cudaGraphLaunch(graph, here))
        checked(gpu.cudaStreamSynchronize(here))
        assert gpu.view((there, 8)).tobytes() == b"\x07" * 8
    checked(gpu.cudaFree(there))
    checked(gpu.cudaGraphLaunch(graph, here))
    with pytest.raises(Fault, match="not allocated memory"):
        gpu.cudaStreamSynchronize(here)


# --- events, devices, recordings --------------------------------------------------------------------------------------

THREAD_LOCAL = real_cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
ERRORS = real_cuda.cudaError_t


def event(gpu: Cuda) -> int:
    return int(checked(gpu.cudaEventCreateWithFlags(real_cuda.cudaEventDisableTiming)))


def test_an_event_is_waited_for_and_nothing_behind_it(gpu: Cuda) -> None:
    here, there, point = stream(gpu), checked(gpu.cudaMalloc(8)), event(gpu)
    assert gpu.cudaEventQuery(point) == (OK,)  # never recorded
    checked(gpu.cudaMemsetAsync(there, 1, 4, here))
    checked(gpu.cudaEventRecord(point, here))
    checked(gpu.cudaMemsetAsync(there + 4, 1, 4, here))
    assert gpu.cudaEventQuery(point) == (ERRORS.cudaErrorNotReady,)
    checked(gpu.cudaEventSynchronize(point))
    assert gpu.view((there, 8)).tobytes() == b"\x01" * 4 + b"\xff" * 4
    assert gpu.pending == 1
    assert gpu.cudaEventQuery(point) == (OK,)
    checked(gpu.cudaEventRecord(point, here))  # moves it behind the second fill
    checked(gpu.cudaEventSynchronize(point))
    assert gpu.pending == 0
    checked(gpu.cudaEventDestroy(point))
    assert gpu.held["events"] == 0


def test_memory_streams_and_events_belong_to_a_device() -> None:
    gpu = Cuda(devices=2)
    here, there, point = stream(gpu), checked(gpu.cudaMalloc(8)), event(gpu)
    checked(gpu.cudaSetDevice(1))
    assert gpu.cudaGetDevice() == (OK, 1)
    with pytest.raises(Fault, match="this thread's device is 1, the stream's is 0"):
        gpu.cudaMemsetAsync(there, 0, 8, here)
    other = stream(gpu)
    with pytest.raises(Fault, match="on device 1 uses memory of device 0"):
        gpu.cudaMemsetAsync(there, 0, 8, other)
    with pytest.raises(Fault, match="event of device 0 is recorded on a stream of device 1"):
        gpu.cudaEventRecord(point, other)
    devices: list[Any] = []
    thread = threading.Thread(target=lambda: devices.append(gpu.cudaGetDevice()[1]))
    thread.start()
    thread.join()
    assert devices == [0]  # of each thread


@pytest.mark.parametrize("call", ["cudaMalloc", "cudaHostAlloc", "cudaFree", "cudaFreeHost", "cudaEventQuery"])
def test_a_recording_in_global_mode_forbids_calls_of_all_threads(gpu: Cuda, call: str) -> None:
    here, there, point = stream(gpu), checked(gpu.cudaMalloc(8)), event(gpu)
    arguments = {"cudaMalloc": (8,), "cudaHostAlloc": (8, 0), "cudaFree": (there,), "cudaEventQuery": (point,)}
    given = arguments.get(call) or (pinned(gpu, b"ab"),)
    gpu.begin_recording(here)
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(getattr(gpu, call)(*given)[0]))
    thread.start()
    thread.join()
    assert answers == [ERRORS.cudaErrorStreamCaptureUnsupported]
    assert not gpu.end_recording(here)


def test_work_of_another_thread_would_be_recorded(gpu: Cuda) -> None:
    here, there = stream(gpu), checked(gpu.cudaMalloc(8))
    gpu.begin_recording(here)
    faults: list[str] = []

    def fill() -> None:
        try:
            gpu.cudaMemsetAsync(there, 0, 8, here)
        except Fault as fault:
            faults.append(str(fault))

    thread = threading.Thread(target=fill)
    thread.start()
    thread.join()
    assert faults == ["a fill of another thread is recorded instead of executed"]
    assert not gpu.end_recording(here)


@pytest.mark.parametrize("call", ["cudaFree", "cudaEventSynchronize", "cudaStreamSynchronize"])
def test_freeing_and_waiting_break_a_capture(gpu: Cuda, call: str) -> None:
    here, other, there, point = stream(gpu), stream(gpu), checked(gpu.cudaMalloc(8)), event(gpu)
    argument = {"cudaFree": there, "cudaEventSynchronize": point, "cudaStreamSynchronize": other}[call]
    checked(gpu.cudaStreamBeginCapture(here, THREAD_LOCAL))
    assert getattr(gpu, call)(argument) == (ERRORS.cudaErrorStreamCaptureUnsupported,)
    assert gpu.cudaStreamEndCapture(here)[0] == ERRORS.cudaErrorStreamCaptureInvalidated


def test_a_replayed_upload_reads_what_is_there_then(gpu: Cuda) -> None:
    here, there, source = stream(gpu), checked(gpu.cudaMalloc(4)), pinned(gpu, b"abcd")
    checked(gpu.cudaStreamBeginCapture(here, THREAD_LOCAL))
    checked(gpu.cudaMemcpyAsync(there, source, 4, TO_GPU, here))
    graph = checked(gpu.cudaGraphInstantiate(checked(gpu.cudaStreamEndCapture(here)), 0))
    gpu.view((source, 4))[:] = np.frombuffer(b"efgh", np.uint8)
    checked(gpu.cudaGraphLaunch(graph, here))
    checked(gpu.cudaStreamSynchronize(here))
    assert gpu.view((there, 4)).tobytes() == b"efgh"
    checked(gpu.cudaGraphLaunch(graph, here))
    gpu.view((source, 4))[0] = 0
    with pytest.raises(Fault, match="pinned memory was changed"):
        gpu.cudaStreamSynchronize(here)
