"""How long a device takes: UNet calls by batch, encoding and decoding, measured or predicted."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.paths import RESULTS
from latentrt.runtime.errors import InputError
from latentrt.runtime.protocols import Bucket
from latentrt.serve.dispatcher.costs import FORMAT, MeasuredCosts
from latentrt.serve.dispatcher.queue import Client, Group, QueuedJob, Weights

GROUP = Group(Weights("m"), Bucket(2, 64, 64, 77))  # all jobs of a simulation have one size
MEASURED = RESULTS / "epyc-2-cores"
FLOORS = MEASURED / "stages-sd15.json"  # operations and bytes of the graphs, which no machine changes
# NVIDIA's data sheet of the L4: dense fp16 operations and bytes a second.
L4_RATE, L4_BANDWIDTH = 121e12, 300e9
L4_SHARE = 0.55  # of the rate that convolutions and attention are assumed to reach


@dataclass(frozen=True, slots=True)
class CallTimes:
    """One size of one model on one device. Milliseconds.

    Attributes:
        calls: a UNet call by the number of images in it.
        encode: the texts of a job.
        decode: latents to one picture.
        source: where the figures come from, and whether they were measured.
    """

    name: str
    calls: Mapping[int, float]
    encode: float
    decode: float
    source: str

    def measured(self, max_batch: int = 8) -> MeasuredCosts:
        """What a dispatcher knows that has timed all of it; between batches of the table, a straight line."""
        costs = MeasuredCosts(max_batch=max_batch)
        known = sorted(count for count in self.calls if count <= max_batch)
        for count in known:
            costs.observe_call(GROUP, count, self.calls[count])
        costs.settle_cap(GROUP)  # before the others are filled in: a server measures no more than these
        for count in range(1, costs.cap(GROUP) + 1):
            if count not in self.calls:
                costs.observe_call(GROUP, count, float(np.interp(count, known, [self.calls[n] for n in known])))
        costs.observe_decode(GROUP, 1, self.decode)
        costs.observe_encode(QueuedJob("", GROUP, Client(""), 1.0, 1, 0.0), self.encode)
        return costs

    def costs(self, max_batch: int = 8) -> "KnownCosts":
        """The same for simulations, which ask millions of times."""
        measured = self.measured(max_batch)
        counts = range(1, measured.cap(GROUP) + 1)
        return KnownCosts([measured.call(GROUP, count) for count in counts], self.encode, measured.decode(GROUP, 1))

    def image_seconds(self, calls: int, max_batch: int = 8) -> float:
        """Device time of an image of this many UNet calls in full batches."""
        return (self.costs(max_batch).image(GROUP, calls) + self.encode) / 1000


@dataclass(frozen=True, slots=True)
class KnownCosts:
    """See `dispatcher.protocols.Costs`: of one group, looked up. `calls[n - 1]` is a call of n images."""

    calls: Sequence[float]
    text: float
    picture: float

    def cap(self, _group: Group) -> int:
        """See `Costs`."""
        return len(self.calls)

    def call(self, _group: Group, count: int) -> float:
        """See `Costs`."""
        return self.calls[max(count, 1) - 1]

    def encode(self, _job: QueuedJob) -> float:
        """See `Costs`."""
        return self.text

    def decode(self, _group: Group, count: int) -> float:
        """See `Costs`."""
        return count * self.picture

    def swap_seconds(self, _model: str) -> float:
        """See `Costs`; there are no sets of LoRAs here."""
        return 0.0

    def image(self, group: Group, calls: int) -> float:
        """Milliseconds of an image from noise to picture, in full batches."""
        cap = self.cap(group)
        return calls * self.call(group, cap) / cap + self.picture


def measured_shapes() -> CallTimes:
    """The embedded model at 128x128 on two cores, from the committed runs of `speed.latency` and `speed.stages`."""
    latency = {m["name"]: m["p50"] for m in _read(MEASURED / "latency-shapes.json")["measurements"]}
    stages = _read(MEASURED / "stages-shapes.json")["results"]["milliseconds"]["onnxruntime-cpu"]
    encode = stages["tokenize"] + stages["text_encoder"] + stages["context"] + stages["time"]
    decode = stages["vae_decoder"]
    calls = {}
    for count in (1, 2, 4, 8):
        whole = 1000 * latency[f"shapes: onnxruntime-cpu: 128x128, batch {count}, 4 steps"]
        calls[count] = (whole - encode - count * decode) / 4
    return CallTimes("shapes", calls, encode, decode, "measured: shapes, 128x128, ONNX Runtime on two cores of an EPYC")


def predicted_sd15() -> CallTimes:
    """Stable Diffusion 1.5 at 512x512 in fp16 on an NVIDIA L4: a prediction, from operations and bytes.

    A call takes its operations at `L4_SHARE` of the rate, and reading its weights once.
    """
    floors = _read(FLOORS)["results"]["floors"]

    def milliseconds(graph: str, count: int = 1) -> float:
        operations = float(floors[graph]["gflop"]) * 1e9
        weights = float(floors[graph]["mb"]) * 1e6 / 2  # fp16 halves the bytes
        return 1000 * (count * operations / (L4_SHARE * L4_RATE) + weights / L4_BANDWIDTH)

    calls = {count: milliseconds("denoise", count) for count in (1, 2, 4, 8)}
    encode = sum(milliseconds(graph) for graph in ("text_encoder", "context", "time"))
    source = "predicted, not measured: Stable Diffusion 1.5, 512x512, fp16, NVIDIA L4"
    return CallTimes("sd15-l4", calls, encode, milliseconds("vae_decoder"), source)


BUILT_IN = {"shapes": measured_shapes, "sd15-l4": predicted_sd15}


def call_times(name: str) -> CallTimes:
    """A table that is built in, or a file: times that a server has kept, or {"calls": {"1": ms, …}, "encode": ms,
    "decode": ms}. Raises `InputError`."""
    if name in BUILT_IN:
        return BUILT_IN[name]()
    file = Path(name)
    expected = f"expected one of {', '.join(BUILT_IN)}, a server's costs-….json, or JSON with calls, encode and decode"
    try:
        document = _read(file)
        table = _kept(file, document) if document.get("format") == FORMAT else _given(file, document)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"--call-times {name}: {error!r}; {expected}") from error
    values = [*table.calls.values(), table.encode, table.decode]
    if not table.calls or min(table.calls) != 1 or not all(0 <= value < 1e9 for value in values):
        raise InputError(f"--call-times {name}: times of a call by batch, from 1 on, are needed; {expected}")
    return table


def _given(file: Path, document: Any) -> CallTimes:
    calls = {int(count): float(took) for count, took in document["calls"].items()}
    encode, decode = float(document["encode"]), float(document["decode"])
    return CallTimes(file.stem, calls, encode, decode, str(document.get("source", file.name)))


def _kept(file: Path, document: Any) -> CallTimes:
    """Of the first model and size that the server has timed."""
    model, bucket = document["calls"][0][:2]
    calls = {int(count): float(took) for m, b, count, took in document["calls"] if (m, b) == (model, bucket)}
    others = {stage: float(took) for stage, m, _, took in document["others"] if m == model}
    source = f"measured by a server: {file.name}"
    return CallTimes(str(model), calls, others.get("encode", 0.0), others["decode"], source)


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))
