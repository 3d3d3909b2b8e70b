"""`latentrt schedule`: shows schedulers as a table or a plot, or writes a plan for other languages."""

import argparse
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from latentrt.runtime.errors import InputError
from latentrt.runtime.files import not_written, written_whole
from latentrt.runtime.image import require_place, require_png
from latentrt.runtime.request.options import OPTIONS
from latentrt.runtime.scheduler import Plan, resolve
from latentrt.runtime.scheduler.document import noise_ratios, plan_document

from .flags import scheduler_of_flag

EXAMPLES = """examples:
  latentrt schedule dpm++_2m_karras --steps 20
  latentrt schedule euler euler_karras euler_beta --steps 20 --plot sigmas.png
  latentrt schedule unipc --steps 10 --bundle engines/sd15 --json > unipc-10.json
"""
# Betas and prediction type of Stable Diffusion 1.x, for plans without a bundle.
STABLE_DIFFUSION: Mapping[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
}
MARKERS = "os^vDPX*"


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "schedule",
        help="show timesteps and noise levels of schedulers",
        description="Print or plot the timesteps and noise levels of schedulers, or write a plan as JSON.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help="such as euler_a, or a scheduler_config.json")
    parser.add_argument("--steps", type=int, help="number of inference steps; default: 20")
    for name in ("eta", "timesteps", "sigmas"):
        parser.add_argument(f"--{name}", help=OPTIONS[name].text, **{"type": float, **OPTIONS[name].kind.flag})
    parser.add_argument(
        "--strength", type=float, help="image-to-image: how much of the image is redrawn, above 0 up to 1"
    )
    parser.add_argument("--bundle", type=Path, help="bundle with the betas and options; default: Stable Diffusion 1.x")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--plot", type=Path, metavar="PNG", help="plot the noise levels (needs the extra `plot`)")
    output.add_argument("--json", action="store_true", help="print the plan and its config, for other languages")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    if arguments.plot:
        require_png(arguments.plot)
        require_place(arguments.plot)
    configs = {name: _config(name, arguments.bundle) for name in arguments.names}
    options = {name: getattr(arguments, name) for name in ("eta", "strength", "timesteps", "sigmas")}
    custom = arguments.timesteps is not None or arguments.sigmas is not None
    steps = arguments.steps if custom or arguments.steps is not None else 20
    plans = {name: Plan.from_config(config, steps, **options) for name, config in configs.items()}
    if arguments.json:
        if len(plans) > 1:
            raise InputError(f"--json writes one plan, not {len(plans)}: run it once per scheduler")
        ((name, plan),) = plans.items()
        print(json.dumps(plan_document(plan, configs[name], steps)))
    elif arguments.plot:
        plot(plans, arguments.plot)
        print(f"{arguments.plot}: noise levels of {', '.join(plans)}")
    else:
        for name, plan in plans.items():
            print(table(name, plan))
    return 0


def _config(name: str, bundle: Path | None) -> dict[str, Any]:
    base: Mapping[str, Any] = STABLE_DIFFUSION
    if bundle is not None:
        from latentrt.runtime.bundle import Bundle

        opened = Bundle.open(bundle)
        base = opened.read_json(opened.manifest.scheduler)
    return resolve(scheduler_of_flag(name), base)


def table(name: str, plan: Plan) -> str:
    """Timestep, sigma and noise draws, one line per model call."""
    ratios = noise_ratios(plan)
    lines = [f"{name}: {len(plan)} model calls", f"{'call':>4} {'timestep':>9} {'sigma':>10} {'noise':>6}"]
    for i, (timestep, draws) in enumerate(zip(plan.timesteps, plan.draws, strict=True)):
        lines.append(f"{i:4} {timestep:9.7g} {ratios[i]:10.5g} {'draws' if draws else '':>6}".rstrip())
    lines.append(f"{'end':>4} {'':9} {ratios[-1]:10.5g}\n")
    return "\n".join(lines)


def plot(plans: Mapping[str, Plan], file: Path) -> None:
    """Plot noise levels over the fraction of model calls, one line per plan, as a PNG.

    Raises: InputError: matplotlib is not installed, or the file name does not end in .png.
    """
    require_png(file)
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("--plot needs matplotlib: pip install 'latentrt[plot]'") from error
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for (name, plan), marker in zip(plans.items(), itertools.cycle(MARKERS), strict=False):
        ratios = noise_ratios(plan)
        shown = np.isfinite(ratios) & (ratios > 0)
        axes.plot(np.linspace(0, 1, len(ratios))[shown], ratios[shown], marker=marker, markersize=4, label=name)
    axes.set(yscale="log", xlabel="share of the model calls", ylabel="sigma (noise / signal)")
    axes.grid(alpha=0.3)
    axes.legend()
    try:
        with written_whole(file) as temporary:
            figure.savefig(temporary, dpi=120)
    except OSError as error:
        raise InputError(not_written(file, error)) from error
