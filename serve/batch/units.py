"""Jobs put into units, before they are distributed. A unit is drawn by one worker.

Nothing here depends on the number of workers, so pictures and report do not either. Jobs that name the same file are
one unit: which of them gets it is decided as on one machine.
"""

import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from latentrt.runtime.jobs import Job, Place, names_of
from latentrt.runtime.limits import MAX_IMAGES

# What the jobs of one call may differ in, besides their files.
_OWN = frozenset({"prompt", "seed", "negative_prompt"})
# With these, a call of several jobs would not draw what each of them draws.
_ALONE = frozenset({"image", "mask_image", "latents", "num_images_per_prompt", "prompt_2", "negative_prompt_2"})


@dataclass(frozen=True, slots=True)
class Unit:
    """Jobs in the order of their lines. `together`: they are drawn in one call, else one after the other."""

    jobs: tuple[Job, ...]
    together: bool = False

    def to_json(self) -> str:
        """As it crosses to a worker."""
        return json.dumps([self.together, *([job.number, dict(job.keys)] for job in self.jobs)])

    @classmethod
    def from_json(cls, text: str) -> "Unit":
        """The unit of `to_json`."""
        together, *jobs = json.loads(text)
        return cls(tuple(Job(number, keys) for number, keys in jobs), together)


def units_of(
    jobs: Sequence[Job], defaults: Mapping[str, Any], pattern: PurePath, place: Place, batch: int = 1
) -> list[Unit]:
    """The units, in the order of their first jobs.

    Args:
        batch: at most so many jobs of one kind, in the order of their lines, are drawn in one call.
    """
    units: list[tuple[list[Job], bool]] = []
    filling: dict[str, list[Job]] = {}
    for group in _by_shared_files(jobs, defaults, pattern, place):
        kind = kind_of(group[0], defaults) if batch > 1 and len(group) == 1 else None
        if kind is None:
            units.append((group, False))
            continue
        if kind not in filling or len(filling[kind]) == batch:
            filling[kind] = []
            units.append((filling[kind], True))
        filling[kind] += group
    return [Unit(tuple(unit), together and len(unit) > 1) for unit, together in units]


def _by_shared_files(
    jobs: Sequence[Job], defaults: Mapping[str, Any], pattern: PurePath, place: Place
) -> list[list[Job]]:
    """Jobs that name a file in common, also by way of others, are in one list."""
    root: dict[int, int] = {}
    first: dict[str, int] = {}

    def root_of(number: int) -> int:
        while root[number] != number:
            root[number] = number = root[root[number]]
        return number

    for job in jobs:
        root[job.number] = job.number
        for name in _keys(job, defaults, pattern, place):
            one, other = sorted((root_of(first.setdefault(name, job.number)), root_of(job.number)))
            root[other] = one
    groups: defaultdict[int, list[Job]] = defaultdict(list)
    for job in jobs:
        groups[root_of(job.number)].append(job)
    return list(groups.values())


def _keys(job: Job, defaults: Mapping[str, Any], pattern: PurePath, place: Place) -> list[str]:
    """Its files; none for a job that will be refused for its options."""
    try:
        if job.images(defaults) <= MAX_IMAGES:
            return [place.key(file) for file in names_of(job, defaults, pattern, place)]
    except Exception:  # of any kind, as the options have not been checked
        pass
    return []


def kind_of(job: Job, defaults: Mapping[str, Any]) -> str | None:
    """The same for jobs that can share a call; None for those that cannot share one."""
    options = _given(job, defaults)
    single = all(isinstance(options.get(name, ""), str) for name in ("prompt", "negative_prompt"))
    seeded = isinstance(options.get("seed", 0), int)
    # Texts in chunks are padded to the longest of their call.
    if not single or not seeded or options.get("long_prompt") == "chunk" or _ALONE & options.keys():
        return None
    common = {name: value for name, value in options.items() if name not in _OWN}
    return json.dumps([common, "negative_prompt" in options], sort_keys=True, default=repr)


def together(jobs: Sequence[Job], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of one call that draws all of these jobs, which are of one kind."""
    options = [_given(job, defaults) for job in jobs]
    merged = {**options[0], "prompt": [one["prompt"] for one in options]}
    merged["seed"] = [one.get("seed", int.from_bytes(os.urandom(4), "little")) for one in options]
    if "negative_prompt" in merged:
        merged["negative_prompt"] = [one["negative_prompt"] for one in options]
    return merged


def _given(job: Job, defaults: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in job.options(defaults).items() if value is not None}
