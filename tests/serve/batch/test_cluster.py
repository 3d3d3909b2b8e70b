"""Jobs on a Ray cluster of two CPUs, compared with the command on one machine."""

import json
import os
import re
import shlex
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pyarrow
import pytest
import ray
from pyarrow import parquet
from support.exports import ROOT

from latentrt.runtime.cli.main import main
from latentrt.runtime.errors import BackendError
from latentrt.runtime.jobs import Outcome, jobs_of_lines, lines_of_mappings
from latentrt.serve.batch import Model, draw, outcomes

pytestmark = pytest.mark.slow

SIZE: dict[str, Any] = {"num_inference_steps": 1, "height": 16, "width": 16}
FLAGS = ["--steps", "1", "--height", "16", "--width", "16", "--backend", "onnxruntime", "--device", "cpu"]
MODEL = Model(backend="onnxruntime", device="cpu")


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (ROOT / "typings", ROOT, ROOT / "tests"))))
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    yield
    ray.shutdown()
    patch.undo()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def workers() -> list[psutil.Process]:
    """Processes of this cluster that draw."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # also of zombies
            if "ray::MapWorker" in " ".join(process.cmdline()):
                found.append(process)
    return found


def wait_until_no_worker_is_left() -> None:
    for _ in range(600):
        if not workers():
            return
        time.sleep(0.05)
    pytest.fail("workers are left after 30 s")


def run(jobs: list[dict[str, Any]], out: str, **options: Any) -> Any:
    """The outcomes of jobs on two workers."""
    lines = jobs_of_lines(lines_of_mappings(jobs))
    return outcomes(lines, out, **{"model": MODEL, "defaults": SIZE, "actors": 2, **options})


def files(folder: str) -> dict[str, bytes]:
    """All files, hidden ones too."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in Path(folder).rglob("*") if f.is_file()}


def on_one_machine(jobs: list[dict[str, Any]], out: str) -> int:
    Path("one.jsonl").write_text("\n".join(map(json.dumps, jobs)))
    return main(["generate", "--jobs", "one.jsonl", *FLAGS, "-o", out])


def test_a_thousand_jobs_while_a_worker_is_killed() -> None:
    jobs = [{"prompt": f"a star, number {i}", "seed": 7 * i} for i in range(1000)]
    seen: list[Outcome] = []
    for outcome in run(jobs, "many/p.png"):
        seen.append(outcome)
        if len(seen) == 300:
            workers()[0].send_signal(signal.SIGKILL)
    assert Counter(outcome.number for outcome in seen) == Counter(range(1, 1001))
    assert {outcome.why for outcome in seen} == {None}
    assert on_one_machine(jobs, "one/p.png") == 0
    assert files("many") == files("one")
    assert len(files("one")) == 1000


def test_what_is_finished_is_not_drawn_again() -> None:
    jobs = [{"prompt": f"a star, number {i}", **({"seed": i} if i % 3 else {})} for i in range(40)]
    jobs[7]["num_images_per_prompt"] = 2
    drawing = run(jobs, "p.png")
    first = [next(drawing) for _ in range(15)]
    drawing.close()
    wait_until_no_worker_is_left()
    kept = {d.file: Path(d.file).stat().st_mtime_ns for outcome in first for d in outcome.files}
    damaged, other, *_ = kept
    Path(damaged).write_bytes(Path(damaged).read_bytes()[:-20])
    jobs[int(other[2:6]) - 1]["prompt"] = "another"
    for name in (damaged, other):
        del kept[name]
    seen = list(run(jobs, "p.png"))
    assert {outcome.why for outcome in seen} == {None}
    again = {d.file for outcome in seen for d in outcome.files if d.seconds is not None}
    assert {damaged, other} <= again
    assert not again & kept.keys()
    assert {name: Path(name).stat().st_mtime_ns for name in kept} == kept
    assert {d.file for outcome in seen for d in outcome.files if d.seconds is None} >= kept.keys()
    assert not [name for name in files(".") if "partial" in name]


