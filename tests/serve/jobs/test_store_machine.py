"""A store against a plain model of it, in any order of operations, with restarts in between."""

import asyncio
import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.postgres import Cluster

from latentrt.serve.jobs.bounds import Bounds
from latentrt.serve.jobs.store import MAX_ATTEMPTS, Claim, Failure, KeptJob

from .store_parts import TTL, Clock, Place, Store, die, new_job, picture, sha256

INPUTS = [b"first", b"second", b"third"]


class StoreMachine(RuleBasedStateMachine):
    """A store against a plain model of it; a folder is closed and opened, cleanly and not, in between."""

    kinds: ClassVar[Sequence[str]] = ("memory", "folder")

    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        kind = data.draw(st.sampled_from(self.kinds))
        self.loop, self.clock, self.ids = asyncio.new_event_loop(), Clock(), itertools.count()
        self.folder = tempfile.TemporaryDirectory()
        self.place = Place(kind, Path(self.folder.name), lambda: _CLUSTERS[0])
        self.jobs: dict[str, dict[str, Any]] = {}
        self.claims: list[Claim] = []
        self.store = self.open()

    def open(self) -> Store:
        return self.place.open(Bounds(result_ttl=TTL), self.clock)

    def run(self, what: Any) -> Any:
        return self.loop.run_until_complete(what)

    def held(self, claim: Claim) -> bool:
        job = self.jobs.get(claim.job)
        return job is not None and job["state"] == "running" and job["number"] == claim.number

    def end(self, name: str, state: str, pictures: int = 0) -> None:
        self.jobs[name] |= {"state": state, "inputs": [], "expires": self.clock.now + TTL, "pictures": pictures}

    @rule(
        client=st.sampled_from("ab"),
        priority=st.sampled_from(["interactive", "batch"]),
        inputs=st.lists(st.sampled_from(INPUTS), unique=True, max_size=2),
        deadline=st.none() | st.integers(1, 150),
    )
    def add(self, client: str, priority: Any, inputs: list[bytes], deadline: int | None) -> None:
        name = f"job{next(self.ids)}"
        until = None if deadline is None else self.clock.now + deadline
        given = {sha256(data): data for data in inputs}
        job = new_job(name, client=client, priority=priority, inputs=given, deadline=until)
        assert self.run(self.store.add(job)).state == "waiting"
        facts = {"client": client, "priority": priority, "inputs": inputs, "deadline": until}
        self.jobs[name] = {**facts, "state": "waiting", "number": 0, "attempts": 0, "alone": False, "pictures": 0}

    def order(self, without: set[str]) -> list[str]:
        waiting = [n for n, job in self.jobs.items() if job["state"] == "waiting" and job["client"] not in without]
        return sorted(waiting, key=lambda name: self.jobs[name]["priority"] == "batch")

    @rule(alone=st.booleans(), without=st.sets(st.sampled_from("ab"), max_size=1))
    def claim(self, alone: bool, without: set[str]) -> None:
        first = next(iter(self.order(without)), None)
        expected = None if first is None or (self.jobs[first]["alone"] and not alone) else first
        kept: KeptJob | None = self.run(self.store.claim(alone=alone, without=without))
        assert (None if kept is None else kept.id) == expected
        if kept is not None:
            job = self.jobs[kept.id]
            job |= {"state": "running", "number": job["number"] + 1, "attempts": job["attempts"] + 1}
            assert (kept.number, kept.attempts, kept.alone) == (job["number"], job["attempts"], job["alone"])
            self.claims.append(kept.claim)
            for data in job["inputs"]:
                assert self.run(self.store.input(sha256(data))) == data

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), counted=st.booleans(), alone=st.booleans())
    def give_back(self, data: st.DataObject, counted: bool, alone: bool) -> None:
        claim, held = data.draw(st.sampled_from(self.claims)), None
        held = self.held(claim)
        assert self.run(self.store.give_back(claim, counted=counted, alone=alone)) == held
        if held:
            job = self.jobs[claim.job]
            job |= {"state": "waiting", "attempts": job["attempts"] - (not counted), "alone": job["alone"] or alone}

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), state=st.sampled_from(["done", "failed"]))
    def finish(self, data: st.DataObject, state: Any) -> None:
        claim = data.draw(st.sampled_from(self.claims))
        held = self.held(claim)
        content = f"{claim.job} {claim.number}".encode()
        result = self.run(self.store.keep_picture(claim, picture(claim.job, data=content)))
        failure = None if state == "done" else Failure("internal", "no \ud800 luck", 0)
        assert self.run(self.store.end(claim, state, pictures=[result], failure=failure)) == held
        if held:
            self.end(claim.job, state, claim.number)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.jobs)))
        kept = self.run(self.store.cancel(name))
        if self.jobs[name]["state"] in ("waiting", "running"):
            self.end(name, "cancelled")
        assert kept.state == self.jobs[name]["state"]

    @rule(seconds=st.sampled_from([1, 30, 60, 110]))
    def sweep(self, seconds: float) -> None:
        self.clock.now += seconds
        self.run(self.store.sweep())
        self.expire()

    def expire(self) -> None:
        for name, job in list(self.jobs.items()):
            if job["state"] == "waiting" and job["deadline"] is not None and job["deadline"] <= self.clock.now:
                self.end(name, "failed")
            if job.get("expires", 1e9) <= self.clock.now:
                job["pictures"] = 0
            if job.get("expires", 1e9) + TTL <= self.clock.now:
                del self.jobs[name]

    @precondition(lambda self: self.place.kind != "memory")
    @rule()
    def restart(self) -> None:
        die(self.store)
        self.store = self.open()
        for name, job in self.jobs.items():
            if job["state"] == "running" and job["attempts"] >= MAX_ATTEMPTS:
                self.end(name, "failed")
            elif job["state"] == "running":
                job |= {"state": "waiting", "alone": True}
        self.expire()

    @invariant()
    def it_is_as_the_model_says(self) -> None:
        if not hasattr(self, "jobs"):
            return
        for name, job in self.jobs.items():
            kept = self.run(self.store.get(name))
            assert (kept.state, kept.number, kept.attempts) == (job["state"], job["number"], job["attempts"])
            assert [self.run(self.store.picture(p)) for p in kept.pictures] == (
                [f"{name} {job['pictures']}".encode()] if job["pictures"] else []
            )
        for client in "ab":
            names = [kept.id for kept in self.run(self.store.of_client(client, limit=1000))]
            assert names == [name for name, job in reversed(self.jobs.items()) if job["client"] == client]
        for place, name in enumerate(self.order(set())):
            assert self.run(self.store.ahead(name)) == place
        used = {data for job in self.jobs.values() for data in job["inputs"]}
        assert {sha256(data) for data in used} <= set(self.store._jobs._files.names("inputs"))

    def teardown(self) -> None:
        if not hasattr(self, "store"):
            return
        self.run(self.store.sweep())
        used = {sha256(data) for job in self.jobs.values() for data in job["inputs"]}
        assert set(self.store._jobs._files.names("inputs")) == used
        self.run(self.store.close())
        self.loop.close()
        self.folder.cleanup()


