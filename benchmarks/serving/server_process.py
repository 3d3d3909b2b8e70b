"""A server as a process of its own, with any loader: `python -m benchmarks.serving.server_process LOADER [flags]`.

LOADER is `DispatcherOptions.loader`, such as "benchmarks.serving.delayed:load_delayed". All else is as in
`latentrt serve`, but a device that ended is started anew after a tenth of a second.
"""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import psutil

ROOT = Path(__file__).parent.parent.parent
DELAYED = "benchmarks.serving.delayed:load_delayed"
LOADING = 120.0  # seconds that a start may take
_SAID = 200  # lines that are kept


@dataclass(eq=False)
class ServerProcess:
    """A server that runs, or has ended."""

    process: "subprocess.Popen[str]"
    said: list[str]
    address: str = ""

    def kill(self) -> None:
        """End the server and all of its processes, whatever they do."""
        for process in self.processes():
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.process.wait()

    def processes(self) -> list[psutil.Process]:
        """The server's process and those of its devices."""
        try:
            server = psutil.Process(self.process.pid)
            return [server, *server.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def devices(self) -> list[psutil.Process]:
        """The processes of its devices."""
        return self.processes()[1:]

    def wait(self, seconds: float) -> int:
        """The exit status."""
        return self.process.wait(seconds)

    def wait_until_ready(self) -> None:
        """Returns when /ready says so."""
        wake = threading.Event()
        for _ in range(int(LOADING / 0.05)):
            try:
                if httpx.get(f"{self.address}/ready", timeout=LOADING).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            if self.process.poll() is not None:
                break
            wake.wait(0.05)
        raise RuntimeError("the server is not ready:\n" + "".join(self.said))


@contextmanager
def server_process(
    *flags: str, loader: str = DELAYED, cores: Sequence[int] = (), ready: bool = True
) -> Iterator[ServerProcess]:
    """Start a server at a free port; nothing of it is left in the end. `ready`: wait until it takes work."""
    path = os.pathsep.join(map(str, (ROOT / "typings", ROOT, ROOT / "tests")))
    command = [sys.executable, "-m", "benchmarks.serving.server_process", loader, "--port=0", *flags]
    if cores:
        command = ["taskset", "--cpu-list", ",".join(map(str, cores)), *command]
    process = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    )
    server = ServerProcess(process, [])
    reader = threading.Thread(target=_read, args=(server, listens := threading.Event()), daemon=True)
    try:
        reader.start()
        listens.wait(LOADING)
        if not server.address:
            raise RuntimeError("the server does not listen:\n" + "".join(server.said))
        if ready:
            server.wait_until_ready()
        yield server
    finally:
        server.kill()
        reader.join(10)


def _read(server: ServerProcess, listens: threading.Event) -> None:
    """Keep what the server says last, so that it never waits for a reader."""
    assert server.process.stdout is not None
    for line in server.process.stdout:
        server.said.append(line)
        del server.said[:-_SAID]
        if line.startswith("latentrt listens at "):
            server.address = line.split()[-1]
            listens.set()
    listens.set()


def main(loader: str, flags: Sequence[str]) -> int:
    """The process."""
    import argparse

    from latentrt.serve import wiring
    from latentrt.serve.logs import configure
    from latentrt.serve.metrics import Metrics
    from latentrt.serve.server import Server
    from latentrt.serve.settings import add_flags, given_flags, resolve
    from latentrt.serve.worker.process import Timing

    parser = argparse.ArgumentParser()
    add_flags(parser)
    settings = resolve(given_flags(parser.parse_args(flags)), {}).settings
    configure("text", access=settings.access_log)

    async def run() -> int:
        metrics = Metrics()
        children = [
            replace(child, options=replace(child.options, loader=loader)) for child in wiring.children_of(settings)
        ]
        timing = Timing(shortest=0.1, longest=0.5, starts=3)
        fleet = wiring.fleet_of(wiring.models_of(settings), children, settings, metrics, timing)
        app = wiring.app_of(fleet, settings, metrics, wiring.store_of(settings))
        return await Server(settings, fleet, app, lambda line: print(line, flush=True)).run()

    return asyncio.run(run())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
