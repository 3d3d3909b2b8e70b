"""The server's metrics for Prometheus: base units, and labels of few values, never a prompt or a client.

All names begin with `latentrt_`; docs/serving.md lists them.
"""

from collections.abc import Sequence
from importlib.metadata import version

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

from .messages import Called, Done, Event, Failed, Picture, Progress, RefusedError
from .service import Load

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
CALL_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
GAP_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 1)
_APIS = {
    "/v1/images": "images",
    "/v1/models": "models",
    "/v1/jobs": "jobs",
    "/sdapi": "webui",
    "/internal": "webui",
    "/v2": "v2",
    "/live": "live",
    "/ready": "ready",
}
PREFIX = "latentrt_"
IMAGES = (1, 2, 3, 4, 6, 8, 12, 16, 32)


class Metrics:
    """All metrics of one server."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        counter, gauge, histogram = self._counter, self._gauge, self._histogram
        self.requests = counter("requests_total", "Answers, by API and HTTP status.", "api", "status")
        self.jobs = counter("jobs_total", "Jobs that have ended, by how they ended.", "model", "outcome")
        self.refused = counter("refused_total", "Jobs that were not accepted, by reason.", "reason")
        self.images = counter("images_total", "Finished pictures.", "model")
        self.steps = counter("unet_image_calls_total", "UNet calls, counted for each image in them.", "model")
        self.queue = histogram("queue_seconds", "Time from acceptance to the first UNet call.", SECONDS, "model")
        self.duration = histogram("job_seconds", "Time from acceptance to the last picture.", SECONDS, "model")
        self.stage = histogram("stage_seconds", "Time of a job in a stage.", SECONDS, "model", "stage")
        self.call = histogram("unet_call_seconds", "Time of a UNet call.", CALL_SECONDS, "model", "size")
        self.batch = histogram("unet_call_images", "Images in a UNet call.", IMAGES, "model", "size")
        self.occupancy = gauge(
            "unet_call_occupancy_ratio", "Images in the last UNet call, of its cap.", "model", "size"
        )
        self.gap = histogram("host_gap_seconds", "Time of the host between two UNet calls.", GAP_SECONDS, "model")
        self.waiting = gauge("queue_images", "Images that wait.", "device")
        self.running = gauge("running_images", "Images that are drawn.", "device")
        self.work = gauge("queue_work_seconds", "Device time of the work that was accepted and is not done.", "device")
        self.ready = gauge("device_ready", "1 if the device takes work.", "device")
        self.memory = gauge("process_memory_bytes", "Resident memory of a device's process.", "device")
        self.restarts = counter(
            "device_restarts_total", "Processes that died or hung, and were started again.", "device"
        )
        build = gauge("build_info", "1; the version is a label.", "version")
        build.labels(version("latentrt")).set(1)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"{PREFIX}{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"{PREFIX}{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(f"{PREFIX}{name}", text, labels, buckets=buckets, registry=self.registry)

    def observe_answer(self, path: str, status: int) -> None:
        """A request was answered; 499 where the client had left."""
        api = next((name for prefix, name in _APIS.items() if path.startswith(prefix)), "other")
        self.requests.labels(api, str(status or 499)).inc()

    def observe_event(self, model: str, event: Event) -> None:
        """An event of a job of a model."""
        match event:
            case Picture():
                self.images.labels(model).inc()
            case Progress():
                self.steps.labels(model).inc()
            case Done(_, timings):
                self.jobs.labels(model, "done").inc()
                self.queue.labels(model).observe(timings.get("queue", 0.0) / 1000)
                self.duration.labels(model).observe(timings.get("total", 0.0) / 1000)
                for stage in ("encode", "denoise", "decode"):
                    self.stage.labels(model, stage).observe(timings.get(stage, 0.0) / 1000)
            case Failed(_, kind):
                self.jobs.labels(model, kind).inc()

    def observe_call(self, call: Called) -> None:
        """A UNet call."""
        size = f"{call.width}x{call.height}"
        self.call.labels(call.model, size).observe(call.seconds)
        self.batch.labels(call.model, size).observe(call.count)
        self.occupancy.labels(call.model, size).set(call.count / max(call.cap, 1))
        self.gap.labels(call.model).observe(call.gap)

    def observe_refusal(self, error: RefusedError) -> None:
        """A job was not accepted."""
        self.refused.labels(error.reason).inc()

    def text(self, loads: Sequence[Load]) -> bytes:
        """The metrics now, in Prometheus' text format."""
        self.observe_loads(loads)
        return generate_latest(self.registry)

    def observe_loads(self, loads: Sequence[Load]) -> None:
        """What devices do now."""
        for load in loads:
            self.waiting.labels(load.device).set(load.waiting)
            self.running.labels(load.device).set(load.running)
            self.work.labels(load.device).set(load.work / 1000)
            self.ready.labels(load.device).set(load.ready)
            if load.memory is not None:
                self.memory.labels(load.device).set(load.memory)


def metrics_table() -> str:
    """The table of `docs/serving.md`."""
    metrics = [m for m in vars(Metrics()).values() if isinstance(m, Counter | Gauge | Histogram)]
    lines = ["| metric | type | labels | what it is |", "|---|---|---|---|"]
    for metric in metrics:
        (family,) = metric.describe()
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = ", ".join(f"`{label}`" for label in metric._labelnames)
        lines.append(f"| `{name}` | {family.type} | {labels} | {family.documentation} |")
    return "\n".join(lines) + "\n"