class PostgresMachine(StoreMachine):
    """The same of PostgreSQL, where each restart is another server."""

    kinds = ("postgres",)

    @invariant()
    def sums_of_clients_are_those_of_their_jobs(self) -> None:
        if hasattr(self, "store"):
            rows, sums = self.store._jobs.rows, "count(*) FILTER (WHERE state IN ('waiting', 'running')) AS open"
            found = rows("SELECT client, bytes, open FROM clients WHERE bytes <> 0 OR open <> 0 ORDER BY client")
            assert found == rows(
                f"SELECT client, sum(bytes)::bigint AS bytes, {sums} FROM jobs GROUP BY client ORDER BY client"
            )


_CLUSTERS: list[Cluster] = []


@pytest.fixture(autouse=True)
def _cluster(request: pytest.FixtureRequest) -> None:
    if issubclass(request.node.cls, TestPostgresMachine) and not _CLUSTERS:
        _CLUSTERS.append(request.getfixturevalue("postgres"))


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
TestPostgresMachine = PostgresMachine.TestCase
TestPostgresMachine.settings = settings(max_examples=4, stateful_step_count=25, deadline=None)


@pytest.mark.slow
class TestPostgresLonger(TestPostgresMachine):  # type: ignore[misc, valid-type]
    """More of it."""

    settings = settings(max_examples=8, stateful_step_count=30, deadline=None)
