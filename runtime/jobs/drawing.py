"""Draws one job on a pipeline and writes its files, or says why not."""

from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from latentrt.runtime.errors import BackendError, InputError, LatentRTError
from latentrt.runtime.image import require_png, text_of_png

from .job import Job, numbered, of_line
from .places import Place

if TYPE_CHECKING:
    from latentrt.runtime.pipeline import Pipeline


@dataclass(frozen=True, slots=True)
class Drawn:
    """A file that is there. `seconds`: what its call took; None where it was there before."""

    file: str
    seed: int
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a job.

    Attributes:
        why: it failed; some of its `files` may be written nevertheless.
        is_fault: nothing is known to be wrong with the job itself.
    """

    number: int
    files: tuple[Drawn, ...] = ()
    why: str | None = None
    is_fault: bool = False

    def lines(self) -> Iterator[str]:
        """What is told of each file."""
        for drawn in self.files:
            took = "finished before" if drawn.seconds is None else f"{drawn.seconds:.2f} s"
            yield f"{drawn.file} (line {self.number}, seed {drawn.seed}, {took})"


def draw_job(
    pipe: "Pipeline",
    job: Job,
    defaults: Mapping[str, Any],
    pattern: PurePath,
    place: Place,
    written: MutableMapping[str, int],
    *,
    resume: bool = False,
) -> Outcome:
    """Draw a job in a call of its own. Errors of any kind become the outcome's `why`.

    Args:
        defaults: options that the job may override.
        pattern: see `of_line`.
        written: key of each file of earlier jobs -> their lines; those of this job are added.
        resume: do not draw what is finished.
    """
    drawn: list[Drawn] = []
    try:
        options = job.options(defaults)
        require_png(_out(job, pattern, place))
        steps = pipe.stream(**options)  # validates the options, which are used below
        files = files_to_write(job, defaults, pattern, place, written)
        if resume and (found := finished_files(pipe, options, files, place)):
            written.update({place.key(file): job.number for file in files})
            return Outcome(job.number, tuple(found))
        *_, last = steps
        assert last.result is not None
        seconds = last.result.timings["total"] / 1000
        saved = save_images(last.result.images, last.result.seeds, files, seconds, place)
        for file, one in zip(files, saved, strict=True):
            drawn.append(one)
            written[place.key(file)] = job.number
    except Exception as error:  # of any kind: the remaining jobs must still run
        is_fault = not isinstance(error, LatentRTError) or isinstance(error, BackendError)
        return Outcome(job.number, tuple(drawn), reason_of(error), is_fault)
    return Outcome(job.number, tuple(drawn))


def files_to_write(
    job: Job, defaults: Mapping[str, Any], pattern: PurePath, place: Place, written: Mapping[str, int]
) -> list[Any]:
    """The files of a job whose options have been checked; raises `InputError` where one cannot be written."""
    files = names_of(job, defaults, pattern, place)
    for file in files:
        if other := written.get(place.key(file)):
            raise InputError(
                f'{place.shown(file)} was already written by line {other}: set another file name with "out"'
            )
        place.require(file)
    return files


def names_of(job: Job, defaults: Mapping[str, Any], pattern: PurePath, place: Place) -> list[Any]:
    """The paths of a job's files."""
    return numbered(_out(job, pattern, place), job.images(defaults))


def save_images(
    images: Iterable[Any], seeds: Sequence[int], files: Sequence[Any], seconds: float, place: Place
) -> Iterator[Drawn]:
    """Write finished pictures (PIL), one by one."""
    for file, image, seed in zip(files, images, seeds, strict=True):
        place.save(image, file)
        yield Drawn(place.shown(file), seed, seconds)


def finished_files(pipe: "Pipeline", options: Mapping[str, Any], files: Sequence[Any], place: Place) -> list[Drawn]:
    """The files of a job, if each is there and its text is that of the job's picture; else nothing.

    A job without a seed may have drawn with any.
    """
    import json  # imported here because only jobs that are resumed need it

    found: list[dict[str, str]] = []
    try:
        for file in files:
            with place.open(file) as opened:
                found.append(text_of_png(opened))
        seeds = [int(json.loads(text["latentrt"])["seed"]) for text in found]
    except (OSError, KeyError, TypeError, ValueError):  # not there, not whole, or of others
        return []
    seeded = options if options.get("seed") is not None else {**options, "seed": seeds}
    if found != pipe.png_texts(**seeded):
        return []
    return [Drawn(place.shown(file), seed, None) for file, seed in zip(files, seeds, strict=True)]


def reason_of(error: Exception) -> str:
    """Why a job has failed, in a line."""
    return str(error) if isinstance(error, LatentRTError) else f"{type(error).__name__}: {error}"


def _out(job: Job, pattern: PurePath, place: Place) -> PurePath:
    given = job.keys.get("out")
    return of_line(pattern, job.number) if given is None else place.path(given)
