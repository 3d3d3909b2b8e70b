"""Whether a server grows while it works: memory, descriptors and threads of all its processes under a steady load.

    python -m benchmarks.serving.soak [--seconds 600] [--load 0.8] [--every 10] [--delay 50]

A server with an engine of fixed delay gets OpenAI requests, of which some are abandoned, and native jobs with --state.
Medians of the ninth and tenth minute are compared with those of the fourth and fifth. The last line is JSON.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import httpx

from benchmarks.common.harness import Target, finish, show_environment, show_table

from .load import Load, Result, played
from .server_process import ServerProcess, server_process

BATCH, STEPS = 4, 4
LEAVE = 0.05  # share of the clients that leave
JOBS = 0.1  # native jobs, of all
GROWTH = 8.0  # MiB of all processes from the middle to the end, at most


@dataclass(frozen=True, slots=True)
class Sample:
    """All processes of a server at a moment. `connections` are those of clients, and not among `descriptors`."""

    second: float
    rss_mib: float
    descriptors: int
    connections: int
    threads: int
    processes: int


def sampled(server: ServerProcess, start: float) -> Sample:
    """A sample now."""
    processes = server.processes()
    connections = sum(c.status == "ESTABLISHED" for process in processes for c in process.net_connections("tcp"))
    return Sample(
        round(time.monotonic() - start, 1),
        sum(process.memory_info().rss for process in processes) / 2**20,
        sum(process.num_fds() for process in processes) - connections,
        connections,
        sum(process.num_threads() for process in processes),
        len(processes),
    )


async def soaked(server: ServerProcess, load: Load, *, jobs: float, every: float) -> tuple[Result, list[Sample], int]:
    """Load the server and sample it: the result of the load, the samples, and the number of native jobs."""
    start = time.monotonic()
    playing = asyncio.create_task(played(load))
    posting = asyncio.create_task(_posted(load, jobs))
    samples = []
    while time.monotonic() - start < load.seconds:
        await asyncio.sleep(every)
        samples.append(await asyncio.to_thread(sampled, server, start))
        print("  ".join(f"{name} {value:g}" for name, value in asdict(samples[-1]).items()), flush=True)
    return await playing, samples, await posting


async def _posted(load: Load, rate: float) -> int:
    """Post native jobs at a steady rate; how many were accepted."""
    end, accepted = time.monotonic() + load.seconds, 0
    async with httpx.AsyncClient(base_url=load.url, timeout=60) as client:
        while time.monotonic() < end:
            body = {"prompt": f"a blue square {accepted % load.prompts}", "num_inference_steps": load.steps}
            answer = await client.post("/v1/jobs", json=body | {"scheduler": "euler"})
            accepted += answer.status_code == 202
            await asyncio.sleep(1 / rate)
    return accepted


def medians(samples: Sequence[Sample], begin: float, end: float) -> dict[str, float]:
    """Medians of the samples of this time."""
    chosen = [sample for sample in samples if begin < sample.second <= end + 1] or samples[-1:]
    names = ("rss_mib", "descriptors", "connections", "threads", "processes")
    return {name: statistics.median(getattr(sample, name) for sample in chosen) for name in names}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Whether a server grows while it works.")
    parser.add_argument("--seconds", type=float, default=600, help="default: 600")
    parser.add_argument("--load", type=float, default=0.8, help="of what the engine can do; default: 0.8")
    parser.add_argument("--every", type=float, default=10, help="seconds between samples; default: 10")
    parser.add_argument("--delay", type=float, default=50, help="milliseconds of a UNet call; default: 50")
    arguments = parser.parse_args()
    card = show_environment()
    capacity = BATCH / STEPS / arguments.delay * 1000
    rate, seconds = capacity * arguments.load, arguments.seconds
    model = f"delay-{arguments.delay:g}=engines/shapes"
    with tempfile.TemporaryDirectory() as folder:
        flags = (model, f"--batch={BATCH}", f"--state={folder}", f"--result-ttl={max(1, seconds / 20):g}")
        with server_process(*flags, "--no-access-log") as server:
            load = Load(server.address, rate * (1 - JOBS), seconds, STEPS, leave=LEAVE, patience=1.0)
            result, samples, jobs = asyncio.run(soaked(server, load, jobs=rate * JOBS, every=arguments.every))
    middle, last = medians(samples, 0.3 * seconds, 0.5 * seconds), medians(samples, 0.8 * seconds, seconds)
    rows = [[name, f"{middle[name]:.1f}", f"{last[name]:.1f}", f"{last[name] - middle[name]:+.1f}"] for name in middle]
    show_table(("median", "minutes 4-5", "minutes 9-10", "difference"), rows)
    figures: dict[str, Any] = {**result.figures(), "jobs": jobs, "middle": middle, "last": last}
    figures["samples"] = [asdict(sample) for sample in samples]
    finish("serving soak", card, figures, [Target("growth", last["rss_mib"] - middle["rss_mib"], GROWTH, "MiB")])


if __name__ == "__main__":
    main()
