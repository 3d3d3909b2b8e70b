"""What clients may not do: too much, too slowly, or without a key."""

import base64
import gzip
import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.fake_service import FakeService, served

from latentrt.runtime.errors import InputError
from latentrt.serve.http.app import make_app
from latentrt.serve.http.config import HttpConfig
from latentrt.serve.http.keys import Keys, new_key, read_keys

GENERATIONS = "/v1/images/generations"


@contextmanager
def client_of(service: FakeService, config: HttpConfig | None = None) -> Iterator[httpx.Client]:
    with served(make_app(service, config)) as address, httpx.Client(base_url=address, timeout=30) as client:
        yield client


def connected(client: httpx.Client) -> socket.socket:
    """A bare connection to the same server."""
    return socket.create_connection((client.base_url.host, client.base_url.port or 0))


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def client(service: FakeService) -> Iterator[httpx.Client]:
    with client_of(service) as client:
        yield client


# --- bodies -----------------------------------------------------------------------------------------------------------


def test_a_body_of_10_gb_is_refused_before_it_is_read(client: httpx.Client) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(10_000):
            yield bytes(1 << 20)

    with connected(client) as raw:
        raw.sendall(f"POST {GENERATIONS} HTTP/1.1\r\nHost: x\r\nContent-Length: {10 << 30}\r\n\r\n".encode())
        assert raw.recv(4096).startswith(b"HTTP/1.1 413")
    sent = 0

    def counted() -> Iterator[bytes]:
        nonlocal sent
        for part in endless():
            sent += len(part)
            yield part

    with suppress(httpx.WriteError, httpx.RemoteProtocolError, httpx.ReadError):
        answer = client.post(GENERATIONS, content=counted())  # chunked, so that no length is told
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "body_too_large"
    assert sent < 1 << 30


@pytest.mark.parametrize("declared", [False, True])
def test_a_client_that_still_sends_gets_to_read_why(service: FakeService, declared: bool) -> None:
    header = f"Content-Length: {320 << 16}" if declared else "Transfer-Encoding: chunked"
    piece = bytes(1 << 16) if declared else b"10000\r\n" + bytes(1 << 16) + b"\r\n"
    with client_of(service, HttpConfig(body_bytes=100_000)) as client, connected(client) as raw:
        raw.sendall(f"POST {GENERATIONS} HTTP/1.1\r\nHost: x\r\n{header}\r\n\r\n".encode())
        for _ in range(320):
            raw.sendall(piece)
        raw.sendall(b"" if declared else b"0\r\n\r\n")
        answer = raw.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 413")
        assert b"body_too_large" in answer


def test_a_compressed_body_is_not_read(client: httpx.Client) -> None:
    answer = client.post(
        GENERATIONS, content=gzip.compress(b'{"prompt": "a star"}'), headers={"Content-Encoding": "gzip"}
    )
    assert answer.status_code == 415
    assert "'gzip' is not read" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/live", "/ready", "/v1/models"])
def test_head_is_answered_as_get(client: httpx.Client, path: str) -> None:
    answer = client.head(path)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == client.get(path).headers["content-length"]


def test_a_body_that_waits_to_be_asked_for_is_refused_at_once(client: httpx.Client) -> None:
    with connected(client) as raw:
        expects = f"Content-Length: {10 << 30}\r\nExpect: 100-continue"
        raw.sendall(f"POST {GENERATIONS} HTTP/1.1\r\nHost: x\r\n{expects}\r\n\r\n".encode())
        assert raw.makefile("rb").read().startswith(b"HTTP/1.1 413")


def test_a_body_that_comes_too_slowly_is_given_up(service: FakeService) -> None:
    with client_of(service, HttpConfig(body_seconds=0.3)) as client, connected(client) as raw:
        raw.sendall(f"POST {GENERATIONS} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{".encode())
        start = time.monotonic()
        assert raw.recv(4096).startswith(b"HTTP/1.1 408")
        assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"prompt": "a", "prompt": "b"}',
        b"[" * 100_000,
        b'{"prompt": NaN}',
        b"\xff\xfe{}",
        b'{"prompt": ["a"]}',
    ],
)
def test_bodies_that_are_no_calls(client: httpx.Client, body: bytes) -> None:
    answer = client.post(GENERATIONS, content=body)
    assert answer.status_code == 400
    assert {*answer.json()["error"]} == {"message", "type", "param", "code"}


