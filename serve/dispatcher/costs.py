"""What work costs on a device: measured as it is done, kept for the next start, scaled from other sizes until then.

Milliseconds unless a name says otherwise. Knows no library.
"""

import json
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentrt.runtime.files import read_json, written_whole
from latentrt.runtime.protocols import Bucket

from .queue import Group, QueuedJob

FORMAT = "latentrt.costs/1"
WORTH = 0.05  # a larger batch is worth it if an image then takes this much less
NEW = 0.2  # weight of a new measurement
_GUESS = 100.0  # of a call for 64x64 latents, before anything is measured


@dataclass(slots=True)
class _Mean:
    """A moving average. The first value is replaced by the second, as it may hold a compilation."""

    value: float
    count: int = 1

    def add(self, value: float) -> None:
        self.value = value if self.count == 1 else self.value + NEW * (value - self.value)
        self.count += 1


class MeasuredCosts:
    """See `protocols.Costs`. Thread-safe."""

    def __init__(self, *, max_batch: int, batch: int | None = None, deterministic: bool = False) -> None:
        """`batch`: the cap of every size; `deterministic`: calls run at the cap, whatever there is to do."""
        self._max_batch, self._batch, self._deterministic = max_batch, batch, deterministic
        self._calls: dict[tuple[str, Bucket], dict[int, _Mean]] = {}
        self._caps: dict[tuple[str, Bucket], int] = {}
        self._others: dict[tuple[str, str, int], _Mean] = {}  # stage, model, latent pixels
        self._lock = threading.RLock()

    # --- what is asked ------------------------------------------------------------------------------------------------

    def cap(self, group: Group) -> int:
        """See `Costs.cap`; until it is measured 1 for large pictures, 4 for small ones."""
        with self._lock:
            model, bucket = _key(group)
            known = self._caps.get((model, bucket), self._batch)
            if known is None:
                known = next((cap for (m, b), cap in self._caps.items() if m == model and _same_size(b, bucket)), None)
            if known is None:
                pixels = bucket.height * bucket.width
                known = 1 if pixels >= 128 * 128 else 4 if pixels <= 64 * 64 else 2
            return known if self._batch is not None else min(known, self._max_batch)

    def call(self, group: Group, count: int) -> float:
        """See `Costs.call`."""
        count = self.cap(group) if self._deterministic else max(count, 1)
        with self._lock:
            model, bucket = _key(group)
            if measured := self._calls.get((model, bucket)):
                return _at(measured, count)
            others = [(b, means) for (m, b), means in self._calls.items() if m == model]
            if not others:
                return _GUESS * bucket.height * bucket.width / 4096 * bucket.groups / 2 * count
            nearest, means = min(others, key=lambda entry: abs(_work(entry[0]) - _work(bucket)))
            return _at(means, count) * _work(bucket) / _work(nearest)

    def encode(self, job: QueuedJob) -> float:
        """See `Costs.encode`."""
        return self._other(_encode_stage(job), job.group, 0.1 * self.call(job.group, 1))

    def decode(self, group: Group, count: int) -> float:
        """See `Costs.decode`."""
        return count * self._other("decode", group, self.call(group, 1))

    def swap_seconds(self, model: str) -> float:
        """See `Costs.swap_seconds`."""
        with self._lock:
            known = self._others.get(("swap", model, 0))
            return 0.5 if known is None else known.value / 1000

    def image(self, group: Group, calls: int) -> float:
        """An image from noise to picture, in full batches."""
        cap = self.cap(group)
        return calls * self.call(group, cap) / cap + self.decode(group, 1)

    def measured(self, group: Group, count: int) -> bool:
        """Whether a call of this many images has been timed."""
        return count in self._calls.get(_key(group), {})

    def knows_decode(self, group: Group) -> bool:
        """Whether pictures of this size have been decoded."""
        return _stage_key("decode", group) in self._others

    def knows_encode(self, job: QueuedJob) -> bool:
        """Whether a job like this has been encoded."""
        return _stage_key(_encode_stage(job), job.group) in self._others

    # --- what is told -------------------------------------------------------------------------------------------------

    def observe_call(self, group: Group, count: int, took: float) -> None:
        """A UNet call took so long."""
        self._observe(self._calls.setdefault(_key(group), {}), count, took)

    def observe_encode(self, job: QueuedJob, took: float) -> None:
        """Encoding a job took so long."""
        self._observe_other(_encode_stage(job), job.group, took)

    def observe_decode(self, group: Group, count: int, took: float) -> None:
        """Decoding this many pictures took so long."""
        self._observe_other("decode", group, took / count)

    def observe_swap(self, model: str, took: float) -> None:
        """Changing a model's weights took so long."""
        self._observe(self._others, ("swap", model, 0), took)

    def limit(self, group: Group, count: int) -> None:
        """At most this many images share a call."""
        with self._lock:
            self._caps[_key(group)] = max(1, count)

    def settle_cap(self, group: Group) -> int:
        """The cap from the calls that were measured: the largest count that makes an image 5 % cheaper than before."""
        if self._batch is not None:
            return self._batch
        with self._lock:
            measured = self._calls[_key(group)]
            cap = 1
            for count in sorted(measured):
                if measured[count].value / count <= (1 - WORTH) * measured[cap].value / cap:
                    cap = count
            self._caps[_key(group)] = cap
            return cap

    def _observe_other(self, stage: str, group: Group, took: float) -> None:
        self._observe(self._others, _stage_key(stage, group), took)

    def _observe(self, means: dict[Any, _Mean], key: Any, took: float) -> None:
        with self._lock:
            if key in means:
                means[key].add(took)
            else:
                means[key] = _Mean(took)

    def _other(self, stage: str, group: Group, otherwise: float) -> float:
        *of_model, pixels = _stage_key(stage, group)
        with self._lock:
            own = {p: mean for (*key, p), mean in self._others.items() if key == of_model}
            if not own:
                return otherwise
            nearest = min(own, key=lambda known: abs(known - pixels))
            scale = 1.0 if stage == "encode" else pixels / nearest
            return own[nearest].value * scale

    # --- the file -----------------------------------------------------------------------------------------------------

    def save(self, file: Path, identity: str) -> None:
        """Keep what was measured. `identity`: of the machine, the libraries and the bundles that it holds for."""
        with self._lock:
            calls = [
                [m, _numbers(b), n, mean.value] for (m, b), means in self._calls.items() for n, mean in means.items()
            ]
            document = {
                "format": FORMAT,
                "identity": identity,
                "calls": calls,
                "caps": [[model, _numbers(bucket), cap] for (model, bucket), cap in self._caps.items()],
                "others": [[*key, mean.value] for key, mean in self._others.items()],
            }
        with written_whole(file) as temporary:
            temporary.write_text(json.dumps(document))

    def load(self, file: Path, identity: str) -> bool:
        """Read what was kept; returns whether there was something for this identity."""
        try:
            document = read_json(file)
            if document["format"] != FORMAT or document["identity"] != identity:
                return False
            calls = [(str(m), Bucket(*map(int, b)), int(n), float(took)) for m, b, n, took in document["calls"]]
            caps = {(str(m), Bucket(*map(int, b))): int(cap) for m, b, cap in document["caps"]}
            others = {(str(s), str(m), int(p)): _Mean(float(took), 2) for s, m, p, took in document["others"]}
        except (OSError, ValueError, KeyError, TypeError):  # it can be measured again
            return False
        with self._lock:
            self._caps = {} if self._batch is not None else caps  # kept ones would be stronger than what is asked for
            self._others = others
            for model, bucket, count, took in calls:
                self._calls.setdefault((model, bucket), {})[count] = _Mean(took, 2)
        return True


def _encode_stage(job: QueuedJob) -> str:
    return "encode pictures" if job.has_pictures else "encode"


def _stage_key(stage: str, group: Group) -> tuple[str, str, int]:
    return stage, group.weights.model, group.bucket.height * group.bucket.width


def _key(group: Group) -> tuple[str, Bucket]:
    return group.weights.model, group.bucket


def _same_size(a: Bucket, b: Bucket) -> bool:
    return (a.height, a.width) == (b.height, b.width)


def _work(bucket: Bucket) -> int:
    """In proportion to the FLOPs of convolutions, which are most of a UNet."""
    return bucket.height * bucket.width * bucket.groups


def _at(means: dict[int, _Mean], count: int) -> float:
    """The time for a count, from the nearest one that was measured."""
    nearest = min(means, key=lambda known: (abs(known - count), known))
    return means[nearest].value * max(1.0, count / nearest)


def _numbers(bucket: Bucket) -> Iterable[int]:
    return [bucket.groups, bucket.height, bucket.width, bucket.tokens]
