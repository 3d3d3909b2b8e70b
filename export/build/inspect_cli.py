"""The command `latentrt inspect`."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from latentrt.runtime.bundle import sizes_text, types_text
from latentrt.runtime.bundle.strict_json import encode

from .fusion import Fusion, Row
from .inspection import Inspected, inspect_engines, tallies

SHOWN = 20  # rows of a table
NAMED = 5  # nodes in a line
HEAD = f"{'time':>6}  {'GFLOP':>8}  {'weights':>8}  {'moved':>8}  {'type':5} {'layer':44} ONNX nodes"


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `inspect` to the command line."""
    parser = commands.add_parser(
        "inspect",
        help="show the kernels of TensorRT engines",
        description="Show of which kernels a bundle's TensorRT engines consist, what is fused, and where the time "
        "probably goes. Needs neither a GPU nor TensorRT, but the package onnx.",
    )
    parser.add_argument("bundle", type=Path, help="the bundle's folder")
    parser.add_argument("--graph", action="append", default=[], help="only engines of this graph; repeatable")
    parser.add_argument("--engine", metavar="FILE", help="only engines whose file name begins like this")
    parser.add_argument("--engines", type=Path, metavar="DIR", help="folder of the engines; default: the bundle's")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the reports; the exit status is 1 if nothing is known of any of the engines."""
    found = list(
        inspect_engines(arguments.bundle, engines=arguments.engines, graphs=arguments.graph, file=arguments.engine)
    )
    if arguments.json:
        print(json.dumps([_plain(one) for one in found], indent=1))
    else:
        print("\n\n".join(map(_text, found)))
    return int(all(one.fusion is None for one in found))


def _plain(one: Inspected) -> dict[str, Any]:
    fusion = None if one.fusion is None else asdict(one.fusion)
    return {"engine": encode(one.record), "problem": one.problem or None, "fusion": fusion}


def _text(one: Inspected) -> str:
    record = one.record
    gpus = record.device or f"compute capability {', '.join(record.compute_capabilities)}"
    kind = f"{record.backend} {record.version}, {gpus}, {types_text(record)}"
    title = f"{record.graph} {sizes_text(record)}: {kind}\n  {record.file}"
    return f"{title}\n  {one.problem}" if one.fusion is None else f"{title}\n{_report(one.fusion)}"


def _report(fusion: Fusion) -> str:
    weights = sum(row.weights for row in fusion.rows)
    lines = [f"  {len(fusion.rows):,} layers, {fusion.flops / 1e9:,.1f} GFLOP, {weights / 1e6:,.1f} MB of weights"]
    for name, tally in tallies(fusion):
        if tally.parts:
            more = f" and {len(tally.others) - NAMED} more" if len(tally.others) > NAMED else ""
            others = f"; not {', '.join(tally.others[:NAMED])}{more}" if tally.others else ""
            lines.append(f"  {name}: {tally.fused} of {tally.parts}{others}")
    lines.append(f"  copies and casts: {fusion.copies} layers, {_mb(fusion.copied)} MB")
    lines += ["", HEAD, *map(_line, fusion.rows[:SHOWN])]
    rest = fusion.rows[SHOWN:]
    if rest:
        lines.append(f"{sum(row.share for row in rest):6.1%}  of {len(rest)} more layers, which --json lists")
    return "\n".join(lines)


def _line(row: Row) -> str:
    more = f" +{len(row.nodes) - NAMED}" if len(row.nodes) > NAMED else ""
    return (
        f"{row.share:6.1%}  {row.flops / 1e9:8.2f}  {_mb(row.weights):>8}  {_mb(row.activations):>8}  "
        f"{row.precision:5} {row.name[:44]:44} {' '.join(row.nodes[:NAMED])}{more}"
    ).rstrip()


def _mb(size: int | None) -> str:
    return "-" if size is None else f"{size / 1e6:,.2f}"
