"""`latentrt schedule`: what a scheduler does, as a table, a picture, or a plan that other languages can run."""

import argparse
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError
from .scheduler import Plan, resolve
from .scheduler_config import complete

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
PLAN_FORMAT = "latentrt.plan/1"
# The tests compare every call of every class with this version, to this relative error.
CHECKED_AGAINST = {"library": "diffusers", "version": "0.42.1", "tolerance": 2e-5}


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "schedule",
        help="timesteps and noise levels of schedulers",
        description="Print the timesteps and noise levels of schedulers, draw them, or write a plan as JSON.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help="such as euler_a, or a scheduler_config.json")
    parser.add_argument("--steps", type=int, default=20, help="number of inference steps; default: 20")
    parser.add_argument("--eta", type=float, help="noise of ddim and tcd, 0 to 1")
    parser.add_argument(
        "--strength", type=float, help="begin from a picture, of which so much is drawn anew; above 0, to 1"
    )
    parser.add_argument("--bundle", type=Path, help="whose betas and options to take; default: Stable Diffusion 1.x")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--plot", type=Path, metavar="PNG", help="draw the noise levels (needs the extra `plot`)")
    output.add_argument("--json", action="store_true", help="write the plan with its config, for other languages")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    configs = {name: _config(name, arguments.bundle) for name in arguments.names}
    options = {"eta": arguments.eta, "strength": arguments.strength}
    plans = {name: Plan.from_config(config, arguments.steps, **options) for name, config in configs.items()}
    if arguments.json:
        if len(plans) > 1:
            raise InputError(f"--json writes one plan, not {len(plans)}: call it once for each scheduler")
        ((name, plan),) = plans.items()
        print(json.dumps(plan_document(plan, configs[name], arguments.steps)))
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
        from .bundle import Bundle

        opened = Bundle.open(bundle)
        base = opened.read_json(opened.manifest.scheduler)
    if name.endswith(".json"):
        try:
            return resolve(json.loads(Path(name).read_text(encoding="utf-8")), base)
        except (OSError, ValueError) as error:
            raise InputError(f"{name} cannot be read as a scheduler config: {error}") from error
    return resolve(name, base)


def noise_ratios(plan: Plan) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Sigma of every call's input and of the end: noise per signal, infinite without signal. Shape (M + 1,)."""
    alpha, sigma = plan.noise_levels.T.astype(np.float64)
    with np.errstate(divide="ignore"):
        return np.asarray(sigma / alpha)


def table(name: str, plan: Plan) -> str:
    """Timestep, sigma and draws of noise, one line for each model call."""
    ratios = noise_ratios(plan)
    lines = [f"{name}: {len(plan)} model calls", f"{'call':>4} {'timestep':>9} {'sigma':>10} {'noise':>6}"]
    for i, (timestep, draws) in enumerate(zip(plan.timesteps, plan.draws, strict=True)):
        lines.append(f"{i:4} {timestep:9.7g} {ratios[i]:10.5g} {'draws' if draws else '':>6}".rstrip())
    lines.append(f"{'end':>4} {'':9} {ratios[-1]:10.5g}\n")
    return "\n".join(lines)


def plan_document(plan: Plan, config: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """Everything that a runtime in another language needs, and what vouches for it.

    `residual` is the largest relative difference, over all calls, between the plan run in float32 and in float64 with
    a nonlinear model.
    """
    return {
        "format": PLAN_FORMAT,
        "scheduler_config": {key: _plain(value) for key, value in complete(config).items()},
        "num_inference_steps": steps,
        "checked_against": CHECKED_AGAINST,
        "residual": residual(plan),
        **{name: array.tolist() for name, array in plan.to_arrays().items()},
    }


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not np.isfinite(value) else value


def residual(plan: Plan) -> float:
    """See `plan_document`."""
    runs = []
    for dtype in (np.float32, np.float64):
        rng = np.random.default_rng(0)
        noise, clean = rng.standard_normal((2, 256)).astype(dtype)
        runs.append(list(plan.states(_probe, noise, clean, lambda rng=rng: rng.standard_normal(256))))  # type: ignore[misc]
    return max(float(np.abs(a[0] - b[0]).max() / np.abs(b[0]).max()) for a, b in zip(*runs, strict=True))


def _probe(x: np.ndarray[Any, Any], t: Any) -> np.ndarray[Any, Any]:
    return np.asarray(np.tanh(x + x.dtype.type(t) / 1000), x.dtype)


def plot(plans: Mapping[str, Plan], file: Path) -> None:
    """Noise levels over the share of model calls, one line for each plan, as a PNG.

    Raises: InputError: matplotlib is not installed, or the name is not that of a PNG.
    """
    from .image import require_png

    require_png(file)
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("drawing needs matplotlib: pip install 'latentrt[plot]'") from error
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for (name, plan), marker in zip(plans.items(), itertools.cycle(MARKERS), strict=False):
        ratios = noise_ratios(plan)
        shown = np.isfinite(ratios) & (ratios > 0)
        axes.plot(np.linspace(0, 1, len(ratios))[shown], ratios[shown], marker=marker, markersize=4, label=name)
    axes.set(yscale="log", xlabel="share of the model calls", ylabel="sigma (noise / signal)")
    axes.grid(alpha=0.3)
    axes.legend()
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.stem}.partial.png")
    try:
        figure.savefig(temporary, dpi=120)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
