"""One job: its line checked, and the names of its files. Knows nothing of pipelines or of where files lie."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, TypeVar

from latentrt.runtime.errors import InputError, unknown
from latentrt.runtime.request.options import json_options

JOB_KEYS = ("prompt", "out", *json_options())

AnyPath = TypeVar("AnyPath", bound=PurePath)


@dataclass(frozen=True, slots=True)
class Job:
    """A line that can be read. `keys`: prompt, options of the call, and perhaps "out", as the line says them."""

    number: int
    keys: Mapping[str, Any]

    def options(self, defaults: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of `Pipeline.stream`, over `defaults`."""
        return {name: value for name, value in {**defaults, **self.keys}.items() if name != "out"}

    def images(self, defaults: Mapping[str, Any]) -> int:
        """How many it draws; only for options that have been checked."""
        options = self.options(defaults)
        texts = 1 if isinstance(options["prompt"], str) else len(options["prompt"])
        return texts * int(options.get("num_images_per_prompt") or 1)


def jobs_of_lines(lines: Iterable[bytes]) -> Iterator[tuple[int, Job | str]]:
    """Each line's number, counted from 1, and its job, or why it is none; empty lines are left out."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield number, Job(number, job_of_line(line))
            except InputError as error:
                yield number, str(error)


def job_of_line(line: bytes) -> dict[str, Any]:
    """The keys of a job; raises `InputError` for what is not one."""
    try:
        job = json.loads(line.decode("utf-8-sig"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise InputError(f"invalid JSON: {error}") from error
    if not isinstance(job, dict):
        raise InputError(f'expected an object such as {{"prompt": "a cat"}}, got {type(job).__name__}')
    for key in job:
        if key not in JOB_KEYS:
            raise InputError(unknown("key", key, JOB_KEYS))
    if not isinstance(job.get("out", ""), str) or "prompt" not in job:
        raise InputError('expected a "prompt", and "out", if given, to be a file name')
    return job


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError(f"duplicate key among {', '.join(key for key, _ in pairs)}")
    return result


def of_line(pattern: AnyPath, number: int) -> AnyPath:
    """The file of a job without "out": pictures/cat.png becomes pictures/cat-0007.png for line 7."""
    return pattern.with_stem(f"{pattern.stem}-{number:04}")


def numbered(out: AnyPath, count: int) -> list[AnyPath]:
    """File names for the images of one call: cat.png, or cat-0.png, cat-1.png, …"""
    return [out] if count == 1 else [out.with_stem(f"{out.stem}-{i}") for i in range(count)]
