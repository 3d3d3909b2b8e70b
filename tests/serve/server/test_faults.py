"""A real server under signals and faults: what it has accepted is drawn, and what fails, fails alone."""

import asyncio
import base64
import io
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import psutil
import pytest
from PIL import Image
from support.real_server import (
    ABORTS_AT_ONCE,
    ABORTS_AT_THIRD_CALL,
    HANGS,
    NAN,
    ServerProcess,
    body,
    metric,
    real_server,
)

GENERATIONS = "/v1/images/generations"
PATIENCE = 60.0  # seconds that anything may take


def post(server: ServerProcess, seed: int, path: str = GENERATIONS, **options: Any) -> httpx.Response:
    return httpx.post(server.address + path, json=body(seed, **options), timeout=PATIENCE)


def job_of(server: ServerProcess, name: str) -> dict[str, Any]:
    """A native job as it is now."""
    answer = httpx.get(f"{server.address}/v1/jobs/{name}", timeout=PATIENCE)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def ended(server: ServerProcess, name: str, seconds: float = PATIENCE) -> dict[str, Any]:
    """A native job that has ended."""
    end = time.monotonic() + seconds
    while (job := job_of(server, name))["status"] not in ("done", "failed", "cancelled"):
        assert time.monotonic() < end, job
        time.sleep(0.05)
    return job


def pixels(answer: httpx.Response) -> Any:
    data = base64.b64decode(answer.json()["data"][0]["b64_json"])
    return np.asarray(Image.open(io.BytesIO(data)))


def is_told_to_try_again(answer: httpx.Response) -> bool:
    assert answer.status_code == 503, answer.text
    return answer.headers["x-should-retry"] == "true" and int(answer.headers["retry-after"]) > 0


# --- signals


def test_a_signal_under_load_loses_no_accepted_request() -> None:
    async def load(server: ServerProcess) -> None:
        # without tries of its own, as each request is counted here
        openai_client = openai.AsyncOpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0)
        async with httpx.AsyncClient(base_url=server.address, timeout=PATIENCE) as client, openai_client:
            sent: list[asyncio.Task[Any]] = [
                asyncio.create_task(client.post(GENERATIONS, json=body(seed, steps=8))) for seed in range(10)
            ]
            extra = {"num_inference_steps": 8}
            sent += [
                asyncio.create_task(openai_client.images.generate(prompt=f"a star {i}", extra_body=extra))
                for i in range(10)
            ]
            while not re.search(r"queue_images\{.*\} (1[6-9]|20)", (await client.get("/metrics")).text):
                await asyncio.sleep(0.02)
            server.process.send_signal(signal.SIGTERM)
            while (await client.get("/ready")).status_code != 503:
                await asyncio.sleep(0.01)
            assert not all(task.done() for task in sent)
            assert is_told_to_try_again(await client.post(GENERATIONS, json=body(99)))
            with pytest.raises(openai.InternalServerError) as refused:
                await openai_client.images.generate(prompt="too late")
            assert refused.value.status_code == 503
            assert (await client.get("/live")).status_code == 200
            answers = await asyncio.gather(*sent)
            assert [answer.status_code for answer in answers[:10]] == [200] * 10
            assert all(len(answer.data[0].b64_json) > 100 for answer in answers[10:])

    with real_server("--batch=4", delay=50) as server:
        processes = server.processes()
        assert len(processes) == 2
        asyncio.run(load(server))
        assert server.wait(30) == 0, server.said
        assert not psutil.wait_procs(processes, timeout=5)[1]
        assert "Traceback" not in "".join(server.said)


# --- a job that ends its process


@pytest.mark.slow
@pytest.mark.parametrize("seed", [ABORTS_AT_THIRD_CALL, ABORTS_AT_ONCE])
def test_a_job_that_kills_its_process_is_poison_and_takes_no_other_along(seed: int, tmp_path: Path) -> None:
    with real_server("--batch=4", f"--state={tmp_path / 'state'}", delay=20) as server, ThreadPoolExecutor(8) as pool:
        beside = [post(server, i, "/v1/jobs", steps=6).json()["id"] for i in range(3)]
        waiting = [pool.submit(post, server, 50 + i, steps=100) for i in range(3)]
        while metric(server, "latentrt_unet_image_calls_total") < 8:
            time.sleep(0.02)
        killer = post(server, seed, "/v1/jobs", steps=6).json()["id"]
        beside += [post(server, 10 + i, "/v1/jobs", steps=6).json()["id"] for i in range(3)]
        assert all(is_told_to_try_again(answer.result()) for answer in waiting)
        job = ended(server, killer)
        assert (job["status"], job["error"]["kind"], job["attempts"]) == ("failed", "poison", 3)
        for name in beside:
            other = ended(server, name)
            assert (other["status"], len(other["images"])) == ("done", 1), other
        assert metric(server, "latentrt_device_restarts_total") == 3
        server.wait_until_ready()
        assert post(server, 1).status_code == 200


