"""Graphs as ONNX Runtime optimized them for one CPU, saved with weights of their own.

Making a session of such a graph takes a fraction of the time: for convolutions the library reorders all weights for the
CPU's instructions, and a saved graph has them in that order. It holds for one version of the library and one set of
instructions. docs/decisions/0026-saved-graphs-on-cpus.md has the figures.
"""

from latentrt.runtime.bundle import EngineRecord, Graph
from latentrt.runtime.bundle.manifest import INSTRUCTIONS
from latentrt.runtime.cpu import cpu_instructions

from .session import GraphFile, new_session


def version_here() -> str | None:
    """The version of the installed library; None if there is none."""
    try:
        import onnxruntime
    except ImportError:
        return None
    return str(onnxruntime.__version__)


def instructions_here() -> str:
    """This CPU's instructions as a record has them; empty where they are not known."""
    return " ".join(cpu_instructions())


def unfit_here(record: EngineRecord) -> str | None:
    """Why a saved graph cannot be used on this machine; None if it can."""
    if record.version != (version := version_here()):
        return f"saved by onnxruntime {record.version}, but {version} is installed"
    if record.options[INSTRUCTIONS] != (here := instructions_here()):
        return f"saved for a CPU with {record.options[INSTRUCTIONS]}, but this one has {here or 'none that are known'}"
    return None


def save_graph(source: GraphFile, target: GraphFile, spec: Graph) -> None:
    """Optimize a graph for this CPU and write it, with its weights; then load it once.

    Raises `BackendError` if the library cannot write it, or not load what it wrote. Files may be left then.
    """
    new_session(source, "cpu", {}, {}, spec=spec, save_as=target)
    new_session(target, "cpu", {}, {}, spec=spec)
