"""Write what the fuzz targets start from: small manifests of each kind of model, a plan pack and a plan.

    python native/tests/fuzz/make_data.py

The manifests are that of `engines/shapes`, cut down and changed; Python's reader has accepted them.
"""

import copy
import json
from pathlib import Path
from typing import Any

from latentrt.runtime.bundle import Manifest
from latentrt.runtime.bundle.checks import faults
from latentrt.runtime.bundle.strict_json import decode
from latentrt.runtime.cli.main import main

ROOT = Path(__file__).parents[3]
DATA = Path(__file__).parent / "data"
SCHEDULERS = ("", "euler_a", "lcm", "euler_cfg_pp")


def small() -> dict[str, Any]:
    """The manifest of a model as SD 1, with two attention layers and few weights."""
    manifest: dict[str, Any] = json.loads((ROOT / "engines" / "shapes" / "bundle.json").read_text())
    manifest["producer"]["packages"] = {}
    manifest["weights"] = dict([*manifest["weights"].items()][:1])
    for name in ("context", "denoise"):
        for tensors in (manifest["graphs"][name]["inputs"], manifest["graphs"][name]["outputs"]):
            tensors[:] = [t for t in tensors if not t["name"].startswith(("key_", "value_")) or t["name"][-2:] == "00"]
    for file in manifest["files"].values():
        file["sha256"] = ""
    return manifest


def sdxl() -> dict[str, Any]:
    """Two text encoders, sizes and a pooled embedding."""
    manifest = small()
    model = manifest["model"]
    second = copy.deepcopy(model["text_encoders"][0])
    second |= {"graph": "text_encoder_2", "pooled": True, "embeddings": {"<cat>": [49408, 49409]}}
    model["text_encoders"].append(second)
    model |= {"family": "sdxl", "force_zeros_for_empty_prompt": True}
    del model["latent_rgb"]
    graphs = manifest["graphs"]
    graphs["text_encoder_2"] = copy.deepcopy(graphs["text_encoder"])
    pooled = {"name": "pooled", "dtype": "float32", "shape": ["n", 32]}
    graphs["text_encoder_2"]["outputs"].append(pooled)
    graphs["context"]["inputs"][0]["shape"][2] *= 2
    graphs["time"]["inputs"] += [pooled, {"name": "time_ids", "dtype": "float32", "shape": ["n", 6]}]
    manifest["engines"] = [
        {
            "graph": "time",
            "file": "time.onnx",
            "backend": "onnxruntime",
            "version": "1",
            "device": "cpu",
            "compute_capabilities": [],
            "precision": "fp32",
            "tf32": False,
            "profile": {},
            "options": {},
            "host_code": False,
            "onnx_sha256": "",
            "weights_sha256": None,
        }
    ]
    return manifest


def inpaint() -> dict[str, Any]:
    """A UNet that inpaints, and a list of plan packs."""
    manifest = small()
    extra = {"name": "extra", "dtype": "float32", "shape": ["B", 5, "h", "w"]}
    manifest["graphs"]["denoise"]["inputs"].append(extra)
    manifest["files"]["plans/small.plans"] = {"size": 1, "sha256": ""}
    return manifest | {"format": "latentrt.bundle/2", "plans": ["plans/small.plans"], "golden": None}


def distilled() -> dict[str, Any]:
    """A model that takes the guidance scale as an input."""
    manifest = small()
    embedding = {"name": "guidance_embedding", "dtype": "float32", "shape": ["n", 16]}
    manifest["graphs"]["time"]["inputs"].append(embedding)
    return manifest


def write() -> None:
    """Write all files."""
    for make in (small, sdxl, inpaint, distilled):
        content = make()
        assert not list(faults(decode(Manifest, content, "bundle.json"))), make
        (DATA / f"{make.__name__}.json").write_text(json.dumps(content, separators=(",", ":")) + "\n")
    chosen = [word for name in SCHEDULERS for word in ("--scheduler", name)]
    pack = DATA / "small.plans"
    pack.unlink(missing_ok=True)
    assert not main(["plans", str(ROOT / "engines" / "shapes"), *chosen, "--steps", "1-3", "--out", str(pack)])


if __name__ == "__main__":
    write()
