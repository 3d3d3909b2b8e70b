"""The dispatcher of one device: takes jobs from any thread, runs them on its own, tells what happens to them.

Knows threads and clocks; what comes next is the policy's decision, how it is done the executor's.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

from latentrt.runtime.errors import BackendError, InputError, LatentRTError, NonFiniteError, OutOfMemoryError
from latentrt.serve.messages import (
    Admitted,
    Called,
    DispatcherOptions,
    Event,
    Failed,
    FailedKind,
    Job,
    ModelSpec,
    RefusedError,
)
from latentrt.serve.places import function_named
from latentrt.serve.service import Load

from .admission import Admission
from .costs import MeasuredCosts
from .executor import Executor
from .models import LoadedModel, load_model, owner_of, refiner_name
from .pictures import PictureSender
from .policy import Action, Call, CloseSlots, Decode, Encode, Idle, Policy, Swap
from .queue import Client, Group, QueuedJob, State
from .shelf import Shelf
from .switch import ModelSwitch
from .warm_up import warm_up

logger = logging.getLogger(__name__)
BATCH_SHARE = 0.1  # of a client's weight, for its work of priority "batch"
LIMIT = 20.0  # times its expected time that an action may take, and at least `call_limit` seconds
FIRST_LIMIT = 900.0  # seconds, for what may compile an engine


class Dispatcher:
    """One device and its models. Thread-safe."""

    def __init__(
        self,
        models: Sequence[ModelSpec],
        options: DispatcherOptions,
        listen: Callable[[Event | Called], None],
        *,
        policy: type[Policy] = Policy,
    ) -> None:
        """`listen` is called by the dispatcher's threads, and must return at once; `policy` is for comparisons."""
        self._options, self._listen = options, listen
        self._costs = MeasuredCosts(
            max_batch=options.max_batch, batch=options.batch, deterministic=options.deterministic
        )
        names = [spec.name for spec in models]
        names += [refiner_name(spec.name) for spec in models if spec.refiner is not None]
        self._policy = policy(names, self._costs)
        self._admission = Admission(
            self._policy, max_wait=options.max_wait, max_queue=options.max_queue, client_jobs=options.client_jobs
        )
        picture_filter = function_named(options.filter) if options.filter else None
        self._sender = PictureSender(listen, self._not_sent, picture_filter)
        self._executor: Executor | None = None
        self._changed = threading.Condition()
        self._shelf = Shelf(models, options, self._changed)
        self._cancelled: dict[str, FailedKind] = {}
        self._acting_until = float("inf")
        self._stopping = False
        self._loaded = threading.Event()
        self._failure: BaseException | None = None
        self._switch = ModelSwitch(self._shelf, self._changed, require=self._model, ended=self._has_ended)
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)

    # --- from any thread ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Load the models and time them; returns when the device takes work. Raises `LatentRTError`."""
        self._thread.start()
        self._loaded.wait()
        if isinstance(self._failure, LatentRTError):
            raise self._failure
        if self._failure is not None:
            raise BackendError(f"the device cannot start: {self._failure}") from self._failure

    def submit(self, job: Job) -> Admitted:
        """Accept a job, or raise `RefusedError`. Its events may begin before this returns."""
        executor = self._executor
        if executor is None or self._failure is not None:
            raise RefusedError("starting", "the device is starting: try again", 5)
        with self._changed:
            model = self._model(job.model)
        queued = self._queued(job, model)  # tokenizes, which must not hold up the device
        with self._changed:
            self._model(job.model)  # it may have been closed meanwhile
            executor.add(job)
            try:
                admitted = self._admission.admit(queued, time.monotonic())
            except RefusedError:
                executor.forget(job.id)
                raise
            self._changed.notify()
        return admitted

    def cancel(self, job: str, kind: FailedKind = "cancelled") -> None:
        """Stop a job before the next UNet call. Does nothing for jobs that are over."""
        with self._changed:
            if job in self._policy.jobs:
                self._cancelled.setdefault(job, kind)
                self._changed.notify()

    def set_loaded(self, model: str, loaded: bool) -> Callable[[], None]:
        """See `ModelSwitch`."""
        return self._switch.set_loaded(model, loaded)

    def load(self) -> Load:
        """What the device does now."""
        with self._changed:
            ready = self._executor is not None and self._failure is None and not self._stopping
            waiting, running, work = self._policy.waiting(), self._policy.running(), self._admission.work()
        return Load(self._options.shown_name, ready, waiting, running, work, _resident_bytes())

    def overdue(self) -> float:
        """Seconds by which the present action exceeds its limit; at most 0 while all is well."""
        return time.monotonic() - self._acting_until

    def costs(self) -> MeasuredCosts:
        """What work costs here."""
        return self._costs

    def broken(self) -> str | None:
        """Why the process cannot go on; None while all is well."""
        return None if self._failure is None else f"{type(self._failure).__name__}: {self._failure}"

    def close(self) -> None:
        """Cancel what is left, and free the device."""
        with self._changed:
            self._stopping = True
            for job in self._policy.jobs:
                self._cancelled.setdefault(job, "stopped")
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()
        self._sender.close()

    def _model(self, name: str) -> LoadedModel:
        """A loaded model; raises `RefusedError`."""
        if self._stopping:
            raise RefusedError("stopping", "the server is stopping", 10)
        return self._shelf.require(name, self._busy)

    def _has_ended(self) -> bool:
        return self._stopping or self._failure is not None

    def _busy(self) -> Collection[str]:
        """Models with accepted work."""
        return {owner_of(job.group.weights.model) for job in self._policy.jobs.values()}

    def _queued(self, job: Job, model: LoadedModel) -> QueuedJob:
        weight = job.weight * (BATCH_SHARE if job.priority == "batch" else 1.0)
        calls, group = len(job.request.plan), model.group(job)
        queued = QueuedJob(
            job.id,
            group,
            Client(job.client, job.priority),
            weight,
            calls,
            self._costs.image(group, calls),
            expires=None if job.deadline is None else time.monotonic() + job.deadline,
            client_jobs=job.client_jobs,
            alone=job.alone,
            has_pictures=job.request.image is not None,
        )
        queued.cost += self._costs.encode(queued) / job.images
        if job.second is not None and (group_after := model.second_group(job)) is not None:
            queued.cost -= self._costs.decode(group, 1)
            queued.second = self._second(queued, group_after, len(job.second.plan), job.images)
        return queued.with_images(job.images)

    def _second(self, first: QueuedJob, group: Group, calls: int, images: int) -> QueuedJob:
        """The pass after the first one, which begins from its latents."""
        cost = self._costs.image(group, calls)
        second = replace(first, group=group, calls=calls, cost=cost, images=[], has_pictures=False)
        second.cost += self._costs.encode(second) / images
        return second.with_images(images)

    # --- the device's thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        """Everything that the device does, as captured graphs belong to the thread that captured them."""
        executor = None
        try:
            executor = self._load()
            self._executor = executor
            self._loaded.set()
            while (action := self._next()) is not None:
                self._act(executor, action)
            executor.close()
        except BaseException as error:
            if executor is not None or not isinstance(error, LatentRTError):  # `start` says the others in one line
                logger.critical("the device cannot go on", exc_info=error)
            self._failure = error
            self._loaded.set()
            for drawing in list(executor.drawings.values()) if executor is not None else ():
                self._sender.fail(drawing, Failed(drawing.job.id, "crashed", "the device stopped working"))

    def _load(self) -> Executor:
        for spec in self._shelf.first():
            self._shelf.loaded(load_model(spec, self._options))
        models = self._shelf.models
        warm_up(models, self._costs, self._options)
        deterministic = self._options.deterministic
        return Executor(models, self._costs, self._sender, self._listen, deterministic=deterministic)

    def _close_models(self) -> None:
        """Close the models that have to make room, and those that the operator does not want."""
        assert self._executor is not None
        self._shelf.take_out_unwanted(self._busy)
        for model in self._shelf.closing:
            groups = [group for one in model.passes() for group in self._policy.close_model(one.name)]
            self._executor.close_model(model, groups)
        self._shelf.were_closed()

    def _next(self) -> Action | None:
        """The next action; waits for one. None at the end."""
        with self._changed:
            while True:
                self._drop()
                self._close_models()
                if self._stopping and not self._policy.jobs:
                    return None
                action = self._policy.next(time.monotonic())
                if not isinstance(action, Idle):
                    return action
                self._changed.wait(timeout=1.0)  # deadlines pass, and turns of LoRA sets end

    def _drop(self) -> None:
        """Take out what was cancelled, and what cannot meet its deadline any more."""
        for identity, kind in self._cancelled.items():
            if (job := self._policy.jobs.get(identity)) is not None:
                self._fail(job, kind, "the server stopped" if kind == "stopped" else "cancelled by the client")
        self._cancelled.clear()
        for job in self._policy.expired(time.monotonic()):
            self._fail(job, "deadline", "the deadline cannot be met any more")

    def _act(self, executor: Executor, action: Action) -> None:
        self._acting_until = time.monotonic() + self._limit(action)
        start = time.perf_counter()
        try:
            failures = executor.run(action)
        except Exception as error:
            self._acting_until = float("inf")
            self._recover(executor, action, error)
            return
        self._acting_until = float("inf")
        took = 1000 * (time.perf_counter() - start)
        with self._changed:
            self._policy.done(action, time.monotonic(), took)
            for job, failure in failures.items():
                self._fail(job, kind_of(failure), str(failure))
            if isinstance(action, Decode):
                for job in {image.job for image in action.images if image.job.id not in self._policy.jobs}:
                    if job.second is not None and job.id in executor.drawings:
                        executor.drawings[job.id].go_on()
                        self._policy.go_on(job.second)
                    else:
                        executor.forget(job.id)
        if any(kind_of(failure) == "internal" for failure in failures.values()):
            executor.probe()

    def _limit(self, action: Action) -> float:
        expected: float | None = None
        match action:
            case Call(group, _, images) if self._costs.measured(group, len(images)):
                expected = self._costs.call(group, len(images))
            case Decode(group, images) if self._costs.knows_decode(group):
                expected = self._costs.decode(group, len(images))
            case Encode(_, jobs) if all(map(self._costs.knows_encode, jobs)):
                expected = sum(map(self._costs.encode, jobs))
        return FIRST_LIMIT if expected is None else max(self._options.call_limit, LIMIT * expected / 1000)

    # --- what goes wrong ----------------------------------------------------------------------------------------------

    def _recover(self, executor: Executor, action: Action, error: Exception) -> None:
        """An action failed for all of its images. A UNet call is made again once, smaller if memory ran out."""
        shown = error if kind_of(error) == "internal" else None
        logger.warning("%s failed: %s", type(action).__name__, error, exc_info=shown)
        with self._changed:
            match action:
                case Call(group, _, images):
                    executor.close_slots(group)
                    if isinstance(error, OutOfMemoryError):
                        self._costs.limit(group, len(images) // 2)
                    for job in {image.job for image in images if image.job.restarted}:
                        self._fail(job, kind_of(error), str(error))
                    again = [image for image in images if image.state is not State.GONE]
                    executor.begin_again(again)
                    self._policy.restart(again)
                case CloseSlots():
                    self._policy.done(action, time.monotonic(), 0.0)
                case _:
                    for job in self._jobs_of(action):
                        self._fail(job, kind_of(error), str(error))
        if kind_of(error) == "internal":
            executor.probe()  # raises where the device does not work any more

    def _jobs_of(self, action: Action) -> list[QueuedJob]:
        """The jobs that an action is for."""
        match action:
            case Swap(weights):
                return [job for job in self._policy.jobs.values() if job.group.weights == weights]
            case Encode(_, jobs):
                return list(jobs)
            case Decode(_, images):
                return list(dict.fromkeys(image.job for image in images))
        return []

    def _fail(self, job: QueuedJob, kind: FailedKind, message: str) -> None:
        assert self._executor is not None
        self._executor.leave(self._policy.remove(job))
        if (drawing := self._executor.drawings.get(job.id)) is not None:
            self._executor.forget(job.id)
            self._sender.fail(drawing, Failed(job.id, kind, message))

    def _not_sent(self, job: str) -> None:
        """A picture could not be sent, and its job has failed: what is left of it need not be drawn."""
        self.cancel(job)


def _resident_bytes() -> int | None:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not Linux
        return None


def kind_of(error: Exception) -> FailedKind:
    """The kind of a failure."""
    if isinstance(error, OutOfMemoryError | MemoryError):
        return "out_of_memory"
    if isinstance(error, NonFiniteError):
        return "non_finite"
    return "input" if isinstance(error, InputError) else "internal"
