"""What batching is worth to a server: a batch that changes at each UNet call, whole requests at a time, one by one.

    python -m benchmarks.serving.batching [BUNDLE] [--device cpu] [--loads 0.5 0.8 1 1.2] [--jobs 60] [--chart FILE.png]

The same jobs arrive at the same times in each mode (Poisson, a seeded trace; half of the jobs have 4 steps, half 20).
A load of 1 is what the device can do with full batches, as measured at its start. Latency is from arrival to the
finished picture, so that a queue counts. The last line is JSON.
"""

import argparse
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.common.harness import Measurement, finish, show_environment, show_table
from latentrt.serve.dispatcher.dispatcher import Dispatcher
from latentrt.serve.dispatcher.models import served_model
from latentrt.serve.dispatcher.policy import Policy
from latentrt.serve.dispatcher.queue import Group, Weights
from latentrt.serve.messages import Called, DispatcherOptions, Done, Event, Failed, Job, ModelSpec, Preview, Previews

STEPS = (4, 20)
MODES = ("each call", "requests", "one by one")
PROMPTS = ("a large red star on a blue background", "a small yellow square left of a large green circle")


class RequestLevel(Policy):
    """Images join an empty batch only, as in servers that batch requests."""

    def _joinable(self, group: Group, waiting: list[Weights], now: float) -> bool:
        return not self.lines[group].running and super()._joinable(group, waiting, now)


@dataclass(eq=False)
class Times:
    """Seconds of one job, on one clock."""

    due: float
    first_preview: float | None = None
    end: float | None = None


@dataclass(eq=False)
class Run:
    """One mode at one load."""

    mode: str
    load: float
    jobs: list[Times] = field(default_factory=list)
    seconds: float = 0.0
    occupancy: float = 0.0

    def latencies(self) -> list[float]:
        """Of all jobs."""
        return [job.end - job.due for job in self.jobs if job.end is not None]

    def previews(self) -> list[float]:
        """From arrival to the first preview."""
        return [job.first_preview - job.due for job in self.jobs if job.first_preview is not None]


class Server:
    """A dispatcher in one mode, and the times of its jobs."""

    def __init__(self, spec: ModelSpec, options: DispatcherOptions, mode: str) -> None:
        self.model = served_model(spec)
        self._times: dict[str, Times] = {}
        self._ended = threading.Semaphore(0)
        self.counts: list[int] = []
        policy = RequestLevel if mode == "requests" else Policy
        self.dispatcher = Dispatcher([spec], options, self._listen, policy=policy)
        self.dispatcher.start()

    def _listen(self, event: Event | Called) -> None:
        now = time.monotonic()
        if isinstance(event, Called):
            self.counts.append(event.count)
        elif isinstance(event, Preview) and self._times[event.job].first_preview is None:
            self._times[event.job].first_preview = now
        elif isinstance(event, Done | Failed):
            assert isinstance(event, Done), event
            self._times[event.job].end = now
            self._ended.release()

    def capacity(self) -> float:
        """Jobs a second with full batches."""
        costs = self.dispatcher.costs()
        jobs = [self.job("capacity", number, steps) for number, steps in enumerate(STEPS)]
        group = Group(Weights(self.model.name), self.model.bucket(jobs[0].request))
        return 1000 / float(np.mean([costs.image(group, len(job.request.plan)) for job in jobs]))

    def job(self, name: str, number: int, steps: int) -> Job:
        """A job of the trace."""
        options = {"num_inference_steps": steps, "seed": number, "scheduler": "euler"}
        request = self.model.request(PROMPTS[number % 2], options)
        return Job(f"{name}-{number}", self.model.name, request, client=f"{number % 4}", previews=Previews("auto", 3))

    def play(self, mode: str, load: float, gaps: Sequence[float], steps: Sequence[int]) -> Run:
        """Submit all jobs at their times, and wait for the last one."""
        run = Run(mode, load)
        jobs = [self.job(f"{mode}-{load}", number, count) for number, count in enumerate(steps)]
        start = time.monotonic()
        self.counts.clear()
        for job, due in zip(jobs, start + np.cumsum(gaps), strict=True):
            time.sleep(max(0.0, due - time.monotonic()))
            self._times[job.id] = Times(due)
            run.jobs.append(self._times[job.id])
            self.dispatcher.submit(job)
        for _ in jobs:
            self._ended.acquire()
        run.seconds = time.monotonic() - start
        run.occupancy = float(np.mean(self.counts))
        return run


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="What a changing batch is worth to a server.")
    parser.add_argument("bundle", type=Path, nargs="?", help="default: the embedded model")
    parser.add_argument("--backend", default="onnxruntime", help="default: onnxruntime")
    parser.add_argument("--device", default="cpu", help="default: cpu")
    parser.add_argument("--loads", type=float, nargs="+", default=[0.5, 0.8, 1.0, 1.2], help="default: 0.5 0.8 1 1.2")
    parser.add_argument("--jobs", type=int, default=60, help="of each run; default: 60")
    parser.add_argument("--batch", type=int, default=8, help="images of one UNet call, at most; default: 8")
    parser.add_argument("--size", type=int, nargs=2, metavar=("W", "H"), help="default: the bundle's")
    parser.add_argument("--chart", type=Path, help="write a chart, a PNG file")
    arguments = parser.parse_args()
    card = show_environment()
    runs = measured(arguments)
    head = ("mode", "load", "jobs/s", "p50 s", "p99 s", "first preview p50 s", "images a call")
    show_table(head, [row(run) for run in runs])
    if arguments.chart:
        draw_chart(runs, arguments.chart)
    name = arguments.bundle.name if arguments.bundle else "shapes"
    measurements = [Measurement(f"{name}: {r.mode}, load {r.load:g}", "s", r.latencies()) for r in runs]
    results = {f"{r.mode}, load {r.load:g}": dict(zip(head[2:], map(float, row(r)[2:]), strict=True)) for r in runs}
    finish("batching", card, results, measurements=measurements)


