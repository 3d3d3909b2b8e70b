"""When a device's process is started anew and when it is given up. The process is a fake, and the delays are short."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from support.asynchronous import run, until

from latentrt.runtime.errors import BackendError
from latentrt.serve.messages import DispatcherOptions, ModelSpec
from latentrt.serve.service import Load
from latentrt.serve.worker import process
from latentrt.serve.worker.process import Timing, WorkerProcess
from latentrt.serve.worker.wire import Beat, ChildConfig, Close, Ready, StartFailed

LOAD = Load("cpu", True, 0, 0, 0.0)
CONFIG = ChildConfig((ModelSpec("shapes"),), DispatcherOptions(device="cpu"), heartbeat=0.01)
QUICK = Timing(shortest=0.02, longest=0.08, healthy=100, silent=0.2, closing=0.1, starts=3)


class FakeChild:
    """Does what `script` says at each start: "up", "die", or "unloadable"."""

    made: list["FakeChild"]
    script: Callable[[int], str]
    immortal = False

    def __init__(self, _: ChildConfig, heard: Callable[[Any], None], ended: Callable[[str], None]) -> None:
        self.heard, self._ended, self.pid = heard, ended, 1
        self.at = asyncio.get_running_loop().time()
        self.kills, self.over, self.sent = 0, False, list[Any]()
        FakeChild.made.append(self)
        match FakeChild.script(len(FakeChild.made)):
            case "up":
                heard(Ready(LOAD))
            case "die":
                self.end("exited with status 3")
            case "unloadable":
                heard(StartFailed("there is no bundle", final=True))
                self.end("exited with status 1")

    def send(self, message: object) -> None:
        self.sent.append(message)
        if isinstance(message, Close):
            self.end("exited with status 0")

    def kill(self) -> None:
        self.kills += 1
        if not self.immortal:
            self.end("was ended by signal 9")

    def end(self, how: str) -> None:
        if not self.over:
            self.over = True
            asyncio.get_running_loop().call_soon(self._ended, how)


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "ChildProcess", FakeChild)
    FakeChild.made, FakeChild.immortal = [], False
    FakeChild.script = staticmethod(lambda _: "up")  # type: ignore[assignment]


async def beating(worker: WorkerProcess, starts: int, *, seconds: float = 0.0) -> list[float]:
    """Ends the process so many times, each time after so many seconds; the delays that follow."""
    delays = []
    for _ in range(starts):
        child = FakeChild.made[-1]
        child.heard(Beat(LOAD))
        await asyncio.sleep(seconds)
        child.end("exited with status 70")
        await until(lambda: not worker.ready)
        delays.append(worker._retry_at - asyncio.get_running_loop().time())
        await until(lambda: worker.ready)
    return delays


def test_delays_grow_to_a_limit_and_are_short_again_after_health() -> None:
    async def test() -> None:
        worker = WorkerProcess(CONFIG, replace(QUICK, shortest=0.1, longest=0.4, healthy=0.15))
        await worker.start()
        assert await beating(worker, 4) == pytest.approx([0.1, 0.2, 0.4, 0.4], abs=0.05)
        assert await beating(worker, 2, seconds=0.18) == pytest.approx([0.1, 0.1], abs=0.05)
        assert worker.live
        await worker.close()

    run(test, 10)


def test_it_is_not_live_after_some_starts_in_a_row_that_failed() -> None:
    async def test() -> None:
        FakeChild.script = staticmethod(lambda start: "up" if start in (1, 4) else "die")  # type: ignore[assignment]
        worker = WorkerProcess(CONFIG, QUICK)
        await worker.start()
        FakeChild.made[-1].end("exited with status 70")
        await until(lambda: len(FakeChild.made) == 4)
        await asyncio.sleep(0)
        assert worker.ready
        assert worker.live  # two failed, and the third came up
        FakeChild.made[-1].end("exited with status 70")
        await until(lambda: not worker.live)
        assert len(FakeChild.made) == 7
        await worker.close()

    run(test, 10)


def test_what_cannot_be_loaded_is_told_at_first_and_tried_again_later() -> None:
    async def test() -> None:
        FakeChild.script = staticmethod(lambda _: "unloadable")  # type: ignore[assignment]
        with pytest.raises(BackendError, match="cpu: there is no bundle"):
            await WorkerProcess(CONFIG, QUICK).start()
        assert len(FakeChild.made) == 1
        FakeChild.script = staticmethod(lambda start: "unloadable" if start == 3 else "up")  # type: ignore[assignment]
        worker = WorkerProcess(CONFIG, QUICK)
        await worker.start()
        FakeChild.made[-1].end("exited with status 70")
        await until(lambda: len(FakeChild.made) == 4 and worker.ready)
        assert worker.live
        await worker.close()

    run(test, 10)


def test_one_that_gives_no_sign_of_life_is_killed_and_started_anew(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        worker = WorkerProcess(CONFIG, QUICK)
        await worker.start()
        child = FakeChild.made[0]
        for _ in range(30):  # longer than that: it does live
            child.heard(Beat(LOAD))
            await asyncio.sleep(0.01)
        assert not child.kills
        await until(lambda: len(FakeChild.made) == 2 and worker.ready)
        assert child.kills
        await worker.close()

    run(test, 10)
    assert "no sign of life" in caplog.text


def test_one_that_cannot_be_killed_is_hung() -> None:
    async def test() -> None:
        FakeChild.immortal = True
        worker = WorkerProcess(CONFIG, QUICK)
        await worker.start()
        await until(lambda: not worker.live)
        assert FakeChild.made[0].kills
        await worker.close()

    run(test, 10)
