"""The cost of an export: peak resident memory and time of each stage, without the parity check.

    python -m benchmarks.speed.export_cost CHECKPOINT [--precision fp16] [--opset 23] [--keep FOLDER]

Runs `latentrt export` as a child process and samples it every 50 ms:
- its memory, and that of the parity check, which is a process of its own (from `/proc/PID/status`: VmHWM is the peak,
  VmRSS the current size; both include mapped files, RssAnon does not);
- its processor time, which other work on the machine hardly changes;
- its stage, read from the progress bar through a pseudo-terminal.

The bundle is written to a temporary folder unless `--keep` is given. Linux only. Targets for Stable Diffusion 1.5 in
fp16: at most 8 GB in the export's own process, and 4 minutes without the parity check.
`benchmarks.common.make_checkpoint` makes checkpoints of the real sizes. The last line is JSON.
"""

import argparse
import os
import pty
import re
import select
import signal
import subprocess
import sys
import tempfile
import termios
import time
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from benchmarks.common.harness import Target, finish, show_environment, show_table

MEMORY_TARGET, TIME_TARGET = 8.0, 240.0
POLL = 0.05
PARITY_PROCESS = b"latentrt.export.parity"
PARITY_STAGE = "parity"
# "VAE decoder      ████      2/7 00:31": a name, then spaces or the bar, then the count.
STAGE = re.compile(r"([A-Za-z][\w ]*?)(?:\s{2,}|\s*[|█▏▎▍▌▋▊▉])[^\r]*?\d+/\d+ ")


@dataclass(slots=True)
class Peak:
    """Peak memory of a process in bytes."""

    resident: int = 0
    anonymous: int = 0

    def see(self, status: dict[str, int]) -> None:
        """Add a sample of `status_of`, which is empty once the process has ended."""
        self.resident = max(self.resident, status.get("VmHWM", 0))
        self.anonymous = max(self.anonymous, status.get("RssAnon", 0))


@dataclass(slots=True)
class Stage:
    """A stage of the export: its start and end, by the clock and in processor seconds, and its peak resident memory."""

    name: str
    start: float
    busy_start: float = 0.0
    end: float = 0.0
    busy_end: float = 0.0
    resident: int = 0

    @property
    def seconds(self) -> float:
        """Duration."""
        return self.end - self.start

    @property
    def busy(self) -> float:
        """Processor seconds of the export's own process, summed over its threads."""
        return self.busy_end - self.busy_start


@dataclass(slots=True)
class Watch:
    """The samples of an export."""

    export: Peak = field(default_factory=Peak)
    parity: Peak = field(default_factory=Peak)
    together: int = 0
    stages: list[Stage] = field(default_factory=list)

    def enter(self, name: str) -> None:
        """Start a stage and end the one before it, unless it is the same."""
        now = time.perf_counter()
        if not self.stages:
            self.stages.append(Stage(name, now))
        elif (last := self.stages[-1]).name != name:
            last.end = now
            self.stages.append(Stage(name, now, busy_start=last.busy_end))

    def look(self, process: int, parity: int | None) -> None:
        """Take a sample."""
        own, child = status_of(process), status_of(parity) if parity else {}
        self.export.see(own)
        self.parity.see(child)
        self.together = max(self.together, own.get("VmRSS", 0) + child.get("VmRSS", 0))
        stage = self.stages[-1]
        stage.resident = max(stage.resident, own.get("VmRSS", 0))
        stage.busy_end = processor_seconds(process) or stage.busy_end


def status_of(process: int) -> dict[str, int]:
    """Sizes in bytes from /proc/PID/status, by name; empty once the process has ended."""
    try:
        text = Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return {}
    return {name: 1024 * int(number) for name, number in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}


def processor_seconds(process: int) -> float:
    """Processor seconds of all threads of a process; 0 once it has ended."""
    try:
        # The command is in parentheses and may contain anything; user and system time are fields 12 and 13 after it.
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def parity_child(process: int) -> int | None:
    """The process id of the parity check that `process` has started, None if it is not running."""
    for folder in Path("/proc").iterdir():
        try:
            # The parent is field 2 after the command.
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == process and PARITY_PROCESS in (folder / "cmdline").read_bytes():
                return int(folder.name)
        except (OSError, ValueError, IndexError):
            continue
    return None


