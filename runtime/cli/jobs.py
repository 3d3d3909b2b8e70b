"""Many calls from lines of JSON, on one pipeline. A job that fails is reported at the end and does not stop the others.

Knows lines, options and file names. Knows nothing of flags.
"""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentrt.runtime.errors import InputError, LatentRTError, unknown
from latentrt.runtime.image import require_png, save_png
from latentrt.runtime.request.options import json_options

if TYPE_CHECKING:
    from latentrt.runtime.pipeline import Pipeline

JOB_KEYS = ("prompt", "out", *json_options())


def numbered(out: Path, count: int) -> list[Path]:
    """File names for the pictures of one call: cat.png, or cat-0.png, cat-1.png, …"""
    return [out] if count == 1 else [out.with_stem(f"{out.stem}-{i}") for i in range(count)]


def lines_of_file(path: Path) -> Iterable[bytes]:
    """Lines of a file; those of "-" are read from stdin as they come. Raises `InputError`."""
    if str(path) == "-":
        return sys.stdin.buffer
    try:
        return path.read_bytes().splitlines()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def run_jobs(pipe: "Pipeline", lines: Iterable[bytes], defaults: Mapping[str, Any], out: Path) -> int:
    """Draw the job of every line that is not empty, in order; returns 1 if any failed, else 0.

    Args:
        defaults: options of every job that does not say otherwise.
        out: where a job that names no file goes: pictures/cat.png is pictures/cat-0007.png for line 7.

    No job writes over a file of another. Each file is printed when it is written, each failure at the end.
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
            except Exception as error:  # whatever it is, the jobs that follow are not to be lost
                own = isinstance(error, LatentRTError)
                failures[number] = str(error) if own else f"{type(error).__name__}: {error}"
    finally:
        if failures:
            print(f"latentrt: {len(failures)} of {count} jobs failed", file=sys.stderr)
            for number, why in failures.items():
                print(f"  line {number}: {why}", file=sys.stderr)
    if not count:
        raise InputError('there are no jobs: write one JSON object a line, such as {"prompt": "a cat", "seed": 1}')
    return 1 if failures else 0


def _run_job(pipe: "Pipeline", options: dict[str, Any], out: Path, number: int, written: dict[Path, int]) -> None:
    from tqdm import tqdm

    out = Path(options.pop("out", out))
    require_png(out)
    steps = pipe.stream(**options)  # refuses wrong options, so that they can be counted on
    texts = 1 if isinstance(options.get("prompt"), str) else len(options["prompt"])
    files = numbered(out, texts * (options.get("num_images_per_prompt") or 1))
    for file in files:
        if other := written.get(file.resolve()):
            raise InputError(f'{file} was written by line {other}: name another file with "out"')
    *_, last = steps
    assert last.result is not None
    for file, image, seed in zip(files, last.result.images, last.result.seeds, strict=True):
        save_png(image, file)
        written[file.resolve()] = number
        tqdm.write(f"{file} (line {number}, seed {seed}, {last.result.timings['total'] / 1000:.2f} s)")
    sys.stdout.flush()  # who reads a pipe waits for it


def _job(line: bytes) -> dict[str, Any]:
    try:
        job = json.loads(line.decode("utf-8-sig"), object_pairs_hook=_without_duplicates)
    except ValueError as error:
        raise InputError(f"this cannot be read as JSON: {error}") from error
    if not isinstance(job, dict):
        raise InputError(f'a job is an object such as {{"prompt": "a cat"}}, not {type(job).__name__}')
    for key in job:
        if key not in JOB_KEYS:
            raise InputError(unknown("key", key, JOB_KEYS))
    if not isinstance(job.get("out", ""), str) or "prompt" not in job:
        raise InputError('a job has a "prompt", and "out", if it is given, is the name of a file')
    return job


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError(f"a key is given twice among {', '.join(key for key, _ in pairs)}")
    return result
