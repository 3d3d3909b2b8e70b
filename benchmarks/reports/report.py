"""Write `report.md` and its charts from the JSON files of a device.

    python -m benchmarks.reports.report benchmarks/results/DEVICE

Benchmarks without a JSON file have no section.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from . import charts
from .peers import calls_section, peers_section, sizes_section
from .tables import Run, load, machines, measured, number, of_kind, table, title

# --- sections ---------------------------------------------------------------------------------------------------------


def stages_section(run: Run, folder: Path) -> Iterator[str]:
    """Milliseconds by stage and backend, and their ratios to the floor."""
    results = run["results"]
    model, floors = results["model"], results["floors"]
    yield f"## Stages: {title(run)}"
    rates = ", ".join(f"{name} {rate / 1e9:,.0f} G/s" for name, rate in results["rates"].items())
    yield f"Floor: the graph's operations or bytes over what this machine reaches at most ({rates})."
    backends = list(results["milliseconds"])
    head = ["stage", "runs", "floor", *(column for backend in backends for column in (backend, "over the floor"))]
    rows = []
    for stage in results["milliseconds"][backends[0]]:
        floor = floors.get(stage, {}).get("floor_ms")
        runs = results["steps"] if stage == "denoise" else 1
        row = [stage, str(runs), f"{number(floor)} ms" if floor else "-"]
        for backend in backends:
            spent = results["milliseconds"][backend][stage]
            row += [f"{number(spent)} ms", f"{spent / floor:.2f}" if floor else "-"]
        rows.append(row)
    yield table(head, rows)
    yield f"![stages and floor](stages-{model}.png)"
    charts.stages(results, title(run), folder / f"stages-{model}.png")


def latency_section(run: Run, folder: Path) -> Iterator[str]:
    """Latency of whole calls by steps, batch and size."""
    model = run["results"]["model"]
    yield f"## Calls: {model}"
    yield "Whole calls of a loaded pipeline, pictures included; DDIM, guidance on, one UNet call a step."
    found, rows = measured(run), []
    for name, record in found.items():
        if name.endswith((": first", ": throughput")):
            continue
        spans = [f"{number(record[q])} s" for q in ("p50", "min", "p90", "p99")]
        rate, first = (found.get(f"{name}: {figure}") for figure in ("throughput", "first"))
        more = f"{number(rate['p50'])}" if rate else "-", f"{number(first['p50'])} s" if first else "-"
        rows.append((name.removeprefix(f"{model}: "), *spans, *more))
    yield table(("call", "p50", "min", "p90", "p99", "pictures/s", "the first time"), rows)
    yield f"![latency by batch](batches-{model}.png)"
    charts.batches(measured(run), model, folder / f"batches-{model}.png")


def ideas_section(run: Run) -> Iterator[str]:
    """The gain of each idea."""
    results, found = run["results"], measured(run)
    model = results["model"]
    yield f"## What each idea is worth: {model}, {results['width']}x{results['height']}"
    yield f"A loop of {results['calls']} calls; above 1 the idea pays."
    rows = []
    for idea, ratio in results["ratios"].items():
        pair = [found[f"{model}: {idea}: {which}"] for which in ("with", "without")]
        rows.append((idea, *(f"{number(record['p50'])} {record['unit']}" for record in pair), f"{ratio:.3f}"))
    yield table(("idea", "with", "without", "without / with"), rows)


def ports_section(run: Run) -> Iterator[str]:
    """What inputs for ControlNets and adapters cost a call that feeds none of them."""
    results = run["results"]
    size = f"{results['width']}x{results['height']}"
    yield f"## Unfed ports: {results['model']}, {results['unet_parameters'] / 1e6:.0f} M parameters, {size}"
    yield "One guided call of a bundle that was exported with `--ports`, all of them zeros, beside one without."
    rows = []
    for name, record in measured(run).items():
        _, backend, ports = name.split(": ")
        row = results["backends"][backend][ports]
        milliseconds = number(1000 * record["p50"])
        rows.append((backend, ports, f"{milliseconds} ms", f"{row['ratio']:.3f}", f"{row['difference']:.0e}"))
    yield table(("", "ports", "a call", "ratio", "difference of latents"), rows)


def cold_start_section(run: Run) -> Iterator[str]:
    """Time of imports, and of the first pictures of a process."""
    results = run["results"]
    yield f"## Cold start: {results['bundle']}, {results['steps']} steps"
    rows = [
        (name.partition(": ")[2], f"{number(record['p50'])} ms", f"{number(record['min'])} ms")
        for name, record in measured(run).items()
    ]
    yield table(("", "p50", "min"), rows)


def export_section(runs: Sequence[Run]) -> Iterator[str]:
    """Time and memory of exports."""
    rows = []
    for run in runs:
        results = run["results"]
        peak = max(results["peak_bytes"].values())
        seconds = results["seconds_without_parity"], results["seconds"].get("parity with PyTorch", 0.0)
        size = results["bundle_bytes"] / 1e9
        name = results["checkpoint"].removesuffix(".ckpt")
        rows.append(
            (name, results["precision"], *(f"{s:,.0f} s" for s in seconds), f"{peak / 1e9:.1f} GB", f"{size:.2f} GB")
        )
    yield "## Export"
    yield table(("checkpoint", "precision", "export", "parity", "peak memory", "bundle"), rows)


def builds_section(runs: Sequence[Run]) -> Iterator[str]:
    """Time, memory and size of engines."""
    rows = []
    for run in runs:
        for graph, f in run["results"]["graphs"].items():
            figures = f"{f['seconds']:.0f} s", f"{f['peak_bytes'] / 1e9:.1f} GB", f"{f['engine_bytes'] / 1e6:,.0f} MB"
            rows.append((run["results"]["bundle"], f"{graph} {f['sizes']}", *figures))
    yield "## Engines of TensorRT for RTX"
    yield table(("bundle", "engine", "build", "peak memory", "size"), rows)


def targets_section(runs: Mapping[str, Run]) -> Iterator[str]:
    """All targets, and whether they are met."""
    rows = []
    for stem, run in runs.items():
        for target in run["targets"]:
            verdict = "met" if target["met"] else "**missed**"
            value = f"{number(target['value'])} {target['unit']}"
            rows.append((stem, target["name"], value, f"{target['at_most']:g}", verdict))
    if rows:
        yield "## Targets"
        yield table(("benchmark", "figure", "found", "at most", ""), rows)


# --- the whole --------------------------------------------------------------------------------------------------------


def report(runs: Mapping[str, Run], folder: Path) -> str:
    """The text of `report.md`; also writes the charts."""
    parts = [
        f"# {folder.name}",
        "Made by `make bench`; every figure stands in a JSON file beside this one. Measured on:",
        machines(runs),
    ]
    for run in of_kind(runs, "peers"):
        parts += peers_section(run, folder)
    for run in of_kind(runs, "peers")[:1]:
        parts += sizes_section(run)
    for run in of_kind(runs, "calls"):
        parts += calls_section(run)
    for run in of_kind(runs, "stages"):
        parts += stages_section(run, folder)
    for run in of_kind(runs, "latency"):
        parts += latency_section(run, folder)
    for run in of_kind(runs, "ideas"):
        parts += ideas_section(run)
    for run in of_kind(runs, "cold_start"):
        parts += cold_start_section(run)
    for run in of_kind(runs, "ports"):
        parts += ports_section(run)
    if exports := of_kind(runs, "export_cost"):
        parts += export_section(exports)
    if builds := of_kind(runs, "engine_build"):
        parts += builds_section(builds)
    parts += targets_section(runs)
    return "\n\n".join(parts) + "\n"


def write(folder: Path) -> Path:
    """Write `report.md` and its charts into the folder of a device."""
    runs = load(folder)
    if not runs:
        raise SystemExit(f"{folder} holds no JSON files of benchmarks: run `make bench` first")
    file = folder / "report.md"
    file.write_text(report(runs, folder), encoding="utf-8")
    return file


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Make a report of a device's benchmarks.")
    parser.add_argument("folder", type=Path, help="such as benchmarks/results/epyc-2-cores")
    arguments = parser.parse_args()
    print(write(arguments.folder))


if __name__ == "__main__":
    main()
