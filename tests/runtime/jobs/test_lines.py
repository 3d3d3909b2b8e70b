"""Where jobs come from: JSONL, Parquet, stores; and what is refused."""

import io
import json
from pathlib import Path
from typing import Any

import fsspec
import pyarrow
import pytest
from pyarrow import parquet

from latentrt.runtime.errors import InputError
from latentrt.runtime.jobs import Job, jobs_of_lines, lines_of_mappings, lines_of_source

JOBS: list[dict[str, Any]] = [
    {"prompt": "a cat", "seed": 2**63 - 1, "scheduler": {"_class_name": "EulerDiscreteScheduler", "steps_offset": 1}},
    {"prompt": "☆", "guidance_scale": 4.0, "out": "b/ö.png", "timesteps": [900.0, 500.0]},
    {"prompt": "c", "num_inference_steps": 3, "scheduler": {"_class_name": "DDIMScheduler", "eta": 0.5}},
]


def jobs_of(source: str) -> list[dict[str, Any]]:
    found = [job for _, job in jobs_of_lines(lines_of_source(source))]
    assert all(isinstance(job, Job) for job in found), found
    return [dict(job.keys) for job in found if isinstance(job, Job)]


def bytes_of_parquet(rows: list[dict[str, Any]]) -> bytes:
    data = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), data)
    return data.getvalue()


def test_parquet_and_jsonl_hold_the_same_jobs(tmp_path: Path) -> None:
    (tmp_path / "jobs.jsonl").write_text("\n".join(json.dumps(job) for job in JOBS))
    # A table has all columns, and from_pylist takes them from the first row alone.
    columns = {name: None for job in JOBS for name in job}
    (tmp_path / "jobs.Parquet").write_bytes(bytes_of_parquet([{**columns, **job} for job in JOBS]))
    assert jobs_of(str(tmp_path / "jobs.Parquet")) == jobs_of(str(tmp_path / "jobs.jsonl")) == JOBS


def test_integers_that_a_writer_made_floats_are_integers(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "seed": 7.0, "guidance_scale": 7.0},
        {"prompt": "b", "seed": None},
        {"prompt": "c", "seed": 1.5},
    ]
    (tmp_path / "a.parquet").write_bytes(bytes_of_parquet(rows))
    first, second, third = jobs_of(str(tmp_path / "a.parquet"))
    assert (type(first["seed"]), first["seed"]) == (int, 7)
    assert type(first["guidance_scale"]) is float
    assert "seed" not in second
    assert third["seed"] == 1.5  # refused with the job


def test_stores_are_read(tmp_path: Path) -> None:
    with fsspec.open("memory://folder/jobs.parquet", "wb") as file:
        file.write(bytes_of_parquet(JOBS[:1]))
    with fsspec.open("memory://folder/jobs.jsonl", "wb") as file:
        file.write(b'{"prompt": "a"}\r\n\n{"prompt": "b"}')
    assert jobs_of("memory://folder/jobs.parquet") == JOBS[:1]
    assert [number for number, _ in jobs_of_lines(lines_of_source("memory://folder/jobs.jsonl"))] == [1, 3]
    (tmp_path / "local.jsonl").write_text('{"prompt": "a"}')
    assert jobs_of((tmp_path / "local.jsonl").as_uri()) == [{"prompt": "a"}]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("none.parquet", "none.parquet cannot be read: No such file"),
        ("memory://none/jobs.jsonl", "memory://none/jobs.jsonl cannot be read: "),
        ("nonsense://a/jobs.jsonl", "nonsense://a/jobs.jsonl cannot be read: Protocol not known: nonsense"),
        ("text.parquet", "text.parquet cannot be read as Parquet: "),
        ("bytes.parquet", "bytes.parquet: row 1 holds what JSON cannot: Object of type bytes"),
    ],
)
def test_what_cannot_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.parquet").write_text('{"prompt": "a"}')
    Path("bytes.parquet").write_bytes(bytes_of_parquet([{"prompt": b"a"}]))
    with pytest.raises(InputError) as error:
        lines_of_source(source)
    assert str(error.value).startswith(message)


def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"needs pyarrow: pip install 'latentrt\[ray\]'"):
        lines_of_source(str(tmp_path / "jobs.parquet"))
    monkeypatch.setitem(__import__("sys").modules, "fsspec", None)
    with pytest.raises(InputError, match=r"needs fsspec: pip install 'latentrt\[ray\]'"):
        lines_of_source("s3://bucket/jobs.jsonl")


def test_jobs_from_memory_are_lines() -> None:
    assert [json.loads(line) for line in lines_of_mappings(JOBS)] == JOBS
    with pytest.raises(InputError, match=r"job 2 holds what JSON cannot: .*names of files"):
        list(lines_of_mappings([{"prompt": "a"}, {"prompt": "b", "image": object()}]))
