"""Make what the GPU check draws at full size, small enough to be carried to a machine without an exporter.

    python -m benchmarks.gpu.full_size_graphs prepare FOLDER [--size sd15]    # needs the extra `export`, and minutes
    python -m benchmarks.gpu.full_size_graphs restore ARCHIVE CHECKPOINT BUNDLE         # needs PyTorch, and seconds

`prepare` makes a random checkpoint, exports it, and packs both without their weights into FOLDER/SIZE.tar.xz
(`carried.py`); it also packs the embedded model in fp16, and writes the graph of `norms.py`. The parts `full_size`,
`pictures` and `norms` find them in `build/gpu_graphs`.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common.paths import SHAPES_CHECKPOINT
from latentrt.runtime.files import written_whole

from .carried import NORMS, SHAPES_FP16, Tensor, archive_of, made_folder, pack, restore, tensors_in

PRECISION = "fp16"


def prepare(folder: Path, size: str, seed: int = 0) -> Path:
    """Export a random checkpoint of a size of `make_checkpoint`, and pack both; return the archive."""
    import torch

    from benchmarks.common.make_checkpoint import make_checkpoint, tensors_of
    from latentrt.export.write import ExportOptions, export_bundle

    with tempfile.TemporaryDirectory(dir=made_folder(folder)) as scratch:
        checkpoint, bundle = Path(scratch) / f"{size}.checkpoint", Path(scratch) / size
        make_checkpoint(checkpoint, size, torch.float16, seed)
        export_bundle(checkpoint, bundle, ExportOptions(precision=PRECISION))
        tensors = [Tensor(file, name, list(shape)) for file, name, shape in tensors_of(size)]
        pack(checkpoint, bundle, archive_of(folder, size), seed=seed, tensors=tensors)
    return archive_of(folder, size)


def prepare_shapes(folder: Path) -> None:
    """Export the embedded model in fp16 and pack it, and write the graph of `norms.py`."""
    from latentrt.export.write import ExportOptions, export_bundle

    from .norms import norms_graph

    with tempfile.TemporaryDirectory(dir=made_folder(folder)) as scratch:
        bundle = Path(scratch) / SHAPES_FP16
        export_bundle(SHAPES_CHECKPOINT, bundle, ExportOptions(precision=PRECISION))
        archive = archive_of(folder, SHAPES_FP16)
        pack(SHAPES_CHECKPOINT, bundle, archive, seed=0, tensors=tensors_in(SHAPES_CHECKPOINT))
    with written_whole(folder / NORMS) as partial:
        partial.write_bytes(norms_graph())


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="Carry graphs of full size without their weights.")
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("prepare", help="make, export and pack a random checkpoint")
    packing.add_argument("folder", type=Path)
    packing.add_argument("--size", choices=("sd15", "sd21", "sdxl", "medium"), default="sd15", help="default: sd15")
    making = commands.add_parser("restore", help="make the checkpoint and the bundle with the same weights")
    for name in ("archive", "checkpoint", "bundle"):
        making.add_argument(name, type=Path)
    arguments = parser.parse_args()
    start = time.perf_counter()
    if arguments.command == "prepare":
        prepare_shapes(arguments.folder)
        prepare(arguments.folder, arguments.size)
        for file in sorted(arguments.folder.iterdir()):
            print(f"{file.stat().st_size:>12,}  {file}")
        print(f"{time.perf_counter() - start:.1f} s")
    else:
        same = restore(arguments.archive, arguments.checkpoint, arguments.bundle)
        what = "the weights of the export" if same else "other weights than the export, as PyTorch draws others here"
        print(f"{arguments.bundle}: {what}, in {time.perf_counter() - start:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
