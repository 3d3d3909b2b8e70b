"""Paths in the repository. Standard library only, so that every environment can import it."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
SHAPES_CHECKPOINT = ROOT / "tests" / "data" / "shapes"
SHAPES_EDGES = SHAPES_CHECKPOINT.with_name("shapes-edges")  # its ControlNet
SHAPES_BUNDLE = ROOT / "engines" / "shapes"
CALIBRATION = ROOT / "benchmarks" / "quality" / "calibration.txt"  # other prompts of the model `shapes`
PROMPTS = ROOT / "tests" / "data" / "prompts.json"  # held-out prompts of the model `shapes`


def onnxruntime_library() -> Path | None:
    """ONNX Runtime's library in its Python package; None where there is none."""
    spec = importlib.util.find_spec("onnxruntime")
    folders = [] if spec is None else [Path(folder) for folder in spec.submodule_search_locations or ()]
    return next((file for folder in folders for file in sorted((folder / "capi").glob("libonnxruntime.so*"))), None)
