"""Draws jobs on a Ray cluster: lines to units, units to workers, outcomes as they come."""

import tempfile
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from latentrt.runtime.bundle import Bundle
from latentrt.runtime.errors import InputError
from latentrt.runtime.image import require_place, require_png
from latentrt.runtime.jobs import NO_JOBS, Job, Outcome, jobs_of_lines, lines_of_mappings, lines_of_source
from latentrt.runtime.pipeline import embedded_bundle

from .cluster import actors_for, connected, mapped
from .drawer import Work, outcomes_of_json
from .model import Model
from .store import place_of
from .units import units_of


@dataclass(frozen=True, slots=True)
class Report:
    """What became of all jobs.

    Attributes:
        jobs: how many there were.
        files: that are there now, by line; of jobs that were finished before, too.
        failures: why jobs have failed, by line.
    """

    jobs: int
    files: Mapping[int, tuple[str, ...]]
    failures: Mapping[int, str]


def draw(
    jobs: str | Path | Iterable[Mapping[str, Any]],
    bundle: Path | str | None = None,
    out: str | Path = "out.png",
    *,
    model: Model | None = None,
    defaults: Mapping[str, Any] | None = None,
    address: str | None = None,
    actors: int | None = None,
    batch: int = 1,
) -> Report:
    """Draw jobs on a Ray cluster, but for those that are finished: whose files are there, with the text of their job.

    The files are those of `latentrt generate --jobs`, to the bit with `batch` 1, whatever the number of workers.

    Args:
        jobs: a JSONL or Parquet file by path or URL, or the jobs themselves: a prompt, options, "out".
        bundle: as for `Pipeline.load`; `model` says more instead.
        out: pattern for jobs without "out": pictures/cat.png becomes pictures/cat-0007.png for line 7. A path that all
            machines share, or a URL of fsspec, such as s3://bucket/pictures/cat.png.
        defaults: options that jobs may override.
        address: see `connected`.
        actors: workers with a pipeline each; None is one for each GPU, or for each machine.
        batch: jobs of one kind (same options, but for prompts and seed) that are drawn in one call.

    Raises: InputError, BundleError, BackendError: nothing can be drawn. What is wrong with single jobs is reported.
    """
    if model is not None and bundle is not None:
        raise InputError("pass either bundle or model")
    lines = lines_of_source(str(jobs)) if isinstance(jobs, str | Path) else lines_of_mappings(jobs)
    chosen = model or Model(bundle)
    files: dict[int, tuple[str, ...]] = {}
    failures: dict[int, str] = {}
    parsed = list(jobs_of_lines(lines))
    for outcome in outcomes(
        parsed, str(out), model=chosen, defaults=defaults or {}, address=address, actors=actors, batch=batch
    ):
        files[outcome.number] = tuple(drawn.file for drawn in outcome.files)
        if outcome.why is not None:
            failures[outcome.number] = outcome.why
    return Report(len(parsed), dict(sorted(files.items())), dict(sorted(failures.items())))


def outcomes(
    jobs: Iterable[tuple[int, Job | str]],
    out: str,
    *,
    model: Model,
    defaults: Mapping[str, Any],
    address: str | None = None,
    actors: int | None = None,
    batch: int = 1,
) -> Generator[Outcome, None, None]:
    """The outcome of each job, as they come; see `draw`. Workers end with the iteration.

    Args:
        jobs: as from `jobs_of_lines`.
    """
    jobs = list(jobs)
    if not jobs:
        raise InputError(NO_JOBS)
    if batch < 1:
        raise InputError(f"{batch} jobs in one call: expected at least 1")
    place, pattern = place_of(out)
    require_png(pattern)
    Bundle.open(model.bundle if model.bundle is not None else embedded_bundle())
    yield from (Outcome(number, why=job) for number, job in jobs if isinstance(job, str))
    units = units_of([job for _, job in jobs if isinstance(job, Job)], defaults, pattern, place, batch)
    if not units:
        return
    with connected(address), _proof(pattern) as proof:
        work = Work(model, str(Path.cwd()), out, defaults, proof)
        for text in mapped([unit.to_json() for unit in units], work, actors_for(model.device, actors, len(units))):
            yield from outcomes_of_json(text)


@contextmanager
def _proof(pattern: PurePath) -> Iterator[Path | None]:
    """A file where the pictures go, by which workers know that it is the same folder; None where there is no folder."""
    if not isinstance(pattern, Path):
        yield None
        return
    require_place(pattern)
    folder = next(parent for parent in pattern.absolute().parents if parent.exists())
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".latentrt-") as file:
        yield Path(file.name)
