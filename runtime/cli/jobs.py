"""Runs jobs, one JSON object per line, on one pipeline. Failed jobs are reported at the end and do not stop others.

Knows lines, options and file names; knows nothing about flags.
"""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentrt.runtime.errors import InputError, LatentRTError, unknown
from latentrt.runtime.image import require_place, require_png, save_or_keep
from latentrt.runtime.request.options import json_options

if TYPE_CHECKING:
    from latentrt.runtime.pipeline import Pipeline

JOB_KEYS = ("prompt", "out", *json_options())


def numbered(out: Path, count: int) -> list[Path]:
    """File names for the images of one call: cat.png, or cat-0.png, cat-1.png, …"""
    return [out] if count == 1 else [out.with_stem(f"{out.stem}-{i}") for i in range(count)]


def lines_of_file(path: Path) -> Iterable[bytes]:
    """Lines of a file, or of stdin for "-", as they arrive. Raises `InputError` if the file cannot be read."""
    if str(path) == "-":
        if sys.stdin is None or sys.stdin.closed:
            raise InputError("--jobs - reads stdin, which is closed: pass the jobs through a pipe, or name a file")
        return sys.stdin.buffer
    try:
        return path.read_bytes().splitlines()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def run_jobs(pipe: "Pipeline", lines: Iterable[bytes], defaults: Mapping[str, Any], out: Path) -> int:
    """Run the job of every non-empty line, in order; returns 1 if any failed, else 0.

    Args:
        defaults: options that jobs may override.
        out: pattern for jobs without "out": pictures/cat.png becomes pictures/cat-0007.png for line 7.

    A job never overwrites a file of another job. Files are printed when written, failures at the end.
    """
    from tqdm import tqdm

    written: dict[Path, int] = {}
    failures: dict[int, str] = {}
    count = 0
    try:
        for number, line in enumerate(tqdm(lines, disable=None, unit="job"), 1):
            if not line.strip():
                continue
            count += 1
            try:
                _run_job(pipe, {**defaults, **_job(line)}, out.with_stem(f"{out.stem}-{number:04}"), number, written)
            except BrokenPipeError:  # nobody reads the output any more
                raise
            except Exception as error:  # of any kind: the remaining jobs must still run
                own = isinstance(error, LatentRTError)
                failures[number] = str(error) if own else f"{type(error).__name__}: {error}"
    finally:
        if failures:
            print(f"latentrt: {len(failures)} of {count} jobs failed", file=sys.stderr)
            for number, why in failures.items():
                print(f"  line {number}: {why}", file=sys.stderr)
    if not count:
        raise InputError('there are no jobs: write one JSON object per line, such as {"prompt": "a cat", "seed": 1}')
    return 1 if failures else 0


def _run_job(pipe: "Pipeline", options: dict[str, Any], out: Path, number: int, written: dict[Path, int]) -> None:
    from tqdm import tqdm

    out = Path(options.pop("out", out))
    require_png(out)
    steps = pipe.stream(**options)  # validates the options, which are used below
    texts = 1 if isinstance(options.get("prompt"), str) else len(options["prompt"])
    files = numbered(out, texts * (options.get("num_images_per_prompt") or 1))
    for file in files:
        if other := written.get(file.resolve()):
            raise InputError(f'{file} was already written by line {other}: set another file name with "out"')
        require_place(file)
    *_, last = steps
    assert last.result is not None
    for file, image, seed in zip(files, last.result.images, last.result.seeds, strict=True):
        save_or_keep(image, file)
        written[file.resolve()] = number
        tqdm.write(f"{file} (line {number}, seed {seed}, {last.result.timings['total'] / 1000:.2f} s)")
    sys.stdout.flush()  # for readers of a pipe


def _job(line: bytes) -> dict[str, Any]:
    try:
        job = json.loads(line.decode("utf-8-sig"), object_pairs_hook=_without_duplicates)
    except ValueError as error:
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
