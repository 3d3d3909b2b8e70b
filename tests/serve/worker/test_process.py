"""A device's process: its jobs, its faults, its restarts and its end. Real processes, with a fake dispatcher."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from support.asynchronous import run
from support.exports import ROOT
from support.fake_dispatcher import NAME, a_job

from latentrt.runtime.errors import BackendError
from latentrt.serve.messages import (
    Called,
    DispatcherOptions,
    Done,
    Event,
    Failed,
    ModelSpec,
    Picture,
    Previews,
    Progress,
    RefusedError,
    Started,
)
from latentrt.serve.worker.process import Timing, WorkerProcess
from latentrt.serve.worker.wire import ChildConfig
from latentrt.serve.worker.worker import Watchers

QUICK = Timing(shortest=0.1, longest=0.4, healthy=100, silent=60, closing=5, starts=3)


def config(does: str = "", *models: str, heartbeat: float = 0.1, max_queue: int = 1000) -> ChildConfig:
    options = DispatcherOptions(device="cpu", loader=does, max_queue=max_queue)
    return ChildConfig(tuple(map(ModelSpec, models or ("shapes",))), options, NAME, heartbeat)


@asynccontextmanager
async def running(
    given: ChildConfig, timing: Timing = QUICK, watchers: Watchers | None = None
) -> AsyncIterator[WorkerProcess]:
    worker = WorkerProcess(given, timing, watchers)
    try:
        await worker.start()
        yield worker
    finally:
        await worker.close()


async def until(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "this never happened"
        await asyncio.sleep(0.01)


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def starts(file: Path) -> list[float]:
    return [float(line.split()[1]) for line in file.read_text(encoding="ascii").splitlines()]


def test_a_job_is_drawn_refused_cancelled_and_fails() -> None:
    async def test() -> None:
        async with running(config("delay=0.02", max_queue=50)) as worker:
            pid = worker.pid
            events: list[Event] = []
            admitted = await worker.submit(a_job("a", images=2, steps=3), events.append)
            assert admitted.position == 0
            assert worker.load().work > 0
            await until(lambda: events and isinstance(events[-1], Done))
            kinds = [type(event) for event in events]
            assert kinds == [Started, *[Progress] * 6, Picture, Picture, Done]

            with pytest.raises(RefusedError) as refused:
                await worker.submit(a_job("busy"), events.append)
            assert (refused.value.reason, refused.value.retry_after) == ("busy", 7.0)
            with pytest.raises(RuntimeError, match="KeyError"):
                await worker.submit(a_job("bug"), events.append)

            events.clear()
            await worker.submit(a_job("b", steps=50), events.append)
            with pytest.raises(ValueError, match="under way"):
                await worker.submit(a_job("b"), events.append)
            worker.cancel("b")
            await until(lambda: events and isinstance(events[-1], Failed))
            assert events[-1] == Failed("b", "cancelled", "cancelled")
            assert worker.pid == pid
            assert worker.load().ready
        assert pid is not None
        assert is_gone(pid)

    run(test)


def test_large_messages_do_not_block_the_loop_either_way() -> None:
    async def test() -> None:
        async with running(config("bytes=60000000")) as worker:
            job = a_job("a")
            # Noise of 48 MB is sent along; pickle copies it as it would a picture.
            job = replace(job, request=replace(job.request, noise=np.ones(12_000_000, np.float32)))
            events: list[Event] = []
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGSTOP)  # it does not read
            sent = asyncio.create_task(worker.submit(job, events.append))
            await asyncio.sleep(0.2)  # would never return
            assert not sent.done()
            os.kill(worker.pid, signal.SIGCONT)
            await sent
            await until(lambda: events and isinstance(events[-1], Done))
            assert [len(event.data) for event in events if isinstance(event, Picture)] == [60_000_000]

    run(test)


def test_what_cannot_be_sent_fails_alone() -> None:
    async def test() -> None:
        async with running(config()) as worker:
            job = a_job("a")
            bad = replace(job, request=replace(job.request, scheduler=lambda: None))  # type: ignore[arg-type]
            with pytest.raises(RuntimeError, match="cannot be sent"):
                await worker.submit(bad, print)
            events: list[Event] = []
            await worker.submit(job, events.append)
            await until(lambda: events and isinstance(events[-1], Done))

    run(test)


@pytest.mark.parametrize("fault", ["crash", "hang", "break", "die", "kill"])
def test_jobs_of_a_process_that_ends_fail_and_it_is_started_anew(fault: str, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with running(config("delay=0.05")) as worker:
            pid = worker.pid
            assert pid is not None
            events: list[Event] = []
            await worker.submit(a_job("before", steps=2), events.append)
            await worker.submit(a_job(f"{fault}-1"), events.append)
            if fault == "kill":
                os.kill(pid, signal.SIGKILL)
            await until(lambda: not worker.ready)
            failed = [event for event in events if isinstance(event, Failed)]
            assert {(event.job, event.kind) for event in failed} >= {(f"{fault}-1", "crashed")}
            assert is_gone(pid)
            assert not worker.load().ready
            with pytest.raises(RefusedError) as refused:
                await worker.submit(a_job("during"), events.append)
            assert refused.value.reason == "starting"
            assert refused.value.retry_after is not None
            assert refused.value.retry_after >= 1
            await until(lambda: worker.ready)
            assert worker.pid != pid
            assert worker.live
            events.clear()
            await worker.submit(a_job("after"), events.append)
            await until(lambda: events and isinstance(events[-1], Done))

    run(test)
    how = {"crash": "status 11", "kill": "signal 9"}.get(fault, "status 70")
    assert how in caplog.text
    why = {"hang": "5.0 s longer than its limit", "break": "CUDA error 700"}.get(fault, "")
    assert why in caplog.text


def test_a_submission_is_answered_when_the_process_ends_and_its_job_gets_no_events() -> None:
    async def test() -> None:
        async with running(config()) as worker:
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGSTOP)
            events: list[Event] = []
            sent = asyncio.create_task(worker.submit(a_job("a"), events.append))
            await asyncio.sleep(0.05)
            assert not sent.done()
            os.kill(worker.pid, signal.SIGKILL)
            with pytest.raises(RefusedError) as refused:
                await sent
            assert refused.value.reason == "crashed", "it may be that this job ended it"
            assert events == []

    run(test)


def test_a_submission_that_is_given_up_is_cancelled() -> None:
    async def test() -> None:
        async with running(config("delay=0.02")) as worker:
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGSTOP)
            events: list[Event] = []
            sent = asyncio.create_task(worker.submit(a_job("a", steps=100), events.append))
            await asyncio.sleep(0.02)
            sent.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sent
            os.kill(worker.pid, signal.SIGCONT)
            await until(lambda: worker.load().work == 0, 2)
            await worker.submit(a_job("b"), events.append)  # does not wait for the 2 s of the first one
            await until(lambda: events and isinstance(events[-1], Done), 1)
            assert {event.job for event in events} == {"b"}

    run(test)


def test_a_model_that_cannot_be_loaded_is_told_at_once(tmp_path: Path) -> None:
    async def test() -> None:
        worker = WorkerProcess(config(f"count={tmp_path}/starts", "unloadable"), QUICK)
        with pytest.raises(BackendError, match="cpu: there is no bundle"):
            await worker.start()
        await worker.close()
        wrong = WorkerProcess(replace(config(), dispatcher="support.fake_dispatcher:Nothing"), QUICK)
        with pytest.raises(BackendError, match="cannot be imported"):
            await wrong.start()
        await wrong.close()

    run(test)
    assert len(starts(tmp_path / "starts")) == 1


def test_it_can_be_closed_while_it_loads() -> None:
    async def test() -> None:
        worker = WorkerProcess(config("loading=30"), QUICK)
        starting = asyncio.create_task(worker.start())
        await until(lambda: worker.pid is not None)
        await asyncio.sleep(0.3)
        began = time.monotonic()
        await worker.close()
        with pytest.raises(BackendError, match="stopped"):
            await starting
        assert time.monotonic() - began < 3

    run(test)


def test_jobs_of_a_worker_that_is_closed_are_stopped() -> None:
    async def test() -> None:
        async with running(config("delay=1")) as worker:
            events: list[Event] = []
            await worker.submit(a_job("a"), events.append)
            await worker.close()
            assert isinstance(events[-1], Failed)
            assert events[-1].kind == "stopped"
            with pytest.raises(RefusedError) as refused:
                await worker.submit(a_job("b"), events.append)
            assert refused.value.reason == "stopping"

    run(test)


_PARENT = """
import asyncio
from latentrt.serve.messages import DispatcherOptions, ModelSpec
from latentrt.serve.worker.process import WorkerProcess
from latentrt.serve.worker.wire import ChildConfig
from support.fake_dispatcher import NAME

