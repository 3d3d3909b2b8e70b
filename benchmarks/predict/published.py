"""Published milliseconds, and what the model says of them.

All are of float16 engines for one size. Where a figure is of whole pictures, calls are told apart by pictures of
different numbers of steps.

Sources:
    [card] model cards of stabilityai/stable-diffusion-xl-1.0-tensorrt and sdxl-turbo-tensorrt: TensorRT 8.6;
    [ort] microsoft/onnxruntime pull requests 17788 and 18526: TensorRT 8.6;
    [turbo] model card of tlwu/sd-turbo-onnxruntime: ONNX Runtime's CUDA provider with its fused kernels;
    [fal] fal-ai/stable-diffusion-benchmarks: TensorRT 9.0;
    [onediff] README of OneDiff, community edition: a compiler of the same kind.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from pathlib import Path

from .gpus import GPUS
from .layers import Layer, graphs_of
from .model import seconds

LAYERS = Path(__file__).with_name("layers.json")  # of random checkpoints of the public sizes, in float16


@dataclass(frozen=True, slots=True)
class Published:
    """A figure.

    Attributes:
        gpu: key of `GPUS`.
        model: "sd15", "sd21" or "sdxl".
        pixels: height and width.
        batch, groups: pictures, and 2 with guidance.
        calls: of the UNet; 0 leaves the UNet out.
        decoded: whether the VAE's decoder is in the figure.
        milliseconds: as published.
        source: as above.
        fitted: whether the constants of the model were chosen by it.
    """

    gpu: str
    model: str
    pixels: int
    batch: int
    groups: int
    calls: int
    decoded: bool
    milliseconds: float
    source: str
    fitted: bool = False

    @property
    def workload(self) -> str:
        """Model and sizes: the key of its layers in the file."""
        return f"{self.model} {self.pixels} {self.batch} {self.groups}"

    def predicted(self, layers: Mapping[str, Mapping[str, Mapping[Layer, int]]]) -> float:
        """Milliseconds by the model; `layers` are those of `read_layers`."""
        graphs, gpu = layers[self.workload], GPUS[self.gpu]
        total = self.calls * seconds(graphs["denoise"], gpu)
        return 1000 * (total + self.decoded * seconds(graphs["vae_decoder"], gpu))


def read_layers(file: Path = LAYERS) -> dict[str, dict[str, Counter[Layer]]]:
    """Workload -> graph -> its layers, with the number of each."""
    content = json.loads(file.read_text(encoding="utf-8"))
    return {
        workload: {graph: Counter({Layer(*row[1:]): row[0] for row in rows}) for graph, rows in graphs.items()}
        for workload, graphs in content.items()
    }


def record_layers(bundles: Path, file: Path = LAYERS) -> None:
    """Write the layers of every workload, from the bundles sd15, sd21 and sdxl in a folder."""
    content = {}
    for figure in PUBLISHED:
        graphs = graphs_of(bundles / figure.model, figure.pixels, figure.pixels, figure.batch, figure.groups)
        content[figure.workload] = {
            name: [[count, *astuple(layer)] for layer, count in graphs[name].items()]
            for name in ("denoise", "vae_decoder")
        }
    lines = json.dumps(content).replace("]], ", "]],\n").replace("]}, ", "]},\n")
    file.write_text(lines + "\n", encoding="utf-8")


PUBLISHED = (
    Published("h100", "sdxl", 1024, 1, 2, 30, True, 1471, "card", fitted=True),
    Published("a100", "sdxl", 1024, 1, 2, 30, True, 2742, "card", fitted=True),
    Published("a10", "sdxl", 1024, 1, 2, 30, True, 8160, "card", fitted=True),
    Published("4090", "sdxl", 1024, 1, 2, 1, False, 1000 / 13.6, "onediff", fitted=True),
    Published("h100", "sdxl", 1024, 1, 1, 4, False, 102.8, "card"),
    Published("a100", "sdxl", 1024, 1, 1, 4, False, 192.02, "card"),
    Published("h100", "sdxl", 512, 1, 1, 4, False, 48.87, "card"),
    Published("a100", "sdxl", 512, 1, 1, 4, False, 79.31, "card", fitted=True),
    Published("a100", "sdxl", 1024, 4, 2, 30, True, 9678, "ort"),
    Published("a100", "sdxl", 1024, 1, 1, 4, False, 430 - 258, "ort"),
    Published("a100", "sdxl", 1024, 4, 1, 4, False, 1662 - 1032, "ort"),
    Published("a100", "sd15", 512, 1, 2, 50, True, 861, "ort", fitted=True),
    Published("a100", "sd15", 512, 1, 2, 50, True, 819, "fal"),
    Published("a100", "sdxl", 1024, 1, 2, 50, True, 4102, "fal"),
    Published("4090", "sd15", 512, 1, 2, 1, False, 1000 / 74.7, "onediff"),
    Published("a100", "sd15", 512, 1, 2, 1, False, 1000 / 59.7, "onediff"),
    Published("a100", "sdxl", 1024, 1, 2, 1, False, 1000 / 11.8, "onediff"),
    Published("h100", "sdxl", 1024, 1, 1, 0, True, 126.95, "card"),
    Published("a100", "sdxl", 1024, 1, 1, 0, True, 228.34, "card", fitted=True),
    Published("h100", "sdxl", 512, 1, 1, 0, True, 30.35, "card"),
    Published("a100", "sd21", 512, 1, 1, 3, False, 68.7 - 38.2, "turbo"),
    Published("a100", "sd21", 512, 4, 1, 3, False, 192.6 - 120.2, "turbo"),
)