def test_a_job_that_kills_its_worker_is_reported_and_harms_no_other() -> None:
    jobs = [{"prompt": "poison" if i == 5 else f"a star, number {i}", "seed": i} for i in range(16)]
    lethal = Model(backend="onnxruntime", device="cpu", loader="support.lethal:load_lethal")
    report = draw(jobs, out="cluster/p.png", model=lethal, defaults=SIZE, actors=1, batch=4)
    assert report.failures == {
        6: "its worker died 3 times while it drew this job: it was killed, ran out of memory or crashed"
    }
    assert Path("begun.log").read_text().split("\n").count("poison") == 3
    assert on_one_machine(jobs, "one/p.png") == 0
    Path("one/p-0006.png").unlink()
    # On ONNX Runtime's CPU, a picture does not depend on its batch.
    assert files("cluster") == files("one")


def test_a_worker_that_draws_nothing_any_more_is_made_again() -> None:
    jobs = [{"prompt": "fault" if i == 3 else "a star", "seed": i} for i in range(8)]
    lethal = Model(backend="onnxruntime", device="cpu", loader="support.lethal:load_lethal")
    report = draw(jobs, out="p/p.png", model=lethal, defaults=SIZE, actors=1)
    assert not report.failures
    assert len(files("p")) == 8


def test_a_model_that_cannot_be_loaded_is_told_once() -> None:
    with pytest.raises(BackendError, match="a worker died 3 times while it loaded the model"):
        draw([{"prompt": "a"}], model=Model(loader="support.lethal:load_nothing"), defaults=SIZE)
    assert Path("begun.log").read_text() == "load\n" * 3
    with pytest.raises(BackendError, match=r"none\.safetensors"):
        draw([{"prompt": "a"}], model=Model(device="cpu", loras={"none.safetensors": 1.0}), defaults=SIZE)


def test_failures_are_told_as_on_one_machine(capsys: pytest.CaptureFixture[str]) -> None:
    jobs: list[dict[str, Any]] = [
        {"prompt": "a", "seeed": 1},
        {"prompt": 5},
        {"prompt": "a", "height": 33},
        {"prompt": "a", "out": "x.jpg"},
        {"prompt": "a", "image": "none.png"},
        {"prompt": "a", "out": "one.jsonl/x.png"},
        {"prompt": "a", "height": 33, "out": "x.png"},
        {"prompt": "b", "seed": 1, "out": "x.png"},
        {"prompt": "c", "seed": 2, "out": "y/../x.png"},
        {"prompt": ["d", "e"], "seed": 3, "out": "y/z.png"},
        {"prompt": "a", "out": "s3://bucket/x.png"},
    ]
    assert on_one_machine(jobs, "p.png") == 1
    alone, before = capsys.readouterr(), files(".")
    for name in ("x.png", "y/z-0.png", "y/z-1.png"):
        Path(name).unlink()
    command = ["generate", "--jobs", "one.jsonl", *FLAGS, "--ray", "--ray-actors", "2", "-o", "p.png"]
    assert main(command) == 1
    cluster = capsys.readouterr()
    assert cluster.err == alone.err
    assert len(alone.err.splitlines()) == 10
    assert _files_told(cluster.out) == _files_told(alone.out)
    assert files(".") == before


def _files_told(out: str) -> list[str]:
    return sorted(line.rpartition(", ")[0] for line in out.splitlines())


def test_parquet_and_urls_are_as_good_as_files(folder: Path) -> None:
    jobs = [{"prompt": f"a {i}", "seed": i, **({"out": f"b/{i}.png"} if i % 2 else {})} for i in range(6)]
    columns = {"prompt": None, "seed": None, "out": None}
    parquet.write_table(pyarrow.Table.from_pylist([{**columns, **job} for job in jobs]), "jobs.parquet")
    report = draw(f"file://{folder}/jobs.parquet", out=f"file://{folder}/store/p.png", model=MODEL, defaults=SIZE)
    assert not report.failures
    assert report.files[2] == (f"file://{folder}/store/b/1.png",)
    Path("local").mkdir()
    os.chdir("local")
    assert on_one_machine(jobs, "p.png") == 0
    Path("one.jsonl").unlink()
    assert files(str(folder / "store")) == files(".")
    assert main(["generate", "--jobs", "../jobs.parquet", *FLAGS, "-o", "p.png"]) == 0
    assert files(str(folder / "store")) == files(".")


