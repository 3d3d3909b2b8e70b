"""The simulated fleet against closed forms, a second simulation, and what must hold of any fleet."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.exports import ROOT
from support.simulated_device import Ask, Simulation

from benchmarks.serving.fleet import __main__ as command
from benchmarks.serving.fleet import report, study
from benchmarks.serving.fleet.call_times import BUILT_IN, GROUP, CallTimes, call_times
from benchmarks.serving.fleet.simulation import ROUTERS, Outcome, simulate
from benchmarks.serving.fleet.traces import KINDS, Trace, trace
from latentrt.runtime.errors import InputError

TIMES = CallTimes("test", {1: 20.0, 2: 26.0, 4: 40.0, 8: 72.0}, encode=3.0, decode=11.0, source="made up")
PATIENT: dict[str, Any] = {"max_wait": 1e6, "client_jobs": 10**6}


def one_client(jobs: Trace) -> Trace:
    return replace(jobs, clients=np.zeros_like(jobs.clients))


def lindley(at: NDArray[np.float64], service: float, servers: int = 1) -> NDArray[np.float64]:
    """Waits of a queue with one line and equal services: each job takes the server that is free first."""
    free = np.zeros(servers)
    waits = np.zeros(len(at))
    for number, arrival in enumerate(at):
        first = int(free.argmin())
        start = max(free[first], arrival)
        waits[number], free[first] = start - arrival, start + service
    return waits


# --- what is true of any fleet ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_job_is_answered_or_refused_once(kind: str, router: str) -> None:
    jobs = trace(kind, 3 * 2.2 / TIMES.image_seconds(20), 25, 11, (4, 20))
    outcome = simulate(TIMES, jobs, 3, router, max_wait=4.0)
    assert len(outcome.latency) == len(jobs.at)
    assert 0 < outcome.refused.sum() < len(jobs.at)
    assert np.array_equal(np.isnan(outcome.latency), outcome.refused)
    least = (TIMES.encode + jobs.calls * TIMES.calls[1] + TIMES.decode) / 1000
    assert (outcome.latency >= least - 1e-9)[~outcome.refused].all()
    assert set(outcome.replicas) == {0, 1, 2}
    assert 0.9 < outcome.busy <= 1
    assert outcome.end == pytest.approx(np.nanmax(jobs.at + outcome.latency))
    assert outcome.end > jobs.seconds


def same(one: Outcome, other: Outcome) -> bool:
    return np.array_equal(one.latency, other.latency, equal_nan=True) and np.array_equal(one.replicas, other.replicas)


@pytest.mark.parametrize("router", ROUTERS)
def test_equal_seeds_have_equal_outcomes(router: str) -> None:
    first, again = (simulate(TIMES, trace("bursts", 15.0, 8, 5), 4, router, seed=5) for _ in range(2))
    assert same(first, again)
    if router != "round robin":
        assert not same(first, simulate(TIMES, trace("bursts", 15.0, 8, 5), 4, router, seed=6))
    assert not same(first, simulate(TIMES, trace("bursts", 15.0, 8, 6), 4, router, seed=5))


def test_one_replica_is_the_dispatchers_own_simulation() -> None:
    """That of the dispatcher's tests, with jobs of several lengths and clients."""
    jobs = trace("poisson", 0.9 / TIMES.image_seconds(12), 60, 23, (4, 20))
    found = simulate(TIMES, jobs, 1, "random", max_wait=1e4)
    simulation = Simulation(TIMES.costs(), max_wait=1e4)  # type: ignore[arg-type]
    asks = [
        Ask(float(at), f"c{client}", GROUP, int(calls))
        for at, client, calls in zip(jobs.at, jobs.clients, jobs.calls, strict=True)
    ]
    simulation.run(asks, until=1e4)
    expected = [outcome.finished - outcome.ask.at for outcome in simulation.outcomes.values() if outcome.finished]
    assert len(expected) == len(jobs.at) > 100
    np.testing.assert_allclose(found.latency, expected, atol=1e-9)


# --- closed forms -----------------------------------------------------------------------------------------------------

CALLS = 3
SERVICE = (TIMES.encode + CALLS * TIMES.calls[1] + TIMES.decode) / 1000


