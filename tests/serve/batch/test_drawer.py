"""A worker in this process: what it says of jobs, how often it begins them, and when it ends itself."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from latentrt.runtime.errors import BackendError, InputError
from latentrt.runtime.jobs import Job, Outcome
from latentrt.serve.batch import drawer
from latentrt.serve.batch.drawer import Drawer, Work, outcomes_of_json
from latentrt.serve.batch.ledger import Counts
from latentrt.serve.batch.model import Model
from latentrt.serve.batch.units import Unit

ERRORS = {"wrong": InputError("it is wrong"), "fault": RuntimeError("illegal memory access")}


class FakePipeline:
    """Draws grey pictures, and notes its calls."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.is_healthy = True

    def stream(self, prompt: Any, **_: Any) -> Any:
        self.calls.append(prompt)
        for word in [prompt] if isinstance(prompt, str) else prompt:
            if word in ERRORS:
                raise ERRORS[word]
        count = 1 if isinstance(prompt, str) else len(prompt)
        images = [Image.fromarray(np.full((8, 8, 3), 100, np.uint8))] * count
        result = SimpleNamespace(images=images, seeds=tuple(range(count)), timings={"total": 5.0})
        return iter([SimpleNamespace(result=result)])

    def __call__(self, prompt: Any, **options: Any) -> Any:
        return next(self.stream(prompt, **options)).result

    def warm_up(self) -> None:
        if not self.is_healthy:
            raise RuntimeError("illegal memory access")


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Drawer, FakePipeline, Counts]:
    """A worker, its pipeline and its ledger."""
    monkeypatch.chdir(tmp_path)
    pipe, ledger = FakePipeline(), Counts()
    monkeypatch.setattr("latentrt.serve.batch.drawer.named", lambda _: lambda _: pipe)
    return Drawer(Work(Model(), str(tmp_path), "p.png", {}), ledger, "worker 1"), pipe, ledger


def unit(*prompts: str, together: bool = False) -> str:
    return Unit(tuple(Job(i, {"prompt": prompt}) for i, prompt in enumerate(prompts, 1)), together).to_json()


def test_jobs_of_one_call(made: tuple[Drawer, FakePipeline, Counts]) -> None:
    worker, pipe, _ = made
    outcomes = outcomes_of_json(worker.draw(unit("a", "b", "c", together=True)))
    assert pipe.calls == [["a", "b", "c"]]
    assert [(o.number, o.files[0].file, o.why) for o in outcomes] == [(i, f"p-000{i}.png", None) for i in (1, 2, 3)]
    assert outcomes == [Outcome(o.number, o.files) for o in outcomes]


def test_a_call_that_fails_is_drawn_job_by_job(made: tuple[Drawer, FakePipeline, Counts]) -> None:
    worker, pipe, _ = made
    outcomes = outcomes_of_json(worker.draw(unit("a", "wrong", "c", together=True)))
    assert pipe.calls == [["a", "wrong", "c"], "a", "wrong", "c"]
    assert [(o.why, o.is_fault) for o in outcomes] == [(None, False), ("it is wrong", False), (None, False)]


def test_a_job_that_had_begun_three_times_is_given_up(made: tuple[Drawer, FakePipeline, Counts]) -> None:
    worker, pipe, ledger = made
    for _ in range(3):  # as of workers that died
        assert ledger.begin("line 2") <= 3
    outcomes = outcomes_of_json(worker.draw(unit("a", "b", "c", together=True)))
    assert pipe.calls == ["a", "c"]
    assert str(outcomes[1].why).startswith("its worker died 3 times while it drew this job")
    assert ledger.begin("line 1") == ledger.begin("line 2") == 1  # all that is told is forgotten


@pytest.mark.parametrize("is_healthy", [True, False])
def test_a_worker_that_draws_nothing_any_more_ends_itself(
    made: tuple[Drawer, FakePipeline, Counts], monkeypatch: pytest.MonkeyPatch, is_healthy: bool
) -> None:
    worker, pipe, ledger = made

    def ended() -> None:
        raise SystemExit(drawer.CANNOT_GO_ON)

    monkeypatch.setattr(drawer, "_exit", ended)
    pipe.is_healthy = is_healthy
    if is_healthy:
        outcomes = outcomes_of_json(worker.draw(unit("fault", "a")))
        assert [o.why for o in outcomes] == ["RuntimeError: illegal memory access", None]
        return
    with pytest.raises(SystemExit):
        worker.draw(unit("fault", "a"))
    assert ledger.begin("line 1") == 2  # it is drawn again


def test_a_worker_that_cannot_load_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    work = Work(Model(), str(tmp_path), "p.png", {}, proof=tmp_path / "elsewhere" / ".proof")
    with pytest.raises(BackendError, match="elsewhere is not the same here: share it between all machines"):
        outcomes_of_json(Drawer(work, Counts(), "worker 1").draw(unit("a")))
    ledger = Counts()
    for _ in range(3):
        ledger.begin("worker 1")
    with pytest.raises(BackendError, match="a worker died 3 times while it loaded the model"):
        outcomes_of_json(Drawer(work, ledger, "worker 1").draw(unit("a")))
