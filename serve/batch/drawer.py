"""A worker: a pipeline that draws units. Runs in a process of its own, which Ray makes again when it dies."""

import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, NoReturn

from latentrt.runtime.errors import BackendError, InputError, LatentRTError
from latentrt.runtime.jobs import Drawn, Job, Outcome, Place, draw_job, files_to_write, finished_files, save_images
from latentrt.serve.places import named

from .ledger import ATTEMPTS, Ledger
from .model import Model
from .store import place_of
from .units import Unit, together

if TYPE_CHECKING:
    from latentrt.runtime.pipeline import Pipeline

CANNOT_GO_ON = 70  # exit status, as of the workers of `latentrt serve`
DIED = "its worker died {} times while it drew this job: it was killed, ran out of memory or crashed"
DIED_LOADING = "a worker died {} times while it loaded the model: it was killed, ran out of memory or crashed"


@dataclass(frozen=True, slots=True)
class Work:
    """What is the same for all units.

    Attributes:
        folder: of the driver, from which paths are relative.
        out: pattern of the files, as it was given.
        defaults: options that jobs may override.
        proof: a file that the driver has put where the pictures go; None for stores.
    """

    model: Model
    folder: str
    out: str
    defaults: Mapping[str, Any]
    proof: Path | None = None


class Drawer:
    """Draws units. A worker that cannot load says so when it is asked to draw: one that raises would be made again."""

    def __init__(self, work: Work, ledger: Ledger, worker: str) -> None:
        """`worker`: its name in the ledger, the same after a restart."""
        self._work, self._ledger, self._broken = work, ledger, ""
        if ledger.begin(worker) > ATTEMPTS:
            self._broken = DIED_LOADING.format(ATTEMPTS)
            return
        try:
            self._place, self._pattern = place_of(work.out)
            _require_shared(work.proof)
            with suppress(OSError):  # only relative paths need it
                os.chdir(work.folder)
            self._pipe: Pipeline = named(work.model.loader)(work.model)
        except LatentRTError as error:
            self._broken = f"{error} (on {socket.gethostname()})"
        ledger.end([worker])

    def draw(self, text: str) -> str:
        """Draw a unit, given as JSON; returns what became of it, for `outcomes_of_json`."""
        if self._broken:
            return json.dumps(self._broken)
        outcomes = []
        for outcome in self._outcomes(Unit.from_json(text)):
            outcomes.append(outcome)
            if outcome.is_fault:
                self._require_health()
            self._ledger.end([_key(outcome.number)])
        return json_of_outcomes(outcomes)

    def _outcomes(self, unit: Unit) -> Iterator[Outcome]:
        written: dict[str, int] = {}
        defaults, pattern, place = self._work.defaults, self._pattern, self._place
        jobs: Sequence[Job] = unit.jobs
        if unit.together and self._ledger.begin_first([_key(job.number) for job in jobs]):
            done = draw_together(self._pipe, jobs, defaults, pattern, place)
            yield from done
            left = {job.number for job in jobs} - {outcome.number for outcome in done}
            jobs = [job for job in jobs if job.number in left]
            self._ledger.end([_key(job.number) for job in jobs])
        for job in jobs:
            if self._ledger.begin(_key(job.number)) > ATTEMPTS:
                yield Outcome(job.number, why=DIED.format(ATTEMPTS))
            else:
                yield draw_job(self._pipe, job, defaults, pattern, place, written, resume=True)

    def _require_health(self) -> None:
        """End the process where the pipeline draws nothing any more, as after a fault of the GPU: the next one will."""
        try:
            self._pipe.warm_up()
        except Exception:  # of any kind
            _exit()


def draw_together(
    pipe: "Pipeline", jobs: Sequence[Job], defaults: Mapping[str, Any], pattern: PurePath, place: Place
) -> list[Outcome]:
    """Draw jobs of one kind in one call. Those without an outcome have to be drawn alone, perhaps to tell an error."""
    finished: list[Outcome] = []
    files: list[Any] = []
    left: list[Job] = []
    try:
        for job in jobs:
            (file,) = files_to_write(job, defaults, pattern, place, {})
            if found := finished_files(pipe, job.options(defaults), [file], place):
                finished.append(Outcome(job.number, tuple(found)))
            else:
                files.append(file)
                left.append(job)
        if len(left) < 2:
            return finished
        result = pipe(**together(left, defaults))
    except Exception:  # of any kind: drawn alone, the job to blame will tell it
        return finished
    drawn: list[Outcome] = []
    seconds = result.timings["total"] / 1000
    for job, file, image, seed in zip(left, files, result.images, result.seeds, strict=True):
        try:
            saved = save_images([image], [seed], [file], seconds, place)
            drawn.append(Outcome(job.number, tuple(saved)))
        except InputError as error:
            drawn.append(Outcome(job.number, why=str(error)))
    return [*finished, *drawn]


def json_of_outcomes(outcomes: Sequence[Outcome]) -> str:
    """As they cross to the driver."""
    return json.dumps([[o.number, [[d.file, d.seed, d.seconds] for d in o.files], o.why, o.is_fault] for o in outcomes])


def outcomes_of_json(text: str) -> list[Outcome]:
    """The outcomes of a unit; raises `BackendError` where its worker could not load."""
    rows = json.loads(text)
    if isinstance(rows, str):
        raise BackendError(rows)
    return [Outcome(number, tuple(Drawn(*file) for file in files), *rest) for number, files, *rest in rows]


def _require_shared(proof: Path | None) -> None:
    """Pictures must not end up on the disks of workers."""
    if proof is not None and not proof.exists():
        raise InputError(
            f"the folder {proof.parent} is not the same here: share it between all machines, or draw to a URL"
        )


def _key(number: int) -> str:
    return f"line {number}"


def _exit() -> NoReturn:
    os._exit(CANNOT_GO_ON)
