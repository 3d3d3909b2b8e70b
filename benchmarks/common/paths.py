"""Paths in the repository. Standard library only, so that every environment can import it."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
SHAPES_CHECKPOINT = ROOT / "tests" / "data" / "shapes"
SHAPES_BUNDLE = ROOT / "engines" / "shapes"
PROMPTS = ROOT / "tests" / "data" / "prompts.json"  # held-out prompts of the model `shapes`
