"""The one file that knows Ray: a cluster to draw on, and units mapped over its workers by Ray Data."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from latentrt.runtime.errors import BackendError, InputError

from .drawer import Drawer, Work
from .ledger import Counts

# Units of one task of Ray Data: its overhead is small against a picture, but not for millions of tasks. They are drawn
# again together when their worker dies, but for those that are finished.
_MOST_OF_TASK = 32
_TASKS_OF_ACTOR = 64

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Actors:
    """How many workers, and what each of them reserves."""

    count: int
    cpus: float
    gpus: int


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """A connection to a cluster: that of this process, where it has one; else a new one, ended with the block.

    Args:
        address: of the cluster, as for `ray.init`. None is the one of RAY_ADDRESS, else one that runs on this machine,
            else one that is started here for the block.

    Raises: BackendError: Ray is not installed, or there is no cluster at the address.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise BackendError(f"drawing on Ray needs pip install 'latentrt[ray]': {error}") from error
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    _require_reachable(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # of a cluster that is started here
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # Ray's own warnings, between ours
    with _own_signals():
        try:
            ray.init(address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise BackendError(f"Ray cannot connect to {address or 'a cluster of its own'}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _require_reachable(address: str | None) -> None:
    """Raise `BackendError` where nothing listens at an address: Ray would try it for minutes."""
    if address in (None, "auto", "local"):
        return
    host, _, port = str(address).removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise BackendError(f"Ray's address {address!r}: expected host:port, ray://host:port, auto or local")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise BackendError(f"no Ray cluster at {address}: {error}. Start one with: ray start --head") from error


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray's handler of SIGTERM would end the process before the command cleans up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def actors_for(device: str | None, count: int | None, units: int) -> Actors:
    """One worker for each GPU, or for each machine where there are none or "cpu" is asked for; or `count` of them.

    Raises: InputError: the device is one of several GPUs, which Ray chooses; there are fewer GPUs than workers.
    """
    import ray

    if device not in (None, "cpu", "cuda"):
        raise InputError(f"device={device!r}: Ray chooses the GPU of each worker: expected cpu, cuda or nothing")
    if count is not None and count < 1:
        raise InputError(f"{count} workers: expected at least 1")
    total: Mapping[str, float] = ray.cluster_resources()
    gpus, cpus = int(total.get("GPU", 0)), total.get("CPU", 0.0)
    if device == "cuda" and not gpus:
        raise InputError("device='cuda': this Ray cluster has no GPU")
    on_gpus = gpus > 0 and device != "cpu"
    machines = sum(bool(node["Alive"] and node["Resources"].get("CPU")) for node in ray.nodes())
    return shares(min(count or (gpus if on_gpus else machines), units), cpus, gpus if on_gpus else 0)


def shares(count: int, cpus: float, gpus: int) -> Actors:
    """What each of `count` workers reserves of a cluster; on CPUs a fraction of one, so that any number fits."""
    if gpus and count > gpus:
        raise InputError(f"{count} workers: this Ray cluster has {gpus} GPUs, one for each worker")
    if cpus <= 0:
        raise InputError("this Ray cluster has no CPU left for workers: start a node with --num-cpus 1 or more")
    return Actors(count, min(1.0, max(0.001, int(1000 * cpus / count) / 1000)), 1 if gpus else 0)


def task_size(units: int, actors: int) -> int:
    """Units of one task."""
    return max(1, min(_MOST_OF_TASK, units // (_TASKS_OF_ACTOR * actors)))


class ClusterLedger:
    """A `Ledger` in an actor, for workers on all machines."""

    def __init__(self) -> None:
        """Start it."""
        import ray

        made = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Counts)
        self._actor: Any = made.remote()

    def begin(self, key: str) -> int:
        """See `Ledger`."""
        import ray

        return int(ray.get(self._actor.begin.remote(key)))

    def begin_first(self, keys: Sequence[str]) -> bool:
        """See `Ledger`."""
        import ray

        return bool(ray.get(self._actor.begin_first.remote(list(keys))))

    def end(self, keys: Sequence[str]) -> None:
        """See `Ledger`. Does not wait: calls of one worker arrive in their order."""
        self._actor.end.remote(list(keys))


class Worker:
    """What Ray Data makes in each actor, and calls for each task."""

    def __init__(self, work: Work, ledger: ClusterLedger) -> None:
        import ray

        self._drawer = Drawer(work, ledger, f"worker {ray.get_runtime_context().get_actor_id()}")

    def __call__(self, rows: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        """Units as JSON in, their outcomes as JSON out."""
        return {"outcomes": [self._drawer.draw(str(text)) for text in rows["unit"]]}


def mapped(units: Sequence[str], work: Work, actors: Actors) -> Iterator[str]:
    """The outcomes of units as they are drawn, in any order; both as JSON. Workers end with the iteration.

    A worker that dies is made again, and draws its units again.
    """
    import ray
    from ray.data import ActorPoolStrategy

    tasks = -(-len(units) // task_size(len(units), actors.count))
    rows = ray.data.from_items([{"unit": unit} for unit in units], override_num_blocks=tasks)
    drawn = rows.map_batches(
        Worker,
        batch_size=None,
        compute=ActorPoolStrategy(size=actors.count),
        fn_constructor_args=(work, ClusterLedger()),
        num_cpus=actors.cpus,
        num_gpus=actors.gpus,
    )
    drawn.context.enable_progress_bars = False
    drawn.context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        for row in drawn.iter_rows():
            yield str(row["outcomes"])
    except ray.exceptions.RayError as error:
        raise BackendError(f"the Ray cluster failed: {' '.join(str(error).split())[:500]}") from error
