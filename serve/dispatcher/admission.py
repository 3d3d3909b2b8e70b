"""Which jobs are accepted, and what they are promised. Pure: times come from the caller.

A job is accepted if its first image, and that of every job accepted before, can be expected to start within `max_wait`
seconds; see `Forecast`. A client's waiting work is limited to its share of `max_wait`, with one share kept free for a
newcomer, so that nobody fills the queue alone.
"""

from latentrt.serve.messages import Admitted, RefusedError, retry_seconds

from .forecast import Forecast, work_left
from .policy import Policy
from .queue import Client, QueuedJob

# Shares of `max_wait` that are not promised away, as waits cannot be predicted exactly. Less for jobs that have been
# accepted, so that a small error in their prediction does not stop all admission.
SPARE_FOR_NEW, SPARE = 0.15, 0.07
SPARE_OF_PAUSE = 0.5  # and of the time between a set's turns, as work may slip into the next turn


class Admission:
    """Decides for one policy."""

    def __init__(self, policy: Policy, *, max_wait: float, max_queue: int, client_jobs: int) -> None:
        """Limits: seconds until a job's first image starts; images that wait; jobs of one client."""
        self._policy, self._costs = policy, policy.costs
        self._max_wait, self._max_queue, self._client_jobs = max_wait, max_queue, client_jobs
        self._seen: dict[Client, tuple[float, float]] = {}  # when a client last asked, and its weight

    def admit(self, job: QueuedJob, now: float) -> Admitted:
        """Queue a job in the policy, or raise `RefusedError`."""
        self._seen[job.client] = (now, job.weight)
        self._require_room(job)
        self._require_share(job, now)
        forecast = Forecast(self._policy, job, now)
        self._require_punctual(forecast, now)
        wait, estimate = forecast.start, forecast.finish
        if job.expires is not None and now + estimate > job.expires:
            raise RefusedError(
                "deadline",
                f"the deadline is in {max(job.expires - now, 0):.3g} s, but it would take about {estimate:.1f} s",
            )
        position = self._policy.waiting()
        job.promised = now + self._max_wait
        job.urgent = job.promised - SPARE_FOR_NEW * self._max_wait - forecast.pause
        self._policy.add(job)
        return Admitted(position, wait, estimate)

    def _require_room(self, job: QueuedJob) -> None:
        own = [other for other in self._policy.jobs.values() if other.client.name == job.client.name]
        most = job.client_jobs or self._client_jobs
        if len(own) >= most:
            raise RefusedError(
                "client_busy",
                f"{len(own)} of your jobs are under way: expected at most {most}",
                retry_seconds(min(self._seconds_left(other) for other in own)),
            )
        if (waiting := self._policy.waiting()) + len(job.images) > self._max_queue:
            raise _busy(f"{waiting} images wait: expected at most {self._max_queue}", self.work() / 2000)

    def _seconds_left(self, job: QueuedJob) -> float:
        """Seconds that a job takes at least, in full calls."""
        calls = max(image.calls_left for image in job.images)
        return calls * self._costs.call(job.group, self._costs.cap(job.group)) / 1000

    def _require_share(self, job: QueuedJob, now: float) -> None:
        """A client may have its share of `max_wait` waiting, beside a share for a newcomer."""
        self._seen = {client: seen for client, seen in self._seen.items() if now - seen[0] < self._max_wait}
        weights = sum(weight for _, weight in self._seen.values())
        waiting = (image for line in self._policy.lines.values() for image in line.waiting.get(job.client, ()))
        own: float = sum(image.job.cost + image.job.later for image in waiting) / 1000
        new = (job.cost + job.later) * len(job.images) / 1000
        excess = own + new - self._max_wait * job.weight / (weights + job.weight)
        if own and excess > 0:
            retry = retry_seconds(excess * weights / job.weight)
            text = f"the server is busy: {own:.1f} s of your work wait, which is your share"
            raise RefusedError("client_busy", text, retry)

    def _require_punctual(self, forecast: Forecast, now: float) -> None:
        """All jobs that have not started, and the new one, start in time."""
        late = forecast.start + SPARE_OF_PAUSE * forecast.pause - (1 - SPARE_FOR_NEW) * self._max_wait
        for job, start, pause in forecast.starts:
            latest = now + start + SPARE_OF_PAUSE * pause
            late = max(late, latest - (job.promised - SPARE * self._max_wait))
        if late > 0:
            raise _busy("too much work waits", late)

    def work(self) -> float:
        """See `Load.work`."""
        return sum(work_left(job) for job in self._policy.jobs.values())


def _busy(why: str, seconds: float) -> RefusedError:
    return RefusedError("busy", f"the server is busy: {why}", retry_seconds(seconds))