def test_an_interrupt_ends_the_workers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_: str) -> None:
        raise KeyboardInterrupt

    Path("jobs.jsonl").write_text('{"prompt": "a", "num_inference_steps": 200}\n' * 50)
    monkeypatch.setattr("tqdm.tqdm.write", interrupted)
    assert main(["generate", "--jobs", "jobs.jsonl", *FLAGS, "--ray", "-o", "i/p.png"]) == 130
    assert "interrupted; no incomplete files were left" in capsys.readouterr().err
    wait_until_no_worker_is_left()
    assert 1 <= len(files("i")) < 50


def test_the_docs_commands_and_code_run(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "batch.md").read_text()
    blocks = {name: re.findall(rf"```{name}\n(.*?)```", text, re.DOTALL) for name in ("console", "jsonl", "python")}
    Path("jobs.jsonl").write_text(blocks["jsonl"][0])
    commands = [shlex.split(line[2:]) for line in blocks["console"][0].splitlines() if "jobs.jsonl" in line]
    made = []
    for command in commands:
        assert main([*command[1:], *FLAGS]) == 0
        made.append(files("pictures"))
        shutil.rmtree("pictures")
    assert made[0] == made[1]
    assert sorted(made[0]) == ["fox-0001.png", "fox-0003-0.png", "fox-0003-1.png", "hare.png"]
    capsys.readouterr()
    (code,) = blocks["python"]
    exec(compile(code, "batch.md", "exec"), {})
    assert capsys.readouterr().out.splitlines() == re.findall(r"# ([({].*)", code)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a cat", "--ray"], "--ray draws jobs on a cluster: pass --jobs FILE"),
        (["--jobs", "jobs.jsonl", "--ray-actors", "2"], "--ray-actors and --ray-batch are for --ray"),
        (
            ["--jobs", "jobs.jsonl", "-o", "s3://b/p.png"],
            "-o s3://b/p.png: without --ray, pictures are written to files",
        ),
        (["--jobs", "jobs.jsonl", "--ray", "--save-latents", "a.npy"], "--save-latents cannot be combined with --ray"),
        (["--jobs", "jobs.jsonl", "--ray", "--ray-actors", "0"], "0 workers: expected at least 1"),
        (["--jobs", "jobs.jsonl", "--ray", "--ray-batch", "0"], "0 jobs in one call: expected at least 1"),
        (
            ["--jobs", "jobs.jsonl", "--ray", "--device", "cuda:1"],
            "device='cuda:1': Ray chooses the GPU of each worker",
        ),
        (["--jobs", "jobs.jsonl", "--ray", "--device", "cuda"], "device='cuda': this Ray cluster has no GPU"),
        (["--jobs", "jobs.jsonl", "--ray", "--bundle", "none"], "none is not a folder. Create a bundle"),
        (["--jobs", "jobs.jsonl", "--ray", "-o", "p.jpg"], "p.jpg does not end in .png"),
        (["--jobs", "empty.jsonl", "--ray"], "there are no jobs: write one JSON object per line"),
    ],
)
def test_wrong_commands_are_refused(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    Path("jobs.jsonl").write_text('{"prompt": "a"}\n')
    Path("empty.jsonl").write_text("\n")
    assert main(["generate", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_without_ray_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("jobs.jsonl").write_text('{"prompt": "a"}\n')
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["generate", "--jobs", "jobs.jsonl", "--ray"]) == 1
    assert "drawing on Ray needs pip install 'latentrt[ray]'" in capsys.readouterr().err