def watch_export(command: list[str | Path]) -> Watch:
    """Run an export on a pseudo-terminal, so that it shows its progress bar, and sample it until it ends."""
    terminal, other_end = pty.openpty()
    termios.tcsetwinsize(other_end, (24, 100))
    watch, parity, text = Watch(), None, ""
    watch.enter("imports")
    with tqdm(disable=None, bar_format="{desc} {elapsed}", leave=False) as bar:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=other_end)
        os.close(other_end)
        try:
            while process.poll() is None:
                text = (text + _read(terminal))[-10_000:]
                if found := STAGE.findall(text):
                    watch.enter(found[-1].strip())
                if parity is None and watch.stages[-1].name.startswith(PARITY_STAGE):
                    parity = parity_child(process.pid)
                watch.look(process.pid, parity)
                bar.set_description_str(watch.stages[-1].name)
        finally:
            process.terminate()
            process.wait()
            text += _read(terminal)
            os.close(terminal)
    watch.stages[-1].end = time.perf_counter()
    if process.returncode:
        raise SystemExit(f"{text[-2000:].strip()}\nthe export ended with status {process.returncode}")
    return watch


def _read(terminal: int) -> str:
    """Read what was written to the terminal; wait at most `POLL` seconds."""
    if not select.select([terminal], [], [], POLL)[0]:
        return ""
    try:
        return os.read(terminal, 65536).decode("utf-8", errors="replace")
    except OSError:  # the other end is closed
        time.sleep(POLL)
        return ""


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Measure memory and time of an export.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--precision", choices=("fp32", "fp16", "bf16"), default="fp16", help="default: fp16")
    parser.add_argument("--opset", type=int, choices=(23, 18), default=23, help="default: 23")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="write the bundle there; must not exist")
    arguments = parser.parse_args()
    # So that SIGTERM also ends the export and removes the temporary folder.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    card = show_environment()
    print(f"targets for SD 1.5 in fp16: {MEMORY_TARGET:g} GB, {TIME_TARGET:g} s without parity", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        out = arguments.keep or Path(temporary) / "bundle"
        latentrt = Path(sys.executable).with_name("latentrt")
        options = ("--precision", arguments.precision, "--opset", str(arguments.opset))
        watch = watch_export([latentrt, "export", arguments.checkpoint, out, *options])
        size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    total = watch.stages[-1].end - watch.stages[0].start
    parity = sum(stage.seconds for stage in watch.stages if stage.name.startswith(PARITY_STAGE))
    table = [
        (stage.name, f"{stage.seconds:,.1f}", f"{stage.busy:,.1f}", f"{stage.resident / 1e9:.2f}")
        for stage in watch.stages
    ]
    busy = watch.stages[-1].busy_end
    show_table(("stage", "s", "processor s", "GB resident"), [*table, ("all", f"{total:,.1f}", f"{busy:,.1f}", "")])
    peaks = {"export": watch.export, "parity check": watch.parity}
    rows = [(name, f"{p.resident / 1e9:.2f}", f"{p.anonymous / 1e9:.2f}") for name, p in peaks.items()]
    show_table(("process", "GB peak", "without files"), [*rows, ("together", f"{watch.together / 1e9:.2f}", "")])
    results = {
        "checkpoint": arguments.checkpoint.name,
        "precision": arguments.precision,
        "opset": arguments.opset,
        "bundle_bytes": size,
        "seconds": {stage.name: round(stage.seconds, 2) for stage in watch.stages},
        "processor_seconds": {stage.name: round(stage.busy, 2) for stage in watch.stages},
        "seconds_without_parity": round(total - parity, 2),
        "peak_bytes": {"export": watch.export.resident, "parity": watch.parity.resident, "together": watch.together},
        "peak_anonymous_bytes": {"export": watch.export.anonymous, "parity": watch.parity.anonymous},
    }
    targets = [
        Target("peak of the export's own process", watch.export.resident / 1e9, MEMORY_TARGET, "GB"),
        Target("time without parity", total - parity, TIME_TARGET, "s"),
    ]
    finish("export_cost", card, results, targets)


if __name__ == "__main__":
    main()
