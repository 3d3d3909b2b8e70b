"""A real Triton Inference Server, from the wheel of PyTriton: 2.51, with nothing but the Python backend.

Its stub embeds a Python that takes modules from the environment in PATH and ignores PYTHONPATH, and was compiled for
NumPy 1. So it gets an environment of its own, which has NumPy 1 and borrows all else from that of the tests.
"""

import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from .exports import ROOT

PACKAGES = ("nvidia-pytriton==0.7.0", "numpy<2")
LOADING = 120.0  # seconds


@dataclass(frozen=True)
class TritonServer:
    """A server that runs."""

    process: "subprocess.Popen[bytes]"
    log: Path
    http: str
    grpc: str

    def devices(self, model: str) -> list[psutil.Process]:
        """The processes that draw for a model."""
        stubs = [one for one in psutil.Process(self.process.pid).children() if f"/{model}/" in " ".join(one.cmdline())]
        return [child for stub in stubs for child in stub.children()]


def environment(folder: Path) -> Path:
    """The folder of the environment, which is made if it is not there: some ten seconds, and 48 MB from PyPI."""
    packages = _site_packages(folder)
    paths = f"{ROOT / 'typings'}\n{ROOT}\nimport site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    made, facts = folder / "made", "\n".join([*PACKAGES, sys.base_prefix, paths])
    if made.is_file() and made.read_text() == facts:
        return folder
    shutil.rmtree(folder)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps")
    subprocess.run([*pip, "--target", packages, *PACKAGES], check=True)
    (packages / "tests.pth").write_text(paths)
    triton = packages / "pytriton" / "tritonserver"
    stub = triton / "python_backend_stubs" / _version() / "triton_python_backend_stub"
    shutil.copy(stub, triton / "backends" / "python")
    made.write_text(facts)
    return folder


def _version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _site_packages(folder: Path) -> Path:
    return folder / "lib" / f"python{_version()}" / "site-packages"


@contextmanager
def triton_server(folder: Path, repository: Path, log: Path) -> Iterator[TritonServer]:
    """A server of these models. `folder`: what `environment` made."""
    packages = _site_packages(folder)
    triton = packages / "pytriton" / "tritonserver"
    http, grpc = _free_ports(2)
    command = [
        *(triton / "bin" / "tritonserver", f"--model-repository={repository}", "--disable-auto-complete-config"),
        *(f"--backend-directory={triton / 'backends'}", "--allow-metrics=false", "--exit-timeout-secs=20"),
        *("--http-address=127.0.0.1", f"--http-port={http}", "--grpc-address=127.0.0.1", f"--grpc-port={grpc}"),
        f"--backend-config=python,shm-region-prefix-name=latentrt_tests_{os.getpid()}",
    ]
    # The stub shall find the library of the Python that runs the tests, and not the system's.
    libraries = os.pathsep.join([sysconfig.get_config_var("LIBDIR"), str(packages / "nvidia_pytriton.libs")])
    variables = {"PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}", "LD_LIBRARY_PATH": libraries}
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, **variables})
    server = TritonServer(process, log, f"127.0.0.1:{http}", f"127.0.0.1:{grpc}")
    try:
        _wait_until_ready(server)
        yield server
        process.terminate()
        assert process.wait(60) == 0, log.read_text(errors="replace")[-3000:]
    finally:
        _kill(process)


def _wait_until_ready(server: TritonServer) -> None:
    end = time.monotonic() + LOADING
    while server.process.poll() is None and time.monotonic() < end:
        try:
            if httpx.get(f"http://{server.http}/v2/health/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError(server.log.read_text(errors="replace")[-3000:])


def _kill(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        for one in [*psutil.Process(process.pid).children(recursive=True), process]:
            one.kill()
    process.wait()


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