def pollaczek_khinchine(load: float) -> float:
    """The mean wait of an M/D/1 queue."""
    return load * SERVICE / (2 * (1 - load))


@pytest.mark.parametrize("load", [0.4, 0.7])
def test_one_replica_at_batch_1_is_an_m_d_1_queue(load: float) -> None:
    """Job by job as Lindley's recursion; whose mean over many traces is Pollaczek and Khinchine's formula."""
    traces = [one_client(trace("poisson", load / SERVICE, 300, seed, (CALLS,))) for seed in range(500, 540)]
    waits = np.concatenate([lindley(jobs.at, SERVICE) for jobs in traces])
    assert waits.mean() == pytest.approx(pollaczek_khinchine(load), rel=0.05)
    outcome = simulate(TIMES, traces[0], 1, "least work", max_batch=1, **PATIENT)
    np.testing.assert_allclose(outcome.latency - SERVICE, waits[: len(outcome.latency)], atol=1e-9)
    assert outcome.busy == pytest.approx(len(traces[0].at) * SERVICE / 300, rel=0.01)


def test_random_routing_makes_independent_queues() -> None:
    """A Poisson process that is split by lot is Poisson again, so each replica is an M/D/1 queue of its own."""
    load, replicas = 0.6, 5
    jobs = one_client(trace("poisson", replicas * load / SERVICE, 100, 41, (CALLS,)))
    found = simulate(TIMES, jobs, replicas, "random", max_batch=1, **PATIENT).latency.mean() - SERVICE
    assert found == pytest.approx(pollaczek_khinchine(load), rel=0.25)  # three standard errors; in turn it is a third


def test_least_work_is_nearly_one_line_for_all() -> None:
    """Where services are equal, the server with the least work is free first; work is known to one call."""
    replicas, load = 4, 0.85
    jobs = one_client(trace("poisson", replicas * load / SERVICE, 60, 43, (CALLS,)))
    best = lindley(jobs.at, SERVICE, replicas).mean() + SERVICE
    found = simulate(TIMES, jobs, replicas, "least work", max_batch=1, **PATIENT).latency.mean()
    assert best - 1e-9 <= found <= 1.15 * best


# --- routing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [104_729])
def test_least_work_is_no_worse_than_random(kind: str, seed: int) -> None:
    jobs = trace(kind, 8 * 0.8 / TIMES.image_seconds(20), 30, seed)
    routers = ("random", "two choices", "least work")
    found = {router: simulate(TIMES, jobs, 8, router, seed=seed) for router in routers}
    p99 = {router: np.nanpercentile(outcome.latency, 99) for router, outcome in found.items()}
    assert p99["least work"] <= p99["random"]
    assert found["least work"].refused.mean() <= found["random"].refused.mean() + 0.002
    if kind == "poisson":  # where it matters: no burst fills all replicas at once
        assert p99["least work"] < 0.7 * p99["random"]
        assert p99["two choices"] < 0.8 * p99["random"]


# --- traces -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_traces_have_the_rate_that_was_asked_for(kind: str) -> None:
    jobs = trace(kind, 50.0, 400, 3)
    assert (np.diff(jobs.at) >= 0).all()
    assert 0 <= jobs.at[0] <= jobs.at[-1] < 400
    assert len(jobs.at) == pytest.approx(20_000, rel=0.03)
    counts = np.histogram(jobs.at, bins=400)[0]
    dispersion = counts.var() / counts.mean()  # 1 for Poisson
    assert (0.8 < dispersion < 1.25) if kind == "poisson" else dispersion > 5


def test_bursts_are_at_the_same_time_for_fleets_of_all_sizes() -> None:
    few, many = (np.histogram(trace("bursts", rate, 200, 9).at, bins=100)[0] for rate in (100.0, 900.0))
    assert np.corrcoef(few, many)[0, 1] > 0.9


# --- call times -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUILT_IN)
def test_times_that_are_built_in(name: str) -> None:
    times = call_times(name)
    counts = sorted(times.calls)
    assert counts == [1, 2, 4, 8]
    assert all(times.calls[a] < times.calls[b] < times.calls[a] * b / a for a, b in pairwise(counts))
    assert ("predicted" in times.source) == (name != "shapes")


