"""What the engines of a folder fuse, as figures of a report."""

from collections.abc import Sequence
from pathlib import Path

from latentrt.export.build.inspection import inspect_engines
from latentrt.runtime.errors import InputError

from .report import Report


def report_fusion(report: Report, bundle: Path, engines: Path, title: str = "", graphs: Sequence[str] = ()) -> None:
    """A figure for each TensorRT engine in the folder: its layers, and what of its graph is in one kernel."""
    try:
        for one in inspect_engines(bundle, engines=engines, graphs=graphs):
            name, _, text = str(one).partition(": ")
            report.figure(f"{one.record.backend} engine of {f'{title} {name}'.lstrip()}", text)
    except InputError:
        return  # no engine was built, which the caller has noted
    except Exception as error:  # these figures must not end a part
        report.note(f"the engines' kernels are not known: {error}")
