"""latentrt on a small cluster of Ray of its own, without dashboard: the parent, and `python -m support.ray_server`.

The process takes a line of JSON for each command: the arguments of an application to run instead of the present one.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import psutil
from support.exports import ROOT
from support.real_server import SIZE

DELAY = "delay-100"  # milliseconds of a UNet call
# Two replicas of the engine on CPUs, which serve the embedded model, and the same with calls that take longer.
ARGUMENTS: Mapping[str, Any] = {
    "models": ",".join(f"{name}={ROOT / 'engines' / 'shapes'}" for name in ("shapes", DELAY)),
    "devices": "cpu",
    "backend": "onnxruntime",
    "sizes": f"{SIZE[0]}x{SIZE[1]}",
    "auth": "false",
    "min_replicas": 2,
    "cpus": "0.5",
    "batch": 2,
}
LOADER = "support.real_server:load_with_faults"
SAID = "latentrt test: "
STARTING = 120.0  # seconds


@dataclass(eq=False)
class RayServer:
    """A cluster with one application. `metrics`: where Ray tells those of its node."""

    process: "subprocess.Popen[str]"
    address: str
    metrics: str
    log: Path
    deployed: threading.Event = field(default_factory=threading.Event)

    def deploy(self, arguments: Mapping[str, Any]) -> None:
        """Begin to run the application with other arguments; `deployed` is set when it does."""
        self.deployed.clear()
        assert self.process.stdin is not None
        self.process.stdin.write(f"{json.dumps(arguments)}\n")
        self.process.stdin.flush()

    def processes(self) -> list[psutil.Process]:
        """Of the whole cluster."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def replicas(self, deployment: str) -> list[psutil.Process]:
        """Processes of a deployment's replicas."""
        title = f"ray::ServeReplica:default:{deployment}"
        found = []
        for process in self.processes():
            with suppress(psutil.Error):
                if process.cmdline() and process.cmdline()[0].startswith(title):
                    found.append(process)
        return found


@contextmanager
def ray_server(arguments: Mapping[str, Any], folder: Path, **environment: str) -> Iterator[RayServer]:
    """Start a cluster at free ports; nothing of it is left in the end. `folder`: for its log."""
    port, metrics = _free_ports(2)
    path = os.pathsep.join(map(str, (ROOT / "typings", ROOT, ROOT / "tests")))
    log = folder / "ray.log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "support.ray_server", str(port), str(metrics), json.dumps(arguments)],
            env={
                **os.environ,
                "PYTHONPATH": path,
                "RAY_SERVE_PROXY_PREFER_LOCAL_NODE_ROUTING": "0",
                "RAY_local_fs_capacity_threshold": "1",  # else a disk that is 95 % full refuses every object
                **environment,
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            cwd=ROOT,
            start_new_session=True,
        )
    server = RayServer(process, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{metrics}/metrics", log)
    assert process.stdout is not None
    threading.Thread(target=_hear, args=(process.stdout, server), daemon=True).start()
    try:
        if not server.deployed.wait(STARTING) or process.poll() is not None:
            raise RuntimeError(f"the application does not run:\n{log.read_text()[-5000:]}")
        yield server
    finally:
        _end(process)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in sockets]


def _hear(stdout: "IO[str]", server: RayServer) -> None:
    for line in stdout:
        if line.startswith(SAID):
            server.deployed.set()
    server.deployed.set()


def _end(process: "subprocess.Popen[str]") -> None:
    """Kill all processes of the cluster; those of Ray have sessions of their own."""
    with suppress(psutil.NoSuchProcess):
        children = psutil.Process(process.pid).children(recursive=True)
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def main(port: int, metrics: int, arguments: Mapping[str, Any]) -> None:
    """The process."""
    import ray
    from ray import serve

    from latentrt.serve.ray.settings import application
    from latentrt.serve.ray_app import deployments

    ray.init(
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=True,
        object_store_memory=200 << 20,
        _metrics_export_port=metrics,
    )
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    while True:
        serve.run(deployments(application(arguments, {}), LOADER))
        print(SAID + "deployed", flush=True)
        if not (line := sys.stdin.readline()):
            return
        arguments = json.loads(line)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]))
