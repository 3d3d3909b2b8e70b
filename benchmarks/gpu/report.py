"""The findings of a part of the GPU check: checks, figures and notes.

Each is saved at once, so that nothing is lost if the part crashes, hangs or runs out of time.
"""

import json
import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(slots=True)
class Report:
    """Findings of one part.

    Attributes:
        file: where the report is saved.
        checks: name, whether it passed, and a line with the figure and its limit.
        figures: any JSON values by name.
        notes: what could not be checked, and why.
        left_out: backends that do not run here.
        finished: whether the part ran to its end.
        when: time of the start.
    """

    file: Path
    checks: list[dict[str, Any]] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    finished: bool = False
    when: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M:%S"))

    def check(self, name: str, passed: bool, text: str) -> None:
        """Add a check."""
        self.checks.append({"name": name, "passed": bool(passed), "text": text})
        print(f"{'passed' if passed else 'FAILED'}  {name}: {text}", flush=True)
        self.save()

    def at_most(self, name: str, value: float, limit: float) -> None:
        """Add the check that a figure is within a limit; NaN is not."""
        self.check(name, value <= limit, f"{value:.2e}, at most {limit:.0e}")

    def figure(self, name: str, value: Any) -> None:
        """Add or replace a figure."""
        self.figures[name] = value
        print(f"{name}: {value}", flush=True)
        self.save()

    def note(self, text: str) -> None:
        """Add a note."""
        self.notes.append(text)
        print(f"note: {text}", flush=True)
        self.save()

    def leave_out(self, backend: str, why: str) -> None:
        """Note that a backend does not run here."""
        self.left_out.append(backend)
        self.note(f"{backend} {why}")

    def finish(self) -> None:
        """Mark the part as finished."""
        self.finished = True
        self.save()

    def save(self) -> None:
        """Write the report; a reader never sees a partial file."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        content = {name: value for name, value in asdict(self).items() if name != "file"}
        partial = self.file.with_suffix(".partial")
        partial.write_text(json.dumps(finite(content), indent=1) + "\n", encoding="utf-8")
        partial.replace(self.file)

    @property
    def verdict(self) -> str:
        """How a finished part ended: "passed", "failed", or "left out" if no backend ran and nothing was checked."""
        if self.left_out and not self.checks:
            return "left out"
        return "passed" if all(check["passed"] for check in self.checks) else "failed"

    @property
    def passed(self) -> bool:
        """Whether the part ran to its end, checked what there is, and no check failed."""
        return self.finished and self.verdict == "passed"

    @staticmethod
    def read(file: Path) -> "Report":
        """Read a saved report."""
        return Report(file, **json.loads(file.read_text(encoding="utf-8")))


def finite(value: Any) -> Any:
    """A copy for JSON: NaN and infinity as text, other floats rounded to six digits."""
    match value:
        case float():
            return float(f"{value:.6g}") if math.isfinite(value) else str(value)
        case dict():
            return {str(name): finite(item) for name, item in value.items()}
        case list() | tuple():
            return [finite(item) for item in value]
    return value
