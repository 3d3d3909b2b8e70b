"""The events of a job: in order, resumable, bounded, also after a restart and for jobs that others draw."""

import asyncio
from dataclasses import replace

from latentrt.serve.jobs.events import LAST, Entry, EventLog, EventLogs
from latentrt.serve.jobs.store import Failure, KeptJob, KeptPicture
from latentrt.serve.messages import Preview, Progress

WAITING = KeptJob(
    *("job", "me", 1.0, "interactive", "sd", "{}", 1, "waiting", False, 0, 0),
    **dict.fromkeys(("deadline", "started", "ended", "expires", "failure")),
    created=0.0,
    pictures=(),
    timings={},
)
PICTURE = KeptPicture(0, 7, 8, 8, "png", 3, "hash", "name")
DONE = replace(WAITING, state="done", pictures=(PICTURE,), timings={"total": 5.0})


def names(entries: list[Entry]) -> list[str]:
    return [entry.name for entry in entries]


def filled() -> EventLog:
    log = EventLog()
    log.state("waiting", 0)
    log.state("running", 1)
    for call in range(1, 1001):
        for image in range(2):
            log.progress(Progress("job", image, call, 1000))
        log.preview(Preview("job", 0, call, call, b"x" * 1000, "jpeg"))
    return log


def test_old_progress_and_previews_are_dropped() -> None:
    entries = filled().after(None)
    assert names(entries) == ["state", "state", "progress", "progress", "preview"]
    assert [entry.data.get("call") for entry in entries[2:]] == [1000, 1000, 1000]
    assert len({entry.id for entry in entries}) == 5
    assert [entry.number for entry in entries] == sorted(entry.number for entry in entries)


def test_a_reader_goes_on_after_the_last_event_that_it_has() -> None:
    log = filled()
    entries = log.after(None)
    for number, entry in enumerate(entries):
        assert log.after(entry.id) == entries[number + 1 :]
    log.progress(Progress("job", 1, 1001, 1001))
    assert names(log.after(entries[-1].id)) == ["progress"]
    for unknown in (filled().after(None)[-1].id, "", "x-3", "-1", f"{entries[0].id}0000", "²-²"):
        shown = log.after(unknown)
        assert shown == log.after(None) or not shown  # a number that is not reached yet is the reader's fault


def test_the_end_comes_once_with_the_pictures() -> None:
    log = filled()
    log.end(DONE)
    log.end(DONE)
    log.state("waiting", 1)
    log.progress(Progress("job", 0, 1, 1))
    entries = log.after(None)
    assert names(entries) == ["state", "state", "progress", "progress", "picture", "done"]
    assert entries[-1].id == LAST
    assert entries[-2].data["image"] == 0


def test_another_attempt_begins_anew() -> None:
    log = filled()
    log.state("waiting", 1)
    assert names(log.after(None)) == ["state", "state", "state"]


async def collected(logs: EventLogs, kept: list[KeptJob | None], **options: object) -> list[str]:
    """Names of the events, None for heartbeats; the store answers one after the other."""

    async def get(_: str) -> KeptJob | None:
        return kept.pop(0) if len(kept) > 1 else kept[0]

    follow = logs.follow("job", get, heartbeat=0.01, **options)  # type: ignore[arg-type]
    return ["-" if entry is None else entry.name for entry in [entry async for entry in follow]]


def test_a_job_that_nobody_here_draws_is_followed_through_the_store() -> None:
    running = replace(WAITING, state="running", number=1, attempts=1)
    failed = replace(WAITING, state="failed", failure=Failure("poison", "no"))

    async def check() -> None:
        assert await collected(EventLogs(), [DONE]) == ["state", "picture", "done"][1:]
        assert await collected(EventLogs(), [DONE], last="0123-7") == ["picture", "done"]
        assert await collected(EventLogs(), [DONE], last=LAST) == []
        found = await collected(EventLogs(), [WAITING, WAITING, running, running, failed])
        assert [name for name in found if name != "-"] == ["state", "state", "failed"]
        assert found.count("-") == 4
        assert await collected(EventLogs(), [WAITING, None]) == ["state", "-"]

    asyncio.run(check())


def test_readers_see_what_happens_at_once_and_logs_do_not_outlive_them() -> None:
    async def check() -> None:
        logs = EventLogs()
        log = logs.of("job")
        log.state("waiting", 0)
        log.is_drawn_here = True
        readers = [asyncio.create_task(collected(logs, [WAITING])) for _ in range(3)]
        await asyncio.sleep(0.03)
        log.state("running", 1)
        await asyncio.sleep(0)
        log.end(DONE)
        for reader in readers:
            found = [name for name in await reader if name != "-"]
            assert found == ["state", "state", "picture", "done"]
        del log, readers, reader
        assert logs.find("job") is None

    asyncio.run(check())