async def main():
    worker = WorkerProcess(ChildConfig((ModelSpec("shapes"),), DispatcherOptions(loader="{does}"), NAME))
    starting = asyncio.create_task(worker.start())
    while worker.pid is None:
        await asyncio.sleep(0.01)
    if "{does}":
        await asyncio.sleep(0.5)
    else:
        await starting
    print(worker.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("does", "number", "stopped"),
    [
        ("", signal.SIGKILL, False),
        ("", signal.SIGKILL, True),  # it cannot even notice
        ("loading=60", signal.SIGKILL, False),
        ("", signal.SIGTERM, False),
    ],
)
def test_no_process_outlives_its_parent(does: str, number: signal.Signals, stopped: bool) -> None:
    path = os.pathsep.join(map(str, (ROOT / "typings", ROOT, ROOT / "tests")))
    command = [sys.executable, "-c", _PARENT.format(does=does)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert not is_gone(pid)
        if stopped:
            os.kill(pid, signal.SIGSTOP)
        parent.send_signal(number)
        parent.wait(5)
    ends = time.monotonic() + 5
    while not is_gone(pid):
        assert time.monotonic() < ends, "the process outlives its parent"
        time.sleep(0.01)


def test_signals_of_the_terminal_are_the_parents() -> None:
    async def test() -> None:
        async with running(config()) as worker:
            assert worker.pid is not None
            assert os.getpgid(worker.pid) != os.getpgid(0)
            for number in (signal.SIGINT, signal.SIGTERM):
                os.kill(worker.pid, number)
            events: list[Event] = []
            await worker.submit(replace(a_job("a"), previews=Previews()), events.append)
            await until(lambda: events and isinstance(events[-1], Done))

    run(test)


def test_calls_and_restarts_are_told() -> None:
    async def test() -> None:
        calls: list[Called] = []
        restarts: list[str] = []
        async with running(config(), watchers=Watchers(calls.append, restarts.append)) as worker:
            await worker.submit(a_job("a", images=2, steps=3), lambda _: None)
            await until(lambda: len(calls) == 3)
            assert calls[0] == Called("shapes", 128, 128, 2, 8, 0.1, 0.001)
            with suppress(RefusedError):
                await worker.submit(a_job("crash"), lambda _: None)
            await until(lambda: restarts == ["cpu"])

    run(test)
