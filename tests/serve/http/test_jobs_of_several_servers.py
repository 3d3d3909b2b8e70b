"""The routes of native jobs at servers that share one PostgreSQL: any of them answers for all."""

import argparse
import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.postgres import Cluster

from latentrt.serve.jobs.postgres.store import PostgresStore, store_in_postgres
from latentrt.serve.settings import add_flags, given_flags, resolve
from latentrt.serve.wiring import runner_options
from tests.serve.jobs.runners import checked

from .test_jobs import Server, serving

SHARED = ("--state=postgresql://db/jobs", "--state-files=s3://bucket/jobs")


@pytest.fixture
def stores(postgres: Cluster, tmp_path: Path) -> tuple[PostgresStore, PostgresStore]:
    schema = postgres.schema()
    first, second = (store_in_postgres(postgres.url(), tmp_path, schema=schema) for _ in range(2))
    return first, second


async def post(server: Server, key: str, **body: Any) -> httpx.Response:
    return await server("POST", "/v1/jobs", json={"prompt": "a star", **body}, headers={"Idempotency-Key": key})


@checked
async def test_any_server_answers_for_all(stores: tuple[PostgresStore, PostgresStore]) -> None:
    async with serving(store=stores[0]) as here, serving(store=stores[1]) as there:
        for server in (here, there):
            server.now = 0.0  # their clocks do not matter for results
        job = await here.create(seed=7)
        kept = await there.ended(job)
        assert kept["status"] == "done"
        pictures = [await server("GET", kept["images"][0]["url"]) for server in (here, there)]
        assert [picture.status_code for picture in pictures] == [200, 200]
        assert pictures[0].content == pictures[1].content
        for server in (here, there):
            text = (await server("GET", kept["urls"]["events"])).text
            assert text.count("event: picture") == text.count("event: done") == 1
            assert [entry["id"] for entry in (await server("GET", "/v1/jobs")).json()["data"]] == [job["id"]]
            assert (await server("GET", f"/v1/jobs/{job['id']}", who="other")).status_code == 404


@checked
async def test_a_key_is_known_to_all_servers(stores: tuple[PostgresStore, PostgresStore]) -> None:
    async with serving(store=stores[0]) as here, serving(store=stores[1]) as there:
        answers = [await post(here, "k", seed=1), await post(there, "k", seed=1), await post(there, "k", seed=2)]
        assert [answer.status_code for answer in answers[:2]] == [202, 202]
        assert answers[0].json()["id"] == answers[1].json()["id"]
        assert answers[2].status_code == 409
        elsewhere = await post(here, "only", seed=1), await post(there, "only", seed=2)
        assert [answer.status_code for answer in elsewhere] == [202, 409]
        assert elsewhere[1].json()["error"]["code"] == "idempotency_key_reused"
        assert elsewhere[1].headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--max-batch=1"], (64, 16)),
        ([*SHARED, "--max-batch=1"], (8, 2)),
        ([*SHARED, "--max-batch=1", "--devices=cpu,cpu,cpu"], (24, 6)),
        ([*SHARED, "--max-batch=64"], (64, 16)),
    ],
)
def test_a_server_leaves_jobs_to_others(flags: list[str], expected: tuple[int, int]) -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    settings = resolve(given_flags(parser.parse_args(flags)), {}).settings
    options = runner_options(settings, max(1, len(settings.devices)))
    assert (options.window, options.client_window) == expected


@checked
async def test_jobs_wait_for_the_database(stores: tuple[PostgresStore, PostgresStore], postgres: Cluster) -> None:
    async with serving(store=stores[0]) as here, serving(store=stores[1]):
        job = await here.ended(await here.create(seed=7))
        await asyncio.to_thread(postgres.stop)
        try:
            for answer in (await post(here, "k", seed=1), await here("GET", f"/v1/jobs/{job['id']}")):
                assert answer.status_code == 503
                assert answer.json()["error"]["code"] == "store_unavailable"
                assert int(answer.headers["Retry-After"]) > 0
        finally:
            await asyncio.to_thread(postgres.start)
        while (answer := await post(here, "k", seed=1)).status_code == 503:
            await asyncio.sleep(0.02)
        assert answer.status_code == 202