def test_batches_between_are_on_a_line_and_the_cap_is_the_dispatchers() -> None:
    costs = TIMES.costs()
    assert costs.cap(GROUP) == 8
    assert costs.call(GROUP, 3) == pytest.approx(33.0)
    assert costs.call(GROUP, 6) == pytest.approx(56.0)
    flat = replace(TIMES, calls={1: 10.0, 2: 19.8, 4: 39.0})
    assert flat.costs().cap(GROUP) == 1  # two are 1 % cheaper, four 2.5 %
    assert TIMES.costs(2).cap(GROUP) == 2


def test_times_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"calls": {"1": 9, "2": 12.5}, "encode": 1, "decode": 30, "source": "measured: a T4"}))
    assert call_times(str(file)) == CallTimes("mine", {1: 9.0, 2: 12.5}, 1.0, 30.0, "measured: a T4")


def test_times_that_a_server_has_kept(tmp_path: Path) -> None:
    file = tmp_path / "costs-0123.json"
    TIMES.measured().save(file, "identity")
    times = call_times(str(file))
    assert times.calls == {1: 20.0, 2: 26.0, 3: 33.0, 4: 40.0, 5: 48.0, 6: 56.0, 7: 64.0, 8: 72.0}
    assert (times.encode, times.decode) == (3.0, 11.0)


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"calls": {"1": 2}}', '{"calls": {"2": 2}, "encode": 1, "decode": 1}', '{"calls": {}, "encode": 1,'
     ' "decode": 1}', '{"calls": {"1": -2}, "encode": 1, "decode": 1}', '{"calls": [1], "encode": 1, "decode": 1}',
     '{"calls": {"1": NaN}, "encode": 1, "decode": 1}', '{"format": "latentrt.costs/1", "calls": []}'],
)  # fmt: skip
def test_what_is_no_table_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.json"
    file.write_text(text)
    with pytest.raises(InputError, match=r"bad\.json: .*expected one of shapes, sd15-l4, a server's costs"):
        call_times(str(file))


# --- the command and its results --------------------------------------------------------------------------------------


def test_the_command_writes_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "Plan", lambda **given: study.Plan(**given, replicas=(1, 2), around=(4, 32)))
    monkeypatch.setattr("sys.argv", ["fleet", "--seconds", "3", "--seed", "7", "--out", str(tmp_path)])
    assert command.main() == 0
    document = json.loads((tmp_path / "fleet-shapes.json").read_text())
    assert document == json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(document["results"]) == 2 * (4 * 2 + 2 * 2)
    (short,) = study.of(document["results"], study="same jobs", trace="poisson", router="random", replicas=4)
    (ample,) = study.of(document["results"], study="same jobs", trace="poisson", router="random", replicas=32)
    assert ample["cost"] > short["cost"]
    least = call_times("shapes").image_seconds(20) / 3.6  # of a thousand images in full batches, at 1 an hour
    assert all(run["cost"] >= least for run in document["results"])
    assert short["cost"] == pytest.approx(least, rel=0.2)  # the last batches are not full
    assert "| 2 | " in (tmp_path / "fleet-shapes.md").read_text()
    assert (tmp_path / "fleet-shapes.png").stat().st_size > 10_000


def test_a_missing_table_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["fleet", "--call-times", "h100"])
    assert command.main() == 1
    assert "--call-times h100" in capsys.readouterr().err


@pytest.mark.parametrize("name", BUILT_IN)
def test_committed_reports_are_those_of_their_results(name: str) -> None:
    """And a run of them is what the code gives now."""
    folder = ROOT / "benchmarks" / "results"
    document = json.loads((folder / f"fleet-{name}.json").read_text())
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in document["plan"].items()}
    times, plan = call_times(name), study.Plan(**given)
    text = (folder / f"fleet-{name}.md").read_text()
    ran = text.partition("Made by `")[2].partition("`")[0]  # the command
    assert report.markdown(times, plan, document["results"], ran, f"fleet-{name}.png") == text
    runs = document["results"]
    case = study.Case(**{key: runs[0][key] for key in ("study", "trace", "router", "replicas", "rate")})
    found = study.figures(times, plan, case)
    numbers = {key: value for key, value in runs[0].items() if not isinstance(value, str)}
    assert {key: found[key] for key in numbers} == pytest.approx(numbers, rel=1e-4)
