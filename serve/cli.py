"""`latentrt serve`: pictures over HTTP. Knows flags and settings; the rest is imported when it is needed."""

import argparse
import asyncio
import os
from contextlib import suppress
from typing import Any

from latentrt.runtime.errors import InputError
from latentrt.serve.settings import SETTINGS, Resolved, add_flags, given_flags, resolve, shown_value

from .extra import require_extra

EXAMPLES = """examples:
  latentrt serve                                             # the embedded model, on http://127.0.0.1:8000
  latentrt serve sd15=engines/sd15 sdxl=engines/sdxl --devices cuda:0,cuda:1
  latentrt serve --keys keys.toml --new-key alice            # prints a key once; the file keeps its hash
  latentrt serve sd15=engines/sd15 --host 0.0.0.0 --keys keys.toml --state /var/lib/latentrt
  latentrt serve --config server.toml --print-settings

A flag is stronger than the variable LATENTRT_SERVE_NAME, which is stronger than the key of --config FILE. In the file:
  port = 8000
  [[model]]
  name = "sd15"
  path = "engines/sd15"      # also: backend, engines, trust_engines, sizes, loras, controls, refiner
"""


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "serve",
        help="serve pictures over HTTP",
        description="Serve pictures over HTTP, with the API of OpenAI's images among others.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_flags(parser)
    parser.add_argument("--print-settings", action="store_true", help="show each setting and where it comes from")
    parser.add_argument("--new-key", metavar="NAME", help="add a key of this name to --keys FILE, print it, and exit")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    resolved = resolve(given_flags(arguments), os.environ)
    if arguments.print_settings:
        _print_settings(resolved)
        return 0
    require_extra("serve")
    if arguments.new_key is not None:
        return _print_new_key(resolved, arguments.new_key)
    return _serve(resolved, verbose=arguments.verbose)


def _print_settings(resolved: Resolved) -> None:
    for name in SETTINGS:
        value = shown_value(name, getattr(resolved.settings, name))
        print(f"{name} = {value or 'none'}  ({resolved.sources[name]})")
    models = ",".join(f"{m.name}={m.path or ''}" for m in resolved.settings.models)
    print(f"models = {models}  ({resolved.sources['models']})")


def _print_new_key(resolved: Resolved, name: str) -> int:
    from latentrt.serve.http.keys import new_key

    if resolved.settings.keys is None:
        raise InputError("--new-key needs --keys FILE, the file to add the key to")
    print(new_key(resolved.settings.keys, name))
    return 0


def _serve(resolved: Resolved, *, verbose: bool) -> int:
    from . import wiring
    from .logs import configure
    from .metrics import Metrics
    from .server import Server

    settings = resolved.settings
    configure(settings.log_format, verbose=verbose, access=settings.access_log)

    async def run() -> int:
        metrics = Metrics()
        children = wiring.children_of(settings, verbose=verbose)
        fleet = wiring.fleet_of(wiring.models_of(settings), children, settings, metrics)
        app = wiring.app_of(fleet, settings, metrics, wiring.store_of(settings))
        return await Server(settings, fleet, app, _tell).run()

    return asyncio.run(run())


def _tell(line: str) -> None:
    with suppress(OSError):  # nobody reads it any more, which is no reason to stop
        print(line, flush=True)
