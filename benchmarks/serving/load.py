"""A server under open load: requests arrive at their times, whatever has become of those before them.

    python -m benchmarks.serving.load --url http://127.0.0.1:8000 --rate 5 --seconds 60 [--steps 20] [--leave 0.3]

Arrivals are a seeded Poisson process. Some clients may leave mid-way. Goodput counts pictures that arrived in the time
of the load, without what arrived while the last ones were awaited. The last line is JSON.
"""

import argparse
import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

from benchmarks.common.harness import Measurement, finish, show_environment, show_table

PROMPT = "a large red star on a blue background, number"
GONE = 0  # the status of requests whose clients have left
BROKEN = -1  # and of those whose connections broke


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of a server.

    Attributes:
        rate: requests a second.
        steps: of each picture.
        prompts: different ones, in turn.
        leave: share of the clients that leave, after up to `patience` seconds.
        keys: API keys, in turn; () is without.
    """

    url: str
    rate: float
    seconds: float
    steps: int = 20
    model: str | None = None
    size: str | None = None
    prompts: int = 64
    leave: float = 0.0
    patience: float = 10.0
    keys: Sequence[str] = ()
    seed: int = 1


@dataclass(slots=True)
class Sent:
    """One request. Times are seconds from the start of the load; `queue`: as the server tells it, in milliseconds."""

    due: float
    end: float = 0.0
    status: int = BROKEN
    retry_after: str | None = None
    queue: float | None = None
    error: str | None = None

    @property
    def seconds(self) -> float:
        """From when it was due to its answer."""
        return self.end - self.due


@dataclass(slots=True)
class Result:
    """All requests of a load, and how late the client itself was."""

    load: Load
    sent: list[Sent] = field(default_factory=list)
    late: float = 0.0

    def of(self, status: int) -> list[Sent]:
        """Requests with this status."""
        return [sent for sent in self.sent if sent.status == status]

    @property
    def goodput(self) -> float:
        """Pictures a second that arrived while the load lasted."""
        return sum(sent.end <= self.load.seconds for sent in self.of(200)) / self.load.seconds

    def percentile(self, q: float) -> float:
        """Seconds to a picture."""
        return float(np.percentile([sent.seconds for sent in self.of(200)] or [float("nan")], q))

    def figures(self) -> dict[str, Any]:
        """For the table and the JSON line."""
        refused = self.of(429)
        waits = [int(sent.retry_after) for sent in refused if (sent.retry_after or "").isdigit()]
        queues = [sent.queue / 1000 for sent in self.of(200) if sent.queue is not None]
        return {
            "requests": len(self.sent),
            "statuses": {str(status): count for status, count in sorted(Counter(s.status for s in self.sent).items())},
            "goodput": self.goodput,
            "p50_s": self.percentile(50),
            "p99_s": self.percentile(99),
            "queue_max_s": max(queues, default=0.0),
            "retry_after_integers": len(waits),
            "retry_after_max_s": max(waits, default=0),
            "client_late_max_s": self.late,
            "errors": Counter(sent.error for sent in self.sent if sent.error).most_common(5),
        }


async def played(load: Load) -> Result:
    """Send all requests at their times, and wait for all answers."""
    rng = random.Random(load.seed)
    result, tasks = Result(load), []
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=100, keepalive_expiry=5)
    async with httpx.AsyncClient(base_url=load.url, timeout=300, limits=limits) as client:
        start, due = time.monotonic(), rng.expovariate(load.rate)
        while due < load.seconds:
            await asyncio.sleep(max(0.0, start + due - time.monotonic()))
            result.late = max(result.late, time.monotonic() - start - due)
            result.sent.append(Sent(due))
            patience = rng.uniform(0, load.patience) if rng.random() < load.leave else None
            tasks.append(asyncio.create_task(_send(client, load, len(result.sent), result.sent[-1], start, patience)))
            due += rng.expovariate(load.rate)
        await asyncio.gather(*tasks)
    return result


async def _send(
    client: httpx.AsyncClient, load: Load, number: int, sent: Sent, start: float, patience: float | None
) -> None:
    body: dict[str, Any] = {"prompt": f"{PROMPT} {number % load.prompts}", "seed": number}
    body |= {"num_inference_steps": load.steps, "scheduler": "euler"}
    body |= {name: value for name, value in (("model", load.model), ("size", load.size)) if value}
    headers = {"Authorization": f"Bearer {load.keys[number % len(load.keys)]}"} if load.keys else {}
    try:
        async with asyncio.timeout(patience):
            answer = await client.post("/v1/images/generations", json=body, headers=headers)
    except TimeoutError:
        sent.status = GONE
    except httpx.HTTPError as error:
        sent.error = f"{type(error).__name__}: {error}"
    else:
        _read(answer, sent)
    sent.end = time.monotonic() - start


def _read(answer: httpx.Response, sent: Sent) -> None:
    sent.status, sent.retry_after = answer.status_code, answer.headers.get("retry-after")
    if answer.status_code != 200:
        sent.error = f"{answer.status_code} {answer.json()['error']['code']}" if answer.status_code >= 500 else None
    for part in answer.headers.get("server-timing", "").split(","):
        name, _, value = part.strip().partition(";dur=")
        if name == "queue":
            sent.queue = float(value)


def parsed() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description="A server under open load.")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="default: http://127.0.0.1:8000")
    parser.add_argument("--rate", type=float, required=True, help="requests a second")
    parser.add_argument("--seconds", type=float, default=60, help="default: 60")
    parser.add_argument("--steps", type=int, default=20, help="default: 20")
    parser.add_argument("--model", help="default: the server's first")
    parser.add_argument("--size", metavar="WxH", help="default: the model's")
    parser.add_argument("--prompts", type=int, default=64, help="different ones; default: 64")
    parser.add_argument("--leave", type=float, default=0.0, help="share of clients that leave; default: 0")
    parser.add_argument("--patience", type=float, default=10.0, help="seconds until they leave, at most; default: 10")
    parser.add_argument("--keys", nargs="+", default=[], help="API keys, used in turn")
    parser.add_argument("--seed", type=int, default=1, help="of the arrivals; default: 1")
    return parser.parse_args()


def main() -> None:
    """The command."""
    load = Load(**vars(parsed()))
    card = show_environment()
    result = asyncio.run(played(load))
    figures = result.figures()
    show_table(("", ""), [[name, json.dumps(value)] for name, value in figures.items()])
    latency = Measurement(f"load {load.rate:g}/s: latency", "s", [sent.seconds for sent in result.of(200)] or [0.0])
    finish("serving load", card, figures, measurements=[latency])


if __name__ == "__main__":
    main()