# --- keys -------------------------------------------------------------------------------------------------------------


def test_keys(service: FakeService, tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    alice = new_key(file, "alice")
    assert alice not in file.read_text()
    assert file.stat().st_mode & 0o77 == 0
    with client_of(service, HttpConfig(keys=file)) as client:

        def status(**headers: str) -> int:
            return client.post(GENERATIONS, json={"prompt": "a star"}, headers=headers).status_code

        assert status() == 401
        assert status(Authorization="Bearer wrong") == 401
        assert status(Authorization=f"Bearer {alice}") == 200
        basic = base64.b64encode(f"anyone:{alice}".encode()).decode()
        assert status(Authorization=f"Basic {basic}") == 200
        assert [ticket.job.client for ticket in service.tickets] == ["alice"] * 2
        bob = new_key(file, "bob")
        with file.open("a") as more:
            more.write("weight = 4\nbatch = true\n")
        assert status(Authorization=f"Bearer {bob}") == 200
        job = service.tickets[-1].job
        assert (job.client, job.weight, job.priority) == ("bob", 4.0, "batch")
        file.write_text("[[key]]\nname = 3\n")  # the keys stay as they were
        assert status(Authorization=f"Bearer {bob}") == 200
        file.write_text("")
        assert status(Authorization=f"Bearer {bob}") == 401
        for path in ("/live", "/ready", "/metrics"):
            assert client.get(path).status_code == 200
        assert client.get("/v1/models").status_code == 401


def test_a_key_needs_a_plain_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="letters, digits"):
        new_key(tmp_path / "keys.toml", 'we ird"x')
    assert not (tmp_path / "keys.toml").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[key]]\nname = 'a'", "sha256"),
        (f"[[key]]\nname = 'a b'\nsha256 = '{'0' * 64}'", "letters"),
        (f"[[key]]\nname = 'a'\nsha256 = '{'0' * 64}'\nwieght = 2", "did you mean 'weight'"),
        (f"[[key]]\nname = 'a'\nsha256 = '{'0' * 64}'\nweight = -1", "0.001"),
        (f"[[key]]\nname = 'a'\nsha256 = '{'0' * 64}'\njobs = true", "jobs"),
        (f"[[key]]\nname = 'a'\nsha256 = '{'0' * 64}'\n" * 2, "two keys"),
        ("[keys]\n", "nothing else"),
        ("[[", "cannot be read"),
    ],
)
def test_damaged_files_of_keys(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        read_keys(file)
    with pytest.raises(InputError):
        Keys(file)


# --- leaving, repeating -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_cancels_its_job(service: FakeService, stream: bool) -> None:
    service.delay = 0.1
    with client_of(service) as client:
        body = json.dumps({"prompt": "a star", "num_inference_steps": 100, "stream": stream}).encode()
        with connected(client) as raw:
            head = f"POST {GENERATIONS} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            raw.sendall(head.encode() + body)
            while not service.tickets:
                time.sleep(0.01)
            time.sleep(0.15)
        for _ in range(100):
            if service.tickets[0].cancelled:
                break
            time.sleep(0.02)
        assert service.tickets[0].cancelled


def test_an_answer_is_given_again_for_its_key(client: httpx.Client, service: FakeService) -> None:
    body = {"prompt": "a star"}

    def asked(key: str, **more: object) -> httpx.Response:
        return client.post(GENERATIONS, json=body | more, headers={"Idempotency-Key": key})

    first, again = asked("a"), asked("a")
    assert first.json() == again.json()
    assert len(service.tickets) == 1
    assert asked("b").json()["data"] != first.json()["data"], "seeds differ"
    other = asked("a", seed=4)
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_key_reused")
    assert asked("c", prompt="fail internal").status_code == 500
    assert asked("c", prompt="fail internal").status_code == 500
    assert len(service.tickets) == 4, "failures are not kept"


def test_a_key_whose_client_left_is_drawn_to_the_end(service: FakeService) -> None:
    service.delay = 0.02
    with client_of(service) as client:
        body = json.dumps({"prompt": "a star", "num_inference_steps": 20}).encode()
        with connected(client) as raw:
            head = (
                f"POST {GENERATIONS} HTTP/1.1\r\nHost: x\r\nIdempotency-Key: k\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            raw.sendall(head.encode() + body)
            while not service.tickets:
                time.sleep(0.01)
        answer = client.post(GENERATIONS, content=body, headers={"Idempotency-Key": "k"})
        assert answer.status_code == 200
        assert len(service.tickets) == 1


# --- operations -------------------------------------------------------------------------------------------------------


def test_live_ready_and_metrics(client: httpx.Client, service: FakeService) -> None:
    assert client.get("/live").json() == {"status": "alive", "models": {"shapes": True}}
    assert client.get("/ready").status_code == 200
    assert client.get("/ready?model=shapes").status_code == 200
    assert client.get("/ready?model=other").status_code == 404
    client.post(GENERATIONS, json={"prompt": "a star"})
    families = {family.name for family in text_string_to_metric_families(client.get("/metrics").text)}
    assert {"latentrt_queue_images", "latentrt_device_ready", "latentrt_build_info"} <= families
    service.is_ready = service.is_live = False
    assert client.get("/ready").status_code == 503
    assert client.get("/ready").headers["retry-after"] == "5"
    assert client.get("/live").status_code == 503


def test_headers(client: httpx.Client) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    answer = client.post(GENERATIONS, json={"prompt": "a"}, headers={"X-Request-Id": "mine-1", "traceparent": trace})
    assert answer.headers["x-request-id"] == "mine-1"
    assert answer.headers["traceparent"] == trace
    assert answer.headers["server-timing"].startswith("queue;dur=1.0, encode;dur=2.0")
    assert (
        client.get("/live", headers={"X-Request-Id": "no spaces, please"}).headers["x-request-id"]
        != "no spaces, please"
    )
    with client.stream("POST", GENERATIONS, json={"prompt": "a", "stream": True}) as stream:
        assert stream.headers["x-accel-buffering"] == "no"
        assert stream.headers["content-type"].startswith("text/event-stream")


def test_pages_of_other_origins(service: FakeService, tmp_path: Path) -> None:
    (tmp_path / "keys.toml").touch()
    config = HttpConfig(keys=tmp_path / "keys.toml", cors=("https://page.example",))
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    with client_of(service, config) as client:
        for origin, allowed in (("https://page.example", "https://page.example"), ("https://other.example", None)):
            answer = client.options(GENERATIONS, headers={"Origin": origin} | asked)
            assert answer.headers.get("access-control-allow-origin") == allowed
            refused = client.post(GENERATIONS, headers={"Origin": origin})
            assert refused.headers.get("access-control-allow-origin") == allowed
            assert refused.status_code == (401 if allowed else 403), "a preflight needs no key, a request does"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("GET", "/v1/models/", 404), ("GET", "/docs", 404), ("GET", GENERATIONS, 405)],
)
def test_errors_of_the_router_have_openais_form(client: httpx.Client, method: str, path: str, status: int) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert {*answer.json()["error"]} == {"message", "type", "param", "code"}


def test_prompts_are_not_logged(client: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG"):
        client.post(GENERATIONS, json={"prompt": "a secret word"})
        client.post(GENERATIONS, json={"prompt": "a secret word", "seed": "x"})
    assert "secret" not in caplog.text


def test_other_pages_cannot_make_a_server_without_keys_work(client: httpx.Client, service: FakeService) -> None:
    own = f"http://{client.base_url.host}:{client.base_url.port}"
    for origin, status in (("https://evil.example", 403), ("null", 403), (own, 200)):
        answer = client.post(GENERATIONS, content=b'{"prompt": "a"}', headers={"Origin": origin})
        assert answer.status_code == status
    assert len(service.tickets) == 1