def test_a_hung_call_is_noticed_and_the_device_starts_anew() -> None:
    with real_server("--batch=1", "--call-limit=1", delay=20) as server:
        assert post(server, 1).status_code == 200
        device = server.devices()[0]
        assert is_told_to_try_again(post(server, HANGS, steps=4))
        assert not psutil.wait_procs([device], timeout=10)[1]
        server.wait_until_ready()
        assert server.devices()[0].pid != device.pid
        assert post(server, 1).status_code == 200
        assert any("longer than its limit" in line for line in server.said)


# --- what fails alone


def test_pictures_and_bodies_fail_alone() -> None:
    with real_server("--max-batch=4") as server, ThreadPoolExecutor(12) as pool:
        alone = pixels(post(server, 7, steps=4))
        well = [pool.submit(post, server, 7, steps=4) for _ in range(6)]
        nan = pool.submit(post, server, NAN, steps=4)
        hostile = [pool.submit(post, server, 8, image=picture) for picture in hostile_pictures()]
        large = [pool.submit(send, server) for send in (declared_10_gb, streamed_10_gb)]
        well += [pool.submit(post, server, 7, steps=4) for _ in range(3)]
        assert nan.result().status_code == 500
        assert nan.result().json()["error"]["code"] == "non_finite_picture"
        assert [answer.result().status_code for answer in hostile] == [400] * len(hostile)
        assert [status.result() for status in large] == [413, 413]
        for answer in well:
            assert answer.result().status_code == 200, answer.result().text
            np.testing.assert_array_equal(pixels(answer.result()), alone)
        assert sum(process.memory_info().rss for process in server.processes()) < 1 << 30


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [mount or "", "-t", "tmpfs", "-o", "size=4m", "latentrt-test", str(folder)]
    if mount is None or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(file: Path) -> None:
    """Take all that is left of a disk."""
    with suppress(OSError), file.open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))


@pytest.mark.slow
def test_a_full_disk_refuses_jobs_and_nothing_else(small_disk: Path) -> None:
    with real_server("--batch=4", f"--state={small_disk / 'state'}", delay=20) as server:
        before = post(server, 1, "/v1/jobs").json()["id"]
        assert ended(server, before)["status"] == "done"
        caught = post(server, 2, "/v1/jobs", steps=100).json()["id"]
        while job_of(server, caught)["status"] == "waiting":  # a claim has to be written, too
            time.sleep(0.02)
        fill(small_disk / "filler")
        refused = post(server, 3, "/v1/jobs")
        assert refused.status_code == 507, refused.text
        assert post(server, 4).status_code == 200
        assert job_of(server, before)["status"] == "done"
        while metric(server, "latentrt_images_total") < 3:
            time.sleep(0.02)
        assert post(server, 5).status_code == 200
        (small_disk / "filler").unlink()
        job = ended(server, caught)
        assert job["status"] == "done" or "cannot be kept" in job["error"]["message"]
        after = post(server, 6, "/v1/jobs")
        assert after.status_code == 202
        assert ended(server, after.json()["id"])["status"] == "done"
        server.process.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0, server.said


def hostile_pictures() -> list[str]:
    """Not a picture; a broken one; one that decodes to 400 million pixels; a path; an array of objects."""
    huge = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(huge, "PNG")
    small = io.BytesIO()
    Image.new("RGB", (64, 64)).save(small, "PNG")
    objects = io.BytesIO()
    np.save(objects, np.array([{}], dtype=object), allow_pickle=True)
    files = [b"nothing", small.getvalue()[:60], huge.getvalue(), objects.getvalue()]
    return [base64.b64encode(data).decode() for data in files] + ["/etc/passwd"]


def declared_10_gb(server: ServerProcess) -> int:
    return asyncio.run(sent(server, f"Content-Length: {10 * 2**30}", b" " * 0x10000))


def streamed_10_gb(server: ServerProcess) -> int:
    return asyncio.run(sent(server, "Transfer-Encoding: chunked", b"10000\r\n" + b" " * 0x10000 + b"\r\n"))


async def sent(server: ServerProcess, header: str, piece: bytes) -> int:
    """The status that answers a body of 10 GB, which is not read to its end."""
    host, port = server.address.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"POST {GENERATIONS} HTTP/1.1\r\nHost: a\r\n{header}\r\n\r\n".encode())
    answer = asyncio.create_task(reader.readline())
    with suppress(ConnectionError):  # it has answered and does not listen any more
        for _ in range(10 * 2**30 // 0x10000):
            writer.write(piece)
            await writer.drain()
            if answer.done():
                break
    status = int((await answer).split()[1])
    writer.close()
    return status
