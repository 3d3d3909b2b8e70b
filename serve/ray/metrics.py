"""The server's metrics, kept twice: for the /metrics of this process, and as Ray's, which come from every process.

Ray calls them `ray_latentrt_…`, and adds the application, the deployment and the replica to their labels.
"""

from collections.abc import Sequence
from typing import Any, cast

from prometheus_client import Counter, Gauge, Histogram
from ray.serve import metrics as rays

from latentrt.serve.metrics import PREFIX, Metrics
from latentrt.serve.service import Load

_LEAST = 1e-9  # Ray takes no zeros into histograms


class IngressMetrics(Metrics):
    """Those of an ingress. Gauges of devices are not its own, and stay here."""

    def text(self, loads: Sequence[Load]) -> bytes:
        """See `Metrics`. Replicas come and go: only those of the moment are told."""
        for gauge in (self.waiting, self.running, self.work, self.ready, self.memory):
            gauge.clear()
        return super().text(loads)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        # Ray adds _total by itself.
        of_ray = rays.Counter(PREFIX + name.removesuffix("_total"), text, tag_keys=labels)
        return cast(Counter, _Both(super()._counter(name, text, *labels), of_ray, labels))

    def _histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        of_ray = rays.Histogram(PREFIX + name, text, boundaries=list(buckets), tag_keys=labels)
        return cast(Histogram, _Both(super()._histogram(name, text, buckets, *labels), of_ray, labels))


class EngineMetrics(IngressMetrics):
    """Those of a device."""

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        of_ray = rays.Gauge(PREFIX + name, text, tag_keys=labels)
        return cast(Gauge, _Both(super()._gauge(name, text, *labels), of_ray, labels))


class _Both:
    """A metric of this process, and the same one of Ray's."""

    def __init__(self, own: Any, of_ray: Any, names: tuple[str, ...]) -> None:
        self._own, self._of_ray, self._names = own, of_ray, names

    def labels(self, *values: object) -> "_Series":
        """As of prometheus_client."""
        tags = {name: str(value) for name, value in zip(self._names, values, strict=True)}
        return _Series(self._own.labels(*values), self._of_ray, tags)


class _Series:
    """A metric at these labels."""

    def __init__(self, own: Any, of_ray: Any, tags: dict[str, str]) -> None:
        self._own, self._of_ray, self._tags = own, of_ray, tags

    def inc(self) -> None:
        """Count one more."""
        self._own.inc()
        self._of_ray.inc(1, tags=self._tags)

    def set(self, value: float) -> None:
        """The value of a gauge."""
        self._own.set(value)
        self._of_ray.set(float(value), tags=self._tags)

    def observe(self, value: float) -> None:
        """Add to a histogram."""
        self._own.observe(value)
        self._of_ray.observe(max(float(value), _LEAST), tags=self._tags)
