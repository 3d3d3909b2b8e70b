"""Update the README's table of a device: of peers, or of a GPU if the folder has the summary of the GPU check.

    python -m benchmarks.reports.readme_table benchmarks/results/DEVICE README.md

Replaces what stands between two comments, `MARKS`.
"""

import argparse
from pathlib import Path

from .gpu_table import SUMMARY, gpu_table
from .peers import peer_rows
from .tables import cell, load, machine, measured, of_kind, table, title

MARKS = ("<!-- figures of {} -->", "<!-- end of figures -->")


def readme_block(folder: Path) -> str:
    """The README's table of a device, between its marks."""
    made = gpu_table(folder) if (folder / SUMMARY).exists() else peers_table(folder)
    return "\n\n".join((MARKS[0].format(folder.name), made, MARKS[1]))


def peers_table(folder: Path) -> str:
    """Latency of each peer by model, cold start with the smallest, memory with the largest, and a chart."""
    runs = load(folder)
    peers = of_kind(runs, "peers")
    if not peers:
        raise SystemExit(f"{folder} holds no run of the peers: run `make bench` first")
    rows = {run["results"]["model"]: peer_rows(run) for run in peers}
    sizes = measured(peers[0])
    names = list(dict.fromkeys(peer for row in rows.values() for peer in row if row[peer]))
    last = peers[-1]
    head = ["", *(title(run) for run in peers), "first picture", "peak memory", "installed"]
    lines = []
    for peer in names:
        cells = [cell(rows[run["results"]["model"]].get(peer, {}), "latency", "s") for run in peers]
        cold = cell(rows[peers[0]["results"]["model"]].get(peer, {}), "first", "s")
        memory = cell(rows[last["results"]["model"]].get(peer, {}), "memory", "GB")
        environment = {**peers[0]["results"]["environments"], **last["results"]["environments"]}[peer]
        size = sizes.get(f"{environment}: installed size")
        lines.append((peer, *cells, cold, memory, f"{size['p50']:,.0f} MB" if size else "-"))
    first, folder_name = peers[0]["results"]["model"], folder.name
    where = f"benchmarks/results/{folder_name}"
    text = (
        f"Seconds for a picture, on {machine(last)}; first picture of a new process with {first}, peak memory with "
        f"{last['results']['model']}. Random weights but for {first}. [The whole report]({where}/report.md)."
    )
    chart = f"![latency, cold start and memory of each]({where}/peers-{last['results']['model']}.png)"
    return "\n\n".join((text, table(head, lines), chart))


def with_block(readme: str, block: str, device: str) -> str:
    """The README with its block of this device replaced."""
    before, mark, rest = readme.partition(MARKS[0].format(device))
    _, end, after = rest.partition(MARKS[1])
    if not mark or not end:
        raise SystemExit(
            f"the README has no lines {MARKS[0].format(device)} and {MARKS[1]}: add them where the table belongs"
        )
    return before + block + after


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Update the README's table of a device.")
    parser.add_argument("folder", type=Path, help="such as benchmarks/results/epyc-2-cores")
    parser.add_argument("readme", type=Path)
    arguments = parser.parse_args()
    text = arguments.readme.read_text(encoding="utf-8")
    made = with_block(text, readme_block(arguments.folder), arguments.folder.name)
    arguments.readme.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()
