"""What the tests of TensorRT engines share."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

RTX = "tensorrt_rtx"
PROMPT = "a large yellow triangle on a purple background"
FEW: dict[str, Any] = {"num_inference_steps": 4, "output_type": "latent"}


def same(got: NDArray[Any], expected: NDArray[Any]) -> None:
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def engine_of(engines: Path, graph: str, **profile: tuple[int, int, int]) -> dict[str, Any]:
    records = json.loads((engines / "engines.json").read_text())["engines"]
    wanted = {symbol: list(span) for symbol, span in profile.items()}
    return next(r for r in records if r["graph"] == graph and wanted.items() <= r["profile"].items())


def changed(engines: Path, tmp_path: Path, **facts: Any) -> Path:
    """A copy of the engine folder with changed records."""
    folder = Path(shutil.copytree(engines, tmp_path / "changed"))
    data = json.loads((folder / "engines.json").read_text())
    for record in data["engines"]:
        record.update(facts)
    (folder / "engines.json").write_text(json.dumps(data))
    return folder
