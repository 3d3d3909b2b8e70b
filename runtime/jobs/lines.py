"""Lines of jobs from a file, a store, stdin or memory: JSONL as it is, rows of Parquet as lines of JSON."""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from latentrt.runtime.errors import InputError
from latentrt.runtime.request import OPTIONS

# Where rows lack an integer, some writers of Parquet make the column one of floats.
_INTEGERS = frozenset(name for name, option in OPTIONS.items() if '"integer"' in json.dumps(dict(option.kind.schema)))


def lines_of_source(source: str) -> Iterable[bytes]:
    """The lines of a file of JSONL or Parquet (.parquet), of stdin for "-" as they arrive, or of a store's file.

    Args:
        source: a path, or a URL that fsspec opens, such as s3://bucket/jobs.jsonl.

    Raises: InputError: it cannot be read, or what reads it is not installed.
    """
    if source == "-":
        if sys.stdin is None or sys.stdin.closed:
            raise InputError("--jobs - reads stdin, which is closed: pass the jobs through a pipe, or name a file")
        return sys.stdin.buffer
    if source.lower().endswith(".parquet"):
        return list(_lines_of_parquet(source))
    with _opened(source) as file:
        return file.read().splitlines()


def lines_of_mappings(jobs: Iterable[Mapping[str, Any]], what: str = "job") -> Iterator[bytes]:
    """A line for each job; raises `InputError` for values that JSON cannot hold."""
    for number, job in enumerate(jobs, 1):
        try:
            yield json.dumps(job, ensure_ascii=False).encode("utf-8", "surrogatepass")
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(
                f"{what} {number} holds what JSON cannot: {error}. Pass numbers, texts, lists, and names of files"
            ) from error


def _lines_of_parquet(source: str) -> Iterator[bytes]:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise InputError(f"{source}: reading Parquet needs pyarrow: pip install 'latentrt[ray]'") from error
    try:
        with _opened(source) as file, ParquetFile(file) as parquet:
            rows = (row for batch in parquet.iter_batches() for row in batch.to_pylist())
            yield from lines_of_mappings(map(_job_of_row, rows), f"{source}: row")
    except pyarrow.ArrowException as error:
        raise InputError(f"{source} cannot be read as Parquet: {error}") from error


def _job_of_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Without the keys that a row lacks: a table has all keys in each row."""
    return {
        name: int(value) if name in _INTEGERS and isinstance(value, float) and value.is_integer() else value
        for name, value in _without_nulls(row).items()
    }


def _without_nulls(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}


@contextmanager
def _opened(source: str) -> Iterator[BinaryIO]:
    try:
        if "://" not in source:
            with Path(source).open("rb") as file:
                yield file
            return
        try:
            import fsspec
        except ImportError as error:
            raise InputError(f"{source}: reading URLs needs fsspec: pip install 'latentrt[ray]'") from error
        with fsspec.open(source, "rb") as file:
            yield file
    except OSError as error:
        raise InputError(f"{source} cannot be read: {error.strerror or error or 'it is not there'}") from error
    except ImportError as error:  # fsspec names the package that opens such URLs
        raise InputError(f"{source} cannot be read: {error}") from error
    except ValueError as error:
        if "://" not in source or isinstance(error, InputError):
            raise
        raise InputError(f"{source} cannot be read: {error}") from error
