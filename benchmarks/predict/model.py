"""Seconds of a layer, and of a whole graph, on a GPU that is known by its rates alone.

A layer takes as long as its products or its bytes, whichever is longer, and a fixed time for the kernel. Products run
in tiles of the output, and tiles in waves over the multiprocessors: small layers leave most of a GPU idle, which a mere
count of operations does not see. Of all tiles, and of all ways to split the depth, the fastest is taken, as a tuner
does.

The constants were fitted to seven published figures; `published.py` has them, and fifteen others to judge by.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from .gpus import Gpu
from .layers import Layer

BANDWIDTH = 0.75  # share of the published bandwidth that a kernel reaches
KERNEL = 8e-6  # seconds: the start and the end of a kernel, and whatever an engine does not fuse
# Rows and columns of a tile, and the rate of its products: smaller tiles read each value more often.
TILES = ((256, 128, 1.0), (128, 128, 0.95), (128, 64, 0.85), (64, 64, 0.7))
SPLITS = (1, 2, 4, 8)  # parts that the depth of a product may be computed in
LEAST_DEPTH = 256  # of a part
TF32 = 0.5  # rate of TF32 kernels over what their published rate promises
ATTENTION = 0.5  # rate of attention over that of other products, as the softmax lies between two of them
QUERIES = 128  # that one multiprocessor computes at once
HEADS = (32, 64, 96, 128, 160, 192, 256, 512)  # channels that kernels of attention are made for


def seconds(layers: Mapping[Layer, int], gpu: Gpu) -> float:
    """Seconds of one run of a graph with these layers, each with its number."""
    return sum(count * layer_seconds(layer, gpu) for layer, count in layers.items())


def layer_seconds(layer: Layer, gpu: Gpu) -> float:
    """Seconds of one layer."""
    moved = (layer.activations + layer.weights) / (BANDWIDTH * gpu.bandwidth * 1e9)
    return max(moved, _product_seconds(layer, gpu)) + KERNEL


def _product_seconds(layer: Layer, gpu: Gpu) -> float:
    if not layer.flops:
        return 0.0
    published = gpu.half if layer.bits == 16 else TF32 * gpu.tf32
    rate = published * 1e12 * gpu.share / gpu.multiprocessors  # of one multiprocessor
    if layer.kind == "attention":
        blocks = layer.products * math.ceil(layer.rows / QUERIES)
        padded = next((head for head in HEADS if head >= layer.depth), layer.depth) / layer.depth
        return _waves(blocks, gpu) * layer.flops / blocks * padded / (ATTENTION * rate)
    return min(
        _busiest(layer, gpu, rows, columns, split) / (efficiency * rate)
        for rows, columns, efficiency in TILES
        for split in SPLITS
        if split == 1 or layer.depth >= split * LEAST_DEPTH
    )


def _busiest(layer: Layer, gpu: Gpu, rows: int, columns: int, split: int) -> float:
    """Operations of the multiprocessor that has most to do."""
    tiles = layer.products * math.ceil(layer.rows / rows) * math.ceil(layer.columns / columns)
    return _waves(tiles * split, gpu) * 2 * rows * columns * layer.depth / split


def _waves(blocks: int, gpu: Gpu) -> int:
    return math.ceil(blocks / gpu.multiprocessors)
