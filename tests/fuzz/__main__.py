"""The command line: many cases in workers, or one by its seed."""

import argparse
import importlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.fuzz.workers import run

KINDS = ("calls", "bundles")


def main() -> int:
    """`python -m tests.fuzz KIND --seed N --count N`, or `--case SEED` for one case without limits."""
    parser = argparse.ArgumentParser("python -m tests.fuzz", description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--seed", type=int, default=1, help="of all cases")
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after these")
    parser.add_argument("--case", type=int, help="run one case here, with its traceback")
    arguments = parser.parse_args()
    if arguments.case is not None:
        module: Any = importlib.import_module(f"tests.fuzz.{arguments.kind}")
        os.environ.update({f"LATENTRT_{name}": value for name, value in module.LIMITS.items()})
        with tempfile.TemporaryDirectory() as folder:
            module.make_files(Path(folder))
            if arguments.kind == "calls":
                print(module.case(arguments.case))
            module.runner()(arguments.case)
        return 0
    start = time.monotonic()
    counts, failed = run(arguments.kind, arguments.seed, arguments.count, arguments.seconds)
    for case, outcome in failed.items():
        print(case, outcome)
    print(
        json.dumps(
            {"kind": arguments.kind, "seed": arguments.seed, "seconds": round(time.monotonic() - start), **counts}
        )
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
