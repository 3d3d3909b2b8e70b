"""What steps of the loop cost on the simulated GPU."""

from collections.abc import Iterator

from support.simulator import Machine

from latentrt.runtime import Step

WAIT = "cudaEventSynchronize"


def launches_of(gpu: Machine, steps: Iterator[Step], count: int) -> int:
    """Graphs launched in the next `count` steps after one more; in each, the host waits once, for the call before."""
    next(steps)
    waits, launches = len(gpu.cuda.waits), gpu.cuda.launches
    for _ in range(count):
        next(steps)
    assert gpu.cuda.waits[waits:] == [WAIT] * count
    return gpu.cuda.launches - launches
