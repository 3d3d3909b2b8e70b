"""What a run of jobs tells at its end."""

from collections.abc import Iterator, Mapping

NO_JOBS = 'there are no jobs: write one JSON object per line, such as {"prompt": "a cat", "seed": 1}'


def report_lines(failures: Mapping[int, str], count: int) -> Iterator[str]:
    """The failed jobs by line; nothing where none has failed."""
    if failures:
        yield f"latentrt: {len(failures)} of {count} jobs failed"
        yield from (f"  line {number}: {failures[number]}" for number in sorted(failures))
