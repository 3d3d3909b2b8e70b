"""How many replicas, and how to route to them: a fleet in virtual time, with the dispatcher's own policy.

    python -m benchmarks.serving.fleet [--call-times shapes|sd15-l4|FILE] [--steps 20 30] [--price 1] [--out FOLDER]

Nothing is drawn. `--call-times` is what a device takes: `shapes` was measured on two cores; `sd15-l4` is a prediction,
not a measurement of that GPU; FILE is what a server has kept of its own device (costs-….json in its cache folder), or
{"calls": {"1": ms, "2": ms, …}, "encode": ms, "decode": ms}. The last line is JSON.
"""

import argparse
import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.common.harness import show_table
from latentrt.runtime.errors import LatentRTError
from latentrt.runtime.files import written_whole

from .call_times import call_times
from .report import draw_chart, markdown
from .study import Plan, run_all


def rounded(document: Any) -> Any:
    """As JSON holds it, with six digits, so that the tables can be made from the file."""
    return json.loads(json.dumps(document), parse_float=lambda digits: float(f"{float(digits):.6g}"))


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving.fleet", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--call-times", default="shapes", help="shapes, sd15-l4, or a file; default: shapes")
    parser.add_argument("--steps", type=int, nargs="+", default=[20], help="UNet calls of an image; default: 20")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each trace; default: 60")
    parser.add_argument("--load", type=float, default=0.8, help="of each replica as the fleet grows; default: 0.8")
    parser.add_argument("--price", type=float, default=1.0, help="of a replica and hour; default: 1")
    parser.add_argument("--seed", type=int, default=1, help="default: 1")
    parser.add_argument("--out", type=Path, help="folder for fleet-NAME.json, .md and .png")
    arguments = parser.parse_args()
    if min(*arguments.steps, arguments.seconds, arguments.load) <= 0:
        parser.error("--steps, --seconds and --load: expected numbers above 0")
    try:
        times = call_times(arguments.call_times)
    except LatentRTError as error:
        print(error, file=sys.stderr)
        return 1
    plan = Plan(
        steps=tuple(arguments.steps),
        load=arguments.load,
        seconds=arguments.seconds,
        seed=arguments.seed,
        price=arguments.price,
    )
    document = rounded(
        {"benchmark": "fleet", "call_times": asdict(times), "plan": asdict(plan), "results": run_all(times, plan)}
    )
    found = document["results"]
    head = ("study", "trace", "routing", "replicas", "refused %", "p50 s", "p99 s", "cost of 1,000")
    names = ("study", "trace", "router")
    show_table(
        head,
        [
            [*(run[name] for name in names), str(run["replicas"]), f"{100 * run['refused']:.2f}"]
            + [f"{run[name]:.3g}" for name in ("p50", "p99", "cost")]
            for run in found
        ],
    )
    text = json.dumps(document)
    if arguments.out:
        name = f"fleet-{times.name}"
        given = [word for word in sys.argv[1:] if word]
        command = shlex.join(["python", "-m", "benchmarks.serving.fleet", *given])
        draw_chart(times, plan, found, arguments.out / f"{name}.png")
        for suffix, content in (("json", text + "\n"), ("md", markdown(times, plan, found, command, f"{name}.png"))):
            with written_whole(arguments.out / f"{name}.{suffix}") as temporary:
                temporary.write_text(content, encoding="utf-8")
    print(f"\n{text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