def measured(arguments: argparse.Namespace) -> list[Run]:
    """All modes at all loads; the modes take turns at each load."""
    sizes = (tuple(arguments.size),) if arguments.size else None
    spec = ModelSpec("model", arguments.bundle, arguments.backend, sizes=sizes)
    common = {"device": arguments.device, "max_wait": 1e6, "max_queue": 10**6, "client_jobs": 10**6}
    servers = {}
    for mode in MODES:
        batch = 1 if mode == "one by one" else arguments.batch
        servers[mode] = Server(spec, DispatcherOptions(batch=batch, **common), mode)
    capacity = servers[MODES[0]].capacity()
    print(f"full batches: {capacity:.3g} jobs a second", flush=True)
    rng = np.random.default_rng(20)
    runs = []
    with tqdm(total=len(arguments.loads) * len(MODES), disable=None, leave=False) as bar:
        for load in arguments.loads:
            gaps = rng.exponential(1 / (capacity * load), arguments.jobs)
            steps = [int(count) for count in rng.choice(STEPS, arguments.jobs)]
            for mode in MODES:
                bar.set_description_str(f"{mode}, load {load:g}")
                runs.append(servers[mode].play(mode, load, gaps, steps))
                bar.update()
    for server in servers.values():
        server.dispatcher.close()
    return runs


def row(run: Run) -> list[str]:
    """A row of the table."""
    latencies, previews = run.latencies(), run.previews()
    figures = (
        len(run.jobs) / run.seconds,
        np.median(latencies),
        np.percentile(latencies, 99),
        np.median(previews) if previews else float("nan"),
        run.occupancy,
    )
    return [run.mode, f"{run.load:g}", *(f"{figure:.3g}" for figure in figures)]


def draw_chart(runs: Sequence[Run], file: Path) -> None:
    """Latency by load, a line a mode."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharex=True)
    for mode in MODES:
        of_mode = [run for run in runs if run.mode == mode]
        loads = [100 * run.load for run in of_mode]
        for axis, quantile in zip(axes, (50, 99), strict=True):
            axis.plot(loads, [np.percentile(run.latencies(), quantile) for run in of_mode], marker="o", label=mode)
    for axis, title in zip(axes, ("median", "99th percentile"), strict=True):
        axis.set(title=f"latency, {title}", xlabel="load, % of full batches", ylabel="seconds", ylim=(0, None))
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
