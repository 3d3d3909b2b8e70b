"""latentrt's noise of `torch.Generator("cuda")` against PyTorch on this GPU, up to three million values."""

from collections.abc import Sequence

from benchmarks.quality.cuda_noise import SEEDS, SIZES, differences, grid

from .places import Place
from .report import Report


def run(place: Place, report: Report, seeds: Sequence[int] = SEEDS, sizes: Sequence[int] = SIZES) -> None:
    """Check every draw. The grid of a GPU affects tensors with more values than it has threads."""
    report.figure("grid", dict(grid(place.device)))
    found = list(differences(place.device, seeds=seeds, sizes=sizes))
    for dtype in dict.fromkeys(one.dtype for one in found):
        worst = max((one for one in found if one.dtype == dtype), key=lambda one: one.largest)
        name = f"{dtype}, worst with seed {worst.seed} and {worst.size} values"
        report.at_most(name, worst.largest, worst.limit)
