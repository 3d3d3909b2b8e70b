"""The server as a process: it begins, answers, drains and ends as its operator and its orchestrator expect."""

import asyncio
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest
from support.fake_server import started

_BODY = {"model": "shapes", "prompt": "a star", "size": "128x128", "seed": 1}


def line(server: "subprocess.Popen[str]", pattern: str) -> "re.Match[str]":
    """Of stdout, the next line, which matches."""
    assert server.stdout is not None
    text = server.stdout.readline()
    match = re.fullmatch(pattern, text.strip())
    assert match is not None, f"{text!r} instead of {pattern!r}"
    return match


@contextmanager
def running(does: str = "", *flags: str, ready: bool = True) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """A server that is ready, and its address."""
    with started(does, "--port=0", *flags) as server:
        timer = threading.Timer(60, server.kill)
        timer.start()
        try:
            address = line(server, r"latentrt listens at (\S+)")[1]
            if ready:
                line(server, "latentrt is ready: shapes")
            yield server, address
        finally:
            timer.cancel()
            server.kill()


def ended(server: "subprocess.Popen[str]", seconds: float = 15) -> tuple[int, str]:
    """The exit status, and what it said on stderr; no process of it is left."""
    _, said = server.communicate(timeout=seconds)
    return server.returncode, said


async def posted(client: httpx.AsyncClient, **options: object) -> int:
    return (await client.post("/v1/images/generations", json=_BODY | options)).status_code


def test_it_answers_and_ends_with_0_and_leaves_no_process() -> None:
    with running("", "--devices=cpu,cpu") as (server, address):
        children = psutil.Process(server.pid).children(recursive=True)
        assert len(children) == 2
        with httpx.Client(base_url=address) as client:
            assert client.get("/ready").status_code == 200
            assert client.get("/live").status_code == 200
            answer = client.post("/v1/images/generations", json=_BODY)
            assert answer.status_code == 200, answer.text
            assert "server" not in answer.headers
        server.send_signal(signal.SIGTERM)
        status, said = ended(server)
        assert status == 0, said
        assert "Traceback" not in said
        assert not psutil.wait_procs(children, timeout=1)[1]


def test_a_signal_under_load_loses_no_accepted_request() -> None:
    async def load(server: "subprocess.Popen[str]", address: str) -> None:
        async with httpx.AsyncClient(base_url=address, timeout=30) as client:
            accepted = [asyncio.create_task(posted(client, num_inference_steps=10)) for _ in range(12)]
            while "latentrt_running_images" not in (text := (await client.get("/metrics")).text) or not re.search(
                r'queue_images\{device="cpu"\} 1[12]', text
            ):
                await asyncio.sleep(0.02)
            server.send_signal(signal.SIGTERM)
            while (await client.get("/ready")).status_code != 503:  # the listener stays open
                await asyncio.sleep(0.01)
            assert (await client.get("/live")).status_code == 200
            late = await client.post("/v1/images/generations", json=_BODY)
            assert late.status_code == 503
            assert int(late.headers["retry-after"]) > 0
            assert not any(task.done() and task.result() != 200 for task in accepted)
            assert await asyncio.gather(*accepted) == [200] * 12

    with running("delay=0.015", "--devices=cpu") as (server, address):
        asyncio.run(load(server, address))
        status, said = ended(server)
        assert status == 0, said
        assert "Traceback" not in said


def test_work_that_takes_longer_than_the_drain_is_stopped() -> None:
    async def load(server: "subprocess.Popen[str]", address: str) -> None:
        async with httpx.AsyncClient(base_url=address, timeout=30) as client:
            sent = asyncio.create_task(client.post("/v1/images/generations", json=_BODY))
            while 'queue_images{device="cpu"} 1' not in (await client.get("/metrics")).text:
                await asyncio.sleep(0.02)
            server.send_signal(signal.SIGTERM)
            answer = await sent
            assert answer.status_code == 503
            assert "stopped" in answer.text

    with running("delay=2", "--devices=cpu", "--drain-seconds=0.3") as (server, address):
        began = time.monotonic()
        asyncio.run(load(server, address))
        assert ended(server)[0] == 0
        assert time.monotonic() - began < 8


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_stops_at_once(number: signal.Signals, status: int, tmp_path: Path) -> None:
    uds = tmp_path / "socket"
    with running("delay=5", f"--uds={uds}") as (server, address):
        assert address == f"unix:{uds}"
        children = psutil.Process(server.pid).children(recursive=True)

        async def load() -> None:
            transport = httpx.AsyncHTTPTransport(uds=str(uds))
            async with httpx.AsyncClient(base_url="http://server", transport=transport, timeout=30) as client:
                sent = asyncio.create_task(posted(client))
                while 'queue_images{device="auto"} 1' not in (await client.get("/metrics")).text and (
                    'queue_images{device="fake"} 1' not in (await client.get("/metrics")).text
                ):
                    await asyncio.sleep(0.02)
                server.send_signal(number)
                line(server, "latentrt finishes 1 jobs; .*")
                server.send_signal(number)
                with pytest.raises(httpx.TransportError):
                    await sent

        asyncio.run(load())
        assert ended(server, 3)[0] == status
        assert not psutil.wait_procs(children, timeout=2)[1]
        assert not uds.exists()


