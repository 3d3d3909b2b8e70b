"""Answers that are kept for requests with a key."""

import asyncio

import pytest
from starlette.responses import Response

from latentrt.serve.http.errors import ApiError
from latentrt.serve.http.idempotency import Idempotency


def test_an_error_is_told_only_to_those_who_asked_for_it() -> None:
    async def check() -> None:
        kept, ready = Idempotency(60), asyncio.Event()

        async def fails() -> Response:
            await ready.wait()
            raise ApiError(504, "too late")

        async def works() -> Response:
            return Response("well")

        async def another() -> Response:
            await ready.wait()  # woken in the same turn of the loop, just after the one that fails
            return await kept.answer("me", "another", b"", works)

        failing = asyncio.create_task(kept.answer("me", "fails", b"", fails))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        working = asyncio.create_task(another())
        await asyncio.sleep(0)
        ready.set()
        assert (await working).body == b"well"
        with pytest.raises(ApiError):
            await failing
        assert (await kept.answer("me", "fails", b"", works)).body == b"well", "an error is not kept"

    asyncio.run(check())
