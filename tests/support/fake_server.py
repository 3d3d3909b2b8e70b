"""A server over the fake dispatcher, in a process of its own: `python -m support.fake_server DOES [flags of serve]`."""

import argparse
import asyncio
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from support.exports import ROOT

from latentrt.runtime.errors import LatentRTError


def started(does: str, *flags: str) -> "subprocess.Popen[str]":
    """The server; DOES is as in `fake_dispatcher`."""
    path = os.pathsep.join(map(str, (ROOT / "typings", ROOT, ROOT / "tests")))
    command = [sys.executable, "-m", "support.fake_server", does, *flags]
    return subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent,
    )


async def _failing_app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "the state is locked"})


def main() -> int:
    from support.fake_dispatcher import NAME, served_model

    from latentrt.serve import wiring
    from latentrt.serve.cli import _tell
    from latentrt.serve.logs import configure
    from latentrt.serve.metrics import Metrics
    from latentrt.serve.server import App, Server
    from latentrt.serve.settings import add_flags, given_flags, resolve
    from latentrt.serve.worker.process import Timing

    parser = argparse.ArgumentParser()
    add_flags(parser)
    settings = resolve(given_flags(parser.parse_args(sys.argv[2:])), {}).settings
    configure("text")

    async def run() -> int:
        metrics = Metrics()
        children = [
            replace(child, dispatcher=NAME, options=replace(child.options, loader=sys.argv[1]))
            for child in wiring.children_of(settings)
        ]
        models = {spec.name: served_model() for spec in settings.models}
        timing = Timing(shortest=0.1, longest=0.1, starts=2)
        fleet = wiring.fleet_of(models, children, settings, metrics, timing)
        fails = "app" in sys.argv[1]
        app = App(_failing_app) if fails else wiring.app_of(fleet, settings, metrics, wiring.store_of(settings))
        return await Server(settings, fleet, app, _tell).run()

    try:
        return asyncio.run(run())
    except LatentRTError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