def test_it_listens_before_it_has_loaded_unless_told_otherwise() -> None:
    with running("loading=0.5", ready=False) as (server, address), httpx.Client(base_url=address) as client:
        assert client.get("/ready").status_code == 503
        assert client.get("/live").status_code == 200
        answer = client.post("/v1/images/generations", json=_BODY)
        assert answer.status_code == 503
        assert "retry-after" in answer.headers
        line(server, "latentrt is ready: shapes")
        assert client.get("/ready").status_code == 200
    with running("loading=0.5", "--preload", ready=False) as (_, address):
        assert httpx.get(f"{address}/ready").status_code == 200


def test_a_signal_while_it_loads_ends_it() -> None:
    for flag in ("--no-preload", "--preload"):
        with started("loading=60", "--port=0", flag) as server:
            if flag == "--preload":
                while not psutil.Process(server.pid).children():
                    time.sleep(0.05)
            else:
                line(server, "latentrt listens at .*")
            server.send_signal(signal.SIGTERM)
            status, said = ended(server)
            assert status == 0, said
            assert "Traceback" not in said


def test_models_that_cannot_be_loaded_end_it_with_their_message() -> None:
    with started("", "--port=0", "unloadable=a") as server:
        status, said = ended(server)
        assert status == 1
        assert "there is no bundle" in said


def test_an_app_that_cannot_start_ends_it() -> None:
    with started("fail=app", "--port=0") as server:
        status, said = ended(server)
        assert status == 1
        assert "the state is locked" in said
        assert "the server cannot start" in said


def test_a_device_that_never_comes_up_ends_it_with_70() -> None:
    with started("", "--port=0", "dies=a") as server:
        status, said = ended(server)
        assert status == 70
        assert "cannot be started any more" in said


def test_a_device_that_dies_is_started_anew_and_the_server_goes_on() -> None:
    with running("delay=1") as (server, address), httpx.Client(base_url=address, timeout=30) as client:
        child = psutil.Process(server.pid).children()[0]
        answers: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: answers.append(client.post("/v1/images/generations", json=_BODY)))
        thread.start()
        while "queue_images" not in (text := httpx.get(f"{address}/metrics").text) or not re.search(
            r"queue_images\{.*\} 1", text
        ):
            time.sleep(0.05)
        child.kill()
        thread.join()
        assert answers[0].status_code == 503
        assert "retry-after" in answers[0].headers
        assert client.get("/ready").status_code == 503
        while client.get("/ready").status_code != 200:
            assert client.get("/live").status_code == 200
            time.sleep(0.05)


def test_headers_must_come_in_time_and_be_small() -> None:
    with running("", "--request-timeout=1") as (_, address):
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=5) as silent:
            assert silent.recv(1) == b""  # closed
        with socket.create_connection((host, int(port)), timeout=5) as slow:
            began = time.monotonic()
            slow.sendall(b"GET / HTTP/1.1\r\n")
            with suppress(OSError):
                while time.monotonic() - began < 10:
                    slow.sendall(b"a: b\r\n")
                    time.sleep(0.1)
            assert time.monotonic() - began < 5
        with socket.create_connection((host, int(port)), timeout=5) as large:
            large.sendall(b"GET /live HTTP/1.1\r\n" + b"a: " + b"b" * 70_000)
            assert large.recv(100).startswith(b"HTTP/1.1 400")
        with httpx.Client(base_url=address) as client:  # a connection that is used again has its time again
            for _ in range(3):
                assert client.get("/live").status_code == 200
                time.sleep(0.6)
