"""Plans against diffusers' own schedulers: each call's model input, clean prediction and timestep, in 1,700 cases.

Both sides are driven by the same nonlinear toy model, so an error at one call shows at the next ones.
"""

import importlib
import itertools
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from latentrt.runtime.errors import SchedulerError
from latentrt.runtime.noise import TorchGenerator
from latentrt.runtime.scheduler import Plan, resolve
from latentrt.runtime.scheduler_options import OPTIONS

TOLERANCE = 2e-5
TIMESTEP_TOLERANCE = 2e-3
SHAPE = (4, 4, 4)
SEED = 7
STEPS = (1, 2, 4, 10, 20, 50)
SPACINGS = ("leading", "linspace", "trailing")
PREDICTIONS = ("epsilon", "v_prediction", "sample")
LATENT_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
DDIM, EULER, EULER_A, DPM = (
    "DDIMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
)
RESPACINGS: dict[str, tuple[str | None, ...]] = {
    DDIM: (None,),
    EULER: (None, "use_karras_sigmas", "use_exponential_sigmas"),
    EULER_A: (None,),
    DPM: (None, "use_karras_sigmas", "use_exponential_sigmas", "use_lu_lambdas"),
}
Case = tuple[dict[str, Any], int, float]
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors: PyTorch's threads would only wait for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def toy_model(x: np.ndarray, t: Any) -> np.ndarray:
    return 0.9 * np.tanh(0.7 * x + 0.001 * float(t)) + 0.1 * np.sin(3 * x)


def product(**choices: tuple[Any, ...]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*choices.values()):
        yield dict(zip(choices, values, strict=True))


def case(class_name: str, steps: int, *, respacing: str | None = None, eta: float = 0.0, **options: Any) -> Case:
    config = {"_class_name": class_name, **LATENT_BETAS, **options}
    if class_name == DDIM:
        config["clip_sample"] = False
    if respacing:
        config[respacing] = True
    return config, steps, eta


def basic_cases(class_name: str) -> Iterator[Case]:
    """Class x spacing x prediction type x respacing x number of steps."""
    etas = (0.0, 0.7) if class_name == DDIM else (0.0,)
    for choice in product(timestep_spacing=SPACINGS, prediction_type=PREDICTIONS):
        for respacing, steps, eta in itertools.product(RESPACINGS[class_name], STEPS, etas):
            yield case(class_name, steps, respacing=respacing, eta=eta, **choice)


def option_cases(class_name: str) -> Iterator[Case]:
    """The options on how a schedule begins and ends, with a short and a long run."""
    extra: dict[str, tuple[Any, ...]] = {
        DDIM: {"set_alpha_to_one": (True, False), "eta": (0.0, 1.0)},
        EULER: {"final_sigmas_type": ("zero", "sigma_min"), "respacing": (None, "use_karras_sigmas")},
        EULER_A: {},
        DPM: {"final_sigmas_type": ("zero", "sigma_min"), "respacing": (None, "use_karras_sigmas")},
    }[class_name]
    for choice in product(
        timestep_spacing=SPACINGS,
        prediction_type=PREDICTIONS,
        rescale_betas_zero_snr=(False, True),
        steps_offset=(0, 1),
        steps=(4, 20),
        **extra,
    ):
        yield case(class_name, **choice)


def solver_cases(_: str) -> Iterator[Case]:
    """Every kind, order and end of DPM-Solver."""
    for choice in product(
        algorithm_type=("dpmsolver++", "sde-dpmsolver++", "dpmsolver", "sde-dpmsolver"),
        solver_order=(1, 2, 3),
        solver_type=("midpoint", "heun"),
        final_sigmas_type=("zero", "sigma_min"),
        lower_order_final=(True, False),
        euler_at_final=(True, False),
        prediction_type=("v_prediction",),
        respacing=(None, "use_karras_sigmas"),
        steps=(14, 15),
    ):
        kind, order = choice["algorithm_type"], choice["solver_order"]
        impossible = kind.startswith("sde-") and order == 3
        impossible |= not kind.endswith("++") and choice["final_sigmas_type"] == "zero"
        needless = choice["lower_order_final"] and choice["euler_at_final"]
        if not impossible and not needless and (order > 1 or kind == "dpmsolver"):
            yield case(DPM, **choice)


def beta_cases(class_name: str) -> Iterator[Case]:
    """Beta schedules, other numbers of training timesteps."""
    schedules: tuple[dict[str, Any], ...] = (
        {"beta_schedule": "linear"},
        {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02, "num_train_timesteps": 500},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"trained_betas": [0.0002 + 0.00002 * i for i in range(300)], "num_train_timesteps": 300},
    )
    for options, spacing, respacing in itertools.product(schedules, SPACINGS, RESPACINGS[class_name]):
        yield case(class_name, 10, respacing=respacing, timestep_spacing=spacing, **options)


def other_cases(class_name: str) -> Iterator[Case]:
    """Options that one class has for itself."""
    if class_name == EULER:
        for kind, spacing, ends in itertools.product(
            ("linear", "log_linear"), SPACINGS, ({}, {"use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 20.0})
        ):
            yield case(EULER, 10, interpolation_type=kind, timestep_spacing=spacing, **ends)
        for respacing in RESPACINGS[EULER]:
            yield case(EULER, 8, respacing=respacing, timestep_type="continuous", prediction_type="v_prediction")
    if class_name == DPM:
        for clip, spacing in itertools.product((-5.1, -1.0), SPACINGS):
            yield case(DPM, 10, lambda_min_clipped=clip, timestep_spacing=spacing, beta_schedule="squaredcos_cap_v2")
        for alias in (
            {"solver_type": "bh2"},
            {"solver_type": "logrho"},
            {"algorithm_type": "deis", "final_sigmas_type": "sigma_min"},
        ):
            yield case(DPM, 10, **alias)


def computed_wide(config: dict[str, Any]) -> bool:
    """Whether diffusers' class must be run in float64 to be a reference.

    With zero terminal SNR the classes lose what is compared: Euler's samples are 4096 times as large as its results,
    and DDIM's `1 - abar - std**2` is a difference of nearly equal numbers (eta 1: NaN in float32).
    """
    return bool(config.get("rescale_betas_zero_snr"))


def rejected_by_diffusers(config: dict[str, Any], steps: int) -> str:
    """Why diffusers has no result: it raises, or gives NaN. Empty where it has one."""
    name, spacing = config["_class_name"], config.get("timestep_spacing")
    zero_snr, prediction = config.get("rescale_betas_zero_snr"), config.get("prediction_type", "epsilon")
    if name == EULER_A and prediction == "sample":
        return "not implemented"
    if (
        name == DDIM
        and zero_snr
        and prediction == "epsilon"
        and spacing != "leading"
        and (spacing, steps)
        != (
            "linspace",
            1,
        )
    ):
        return "divides by alpha 0"
    respaced = any(config.get(key) for key in RESPACINGS[DPM] if key)
    order = config.get("solver_order", 2)
    higher = order == 3 or (order == 2 and config.get("solver_type") == "heun")
    at_order = not config.get("euler_at_final") and not (config.get("lower_order_final", True) and steps < 15)
    if name == DPM and respaced and config.get("final_sigmas_type") == "sigma_min" and higher and at_order:
        return "last step has length 0, which the formulas of heun and of order 3 divide by"
    return ""


class WideTorch:
    """`torch` for a scheduler's module, whose casts to float32 keep float64."""

    def __init__(self, torch: Any) -> None:
        self.torch, self.float32 = torch, torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(self.torch, name)


def diffusers_scheduler(config: dict[str, Any]) -> Any:
    import diffusers

    return getattr(diffusers, config["_class_name"])(**{k: v for k, v in config.items() if not k.startswith("_")})


def run_diffusers(
    scheduler: Any, eta: float, *, wide: bool, begin: int = 0, end: int | None = None, clean: np.ndarray | None = None
) -> dict[str, Any]:
    """Model inputs of every call and the end, clean predictions (None where the class keeps them to itself)."""
    import torch

    module = importlib.import_module(type(scheduler).__module__)
    dtype = torch.float64 if wide else torch.float32
    generator = torch.Generator().manual_seed(SEED)

    def draw(shape: Any, **_: Any) -> Any:
        return torch.randn(shape, generator=generator).to(dtype)

    if wide:
        for name in ("sigmas", "alphas_cumprod", "final_alpha_cumprod"):
            if (name == "sigmas" or type(scheduler).__name__ == DDIM) and hasattr(scheduler, name):
                setattr(scheduler, name, getattr(scheduler, name).double())
    times = scheduler.timesteps[begin:end]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    noise = draw(SHAPE)
    if clean is None:
        x = noise * scheduler.init_noise_sigma
    else:
        x = scheduler.add_noise(torch.from_numpy(clean).to(dtype), noise, times[:1])
    inputs, predictions = [], []
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(module, "randn_tensor", draw)
        if wide:
            patch.setattr(module, "torch", WideTorch(torch))
        for t in times:
            inputs.append(scheduler.scale_model_input(x, t).numpy())
            output = torch.from_numpy(toy_model(inputs[-1], t)).to(dtype)
            result = scheduler.step(output, t, x, **({"eta": eta} if type(scheduler).__name__ == DDIM else {}))
            x = result.prev_sample
            predictions.append(getattr(result, "pred_original_sample", None))
    inputs.append(x.numpy())
    return {"timesteps": times.numpy(), "inputs": inputs, "clean": predictions}


def run_plan(plan: Plan, *, wide: bool, clean: np.ndarray | None = None) -> dict[str, Any]:
    generator = TorchGenerator(SEED)
    noise = generator.randn(SHAPE)
    inputs = [plan.initial[0, 0] * noise + (0 if clean is None else plan.initial[0, 1] * clean)]
    predictions = []
    noise = noise.astype(np.float64) if wide else noise
    for state in plan.states(toy_model, noise, clean, lambda: generator.randn(SHAPE)):
        inputs.append(state[0])
        predictions.append(state[-1])
    return {"timesteps": plan.timesteps, "inputs": inputs, "clean": predictions}


def difference(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """What differs by more than it may; empty where nothing does."""
    if len(ours["timesteps"]) != len(theirs["timesteps"]):
        return f"{len(ours['timesteps'])} calls, diffusers has {len(theirs['timesteps'])}"
    off = float(np.abs(ours["timesteps"] - theirs["timesteps"]).max())
    whole = np.array_equal(theirs["timesteps"], np.round(theirs["timesteps"]))
    if off > (0 if whole else TIMESTEP_TOLERANCE):
        return f"timesteps differ by {off:.1e}"
    for name in ("inputs", "clean"):
        for i, (a, b) in enumerate(zip(ours[name], theirs[name], strict=True)):
            if b is not None:
                error = float(np.abs(np.asarray(b) - a).max() / np.abs(np.asarray(b)).max())
                if not error <= TOLERANCE:
                    return f"{name} at call {i} differ by {error:.1e}"
    return ""


def check(cases: Iterator[Case]) -> int:
    """Compare every case; returns how many had a result to compare with."""
    compared, failures = 0, []
    for config, steps, eta in cases:
        rejected, wide = rejected_by_diffusers(config, steps), computed_wide(config)
        try:
            scheduler = diffusers_scheduler(config)
            scheduler.set_timesteps(steps)
            theirs = run_diffusers(scheduler, eta, wide=wide)
            finite = all(np.isfinite(x).all() for x in theirs["inputs"])
        except NotImplementedError:
            finite = False
        if finite == bool(rejected):
            failures.append(f"{config} {steps} steps: rejected by diffusers: {not finite}, listed: {rejected!r}")
        if not finite:
            continue
        compared += 1
        problem = difference(run_plan(Plan.from_config(config, steps, eta=eta or None), wide=wide), theirs)
        if problem:
            failures.append(f"{config} {steps} steps, eta {eta}: {problem}")
    assert not failures, f"{len(failures)} of {compared} cases:\n" + "\n".join(failures[:10])
    return compared


@pytest.mark.parametrize(
    ("cases", "class_name", "at_least"),
    [
        (basic_cases, DDIM, 108),
        (basic_cases, EULER, 162),
        (basic_cases, EULER_A, 36),
        (basic_cases, DPM, 216),
        (option_cases, DDIM, 250),
        (option_cases, EULER, 288),
        (option_cases, EULER_A, 48),
        (option_cases, DPM, 288),
        (solver_cases, DPM, 200),
        (beta_cases, DDIM, 12),
        (beta_cases, EULER, 36),
        (beta_cases, EULER_A, 12),
        (beta_cases, DPM, 48),
        (other_cases, EULER, 15),
        (other_cases, DPM, 9),
    ],
)
def test_replay_is_what_diffusers_computes(cases: Any, class_name: str, at_least: int) -> None:
    assert check(cases(class_name)) >= at_least


CUSTOM_TIMESTEPS = [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]
CUSTOM_SIGMAS = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.0]


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(
    ("class_name", "custom"),
    [
        (EULER, {"timesteps": CUSTOM_TIMESTEPS}),
        (EULER, {"timesteps": [990.5, 400.25, 3.0]}),
        (EULER, {"sigmas": CUSTOM_SIGMAS}),
        (EULER, {"sigmas": [9.0, 1.0, 0.25]}),
        (DPM, {"timesteps": CUSTOM_TIMESTEPS}),
        (DPM, {"timesteps": list(range(990, 0, -40))}),
    ],
)
def test_custom_timesteps_and_sigmas(class_name: str, custom: dict[str, Any], prediction: str) -> None:
    config, _, _ = case(class_name, 0, prediction_type=prediction, steps_offset=1)
    scheduler = diffusers_scheduler(config)
    scheduler.set_timesteps(**custom)
    plan = Plan.from_config(config, **custom)
    assert not difference(run_plan(plan, wide=False), run_diffusers(scheduler, 0.0, wide=False))


@pytest.mark.parametrize("class_name", [DDIM, EULER, EULER_A, DPM])
@pytest.mark.parametrize("steps", [5, 20, 31])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_parts_of_a_schedule(class_name: str, steps: int, spacing: str) -> None:
    """Image-to-image and the two halves of a base and refiner run, cut by diffusers' own pipeline code."""
    from diffusers import StableDiffusionXLImg2ImgPipeline

    clean = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    config, _, _ = case(class_name, steps, timestep_spacing=spacing, steps_offset=1)
    for strength, start in [(0.3, None), (0.75, None), (1.0, None), (None, 0.0), (None, 0.5), (None, 0.7)]:
        scheduler = diffusers_scheduler(config)
        scheduler.set_timesteps(steps)
        pipeline = SimpleNamespace(scheduler=scheduler)
        times, _ = StableDiffusionXLImg2ImgPipeline.get_timesteps(pipeline, steps, strength, "cpu", start)
        begin = len(scheduler.timesteps) - len(times)
        plan = Plan.from_config(config, steps, strength=strength, denoising_start=start)
        if start is not None:
            # The second half goes on from the latents of the first one as they are, without noise.
            scheduler.add_noise = lambda latents, *_: latents
        ours = run_plan(plan, wide=False, clean=clean)
        assert not difference(ours, run_diffusers(scheduler, 0.0, wide=False, begin=begin, clean=clean))


@pytest.mark.parametrize("class_name", [DDIM, EULER, DPM])
def test_denoising_end_and_start_hand_over(class_name: str) -> None:
    config, _, _ = case(class_name, 20, timestep_spacing="leading", steps_offset=1)
    scheduler = diffusers_scheduler(config)
    scheduler.set_timesteps(20)
    cutoff = round(1000 - 0.8 * 1000)
    end = int((scheduler.timesteps >= cutoff).sum())
    first = Plan.from_config(config, 20, denoising_end=0.8)
    ours = run_plan(first, wide=False)
    assert not difference(ours, run_diffusers(scheduler, 0.0, wide=False, end=end))
    second = Plan.from_config(config, 20, denoising_start=0.8)
    assert len(first) + len(second) == 20
    whole = Plan.from_config(config, 20)
    handed = ours["inputs"][-1] * second.initial[0, 1]
    expected = run_plan(whole, wide=False)["inputs"][len(first)]
    np.testing.assert_allclose(handed, expected, atol=1e-5)


@pytest.mark.parametrize("class_name", [DDIM, EULER, EULER_A, DPM])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_noise_levels_and_blend_are_what_add_noise_gives(class_name: str, spacing: str) -> None:
    import torch

    config, _, _ = case(class_name, 7, timestep_spacing=spacing)
    scheduler = diffusers_scheduler(config)
    scheduler.set_timesteps(7)
    plan = Plan.from_config(config, 7)
    clean, noise = torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0], [1.0]])
    for i in range(7):
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(i)
        scheduler._step_index = None
        noised = scheduler.add_noise(clean, noise, scheduler.timesteps[[i, i]])
        row = scheduler.scale_model_input(noised, scheduler.timesteps[i]).numpy().ravel()
        np.testing.assert_allclose(plan.noise_levels[i], row, rtol=1e-5)
        if i:
            np.testing.assert_array_equal(plan.blend[i - 1], plan.noise_levels[i])
    np.testing.assert_array_equal(plan.blend[-1], [1, 0])


CHECKPOINTS: dict[str, dict[str, Any]] = {
    "sd15": {
        "_class_name": "PNDMScheduler",
        "_diffusers_version": "0.6.0",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "num_train_timesteps": 1000,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
    },
    "sd21": {
        "_class_name": "DDIMScheduler",
        **LATENT_BETAS,
        "clip_sample": False,
        "prediction_type": "v_prediction",
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
    },
    "sdxl": {
        "_class_name": "EulerDiscreteScheduler",
        **LATENT_BETAS,
        "clip_sample": False,
        "interpolation_type": "linear",
        "sample_max_value": 1.0,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "timestep_spacing": "leading",
        "use_karras_sigmas": False,
    },
    "euler_with_ends": {"_class_name": "EulerDiscreteScheduler", **LATENT_BETAS, "sigma_min": 0.1, "sigma_max": 9.0},
    "lcm": {
        "_class_name": "LCMScheduler",
        **LATENT_BETAS,
        "clip_sample": False,
        "original_inference_steps": 50,
        "timestep_scaling": 10.0,
        "rescale_betas_zero_snr": False,
        "timestep_spacing": "leading",
    },
}


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
@pytest.mark.parametrize(
    ("name", "class_name", "changes"),
    [
        ("ddim", DDIM, {}),
        ("euler", EULER, {}),
        ("EulerDiscreteScheduler", EULER, {}),
        ("euler_a", EULER_A, {}),
        ("euler_karras", EULER, {"use_karras_sigmas": True}),
        ("euler_exponential", EULER, {"use_exponential_sigmas": True}),
        ("dpm++_2m", DPM, {}),
        ("DPMSolverMultistepScheduler", DPM, {}),
        ("dpm++_2m_karras", DPM, {"use_karras_sigmas": True}),
        ("dpm++_2m_sde_karras", DPM, {"use_karras_sigmas": True, "algorithm_type": "sde-dpmsolver++"}),
        ("dpm++_3m", DPM, {"solver_order": 3}),
    ],
)
def test_switching_follows_from_config(checkpoint: str, name: str, class_name: str, changes: dict[str, Any]) -> None:
    import diffusers

    config = CHECKPOINTS[checkpoint]
    if name == "ddim":
        changes = {"clip_sample": config.get("clip_sample", False)}
    scheduler = getattr(diffusers, class_name).from_config(config, **changes)
    scheduler.set_timesteps(9)
    plan = Plan.from_config(resolve(name, config), 9)
    assert not difference(run_plan(plan, wide=False), run_diffusers(scheduler, 0.0, wide=False))


def test_defaults_that_diffusers_filled_in_do_not_survive_a_switch() -> None:
    """PNDM's own default spacing is `leading`; Euler from the same file uses its own, `linspace`."""
    import diffusers

    filled = dict(diffusers.PNDMScheduler.from_config(CHECKPOINTS["sd15"]).config)
    assert filled["timestep_spacing"] == "leading"
    assert Plan.from_config(resolve("euler", filled), 10).timesteps[0] == 999
    saved = {key: value for key, value in filled.items() if key != "_use_default_values"}
    assert Plan.from_config(resolve("euler", saved), 10).timesteps[0] == 901


def test_option_table_holds_the_constructors_defaults() -> None:
    import inspect

    import diffusers

    handed_on = {"sigma_min": None, "sigma_max": None}
    for class_name, options in OPTIONS.items():
        signature = inspect.signature(getattr(diffusers, class_name).__init__)
        theirs = {name: parameter.default for name, parameter in signature.parameters.items() if name != "self"}
        if "kwargs" in theirs:  # a placeholder: the class needs scipy or torchsde, which are not installed
            continue
        assert {**(handed_on if "use_karras_sigmas" in theirs else {}), **theirs} == options, class_name


def test_where_diffusers_is_not_followed() -> None:
    """Each of these is an error in diffusers; a plan refuses, or does what was meant."""
    trailing, _, _ = case(EULER, 61, timestep_spacing="trailing")
    scheduler = diffusers_scheduler(trailing)
    scheduler.set_timesteps(61)
    assert (len(scheduler.timesteps), float(scheduler.timesteps[-1])) == (62, -1.0)
    np.testing.assert_allclose(Plan.from_config(trailing, 61).timesteps, scheduler.timesteps[:61])

    repeated, _, _ = case(DDIM, 1000, steps_offset=1)
    scheduler = diffusers_scheduler(repeated)
    scheduler.set_timesteps(1000)
    with pytest.raises(IndexError):
        run_diffusers(scheduler, 0.0, wide=False, end=1)
    with pytest.raises(SchedulerError, match="steps_offset=1 with 1000 steps asks for timestep 1000"):
        Plan.from_config(repeated, 1000)

    ending, _, _ = case(DPM, 20, algorithm_type="dpmsolver")
    with pytest.raises(ValueError, match="sigma_min"):
        diffusers_scheduler(ending)
    with pytest.raises(SchedulerError, match='"final_sigmas_type": "sigma_min"'):
        Plan.from_config(ending, 20)

    sde, _, _ = case(DPM, 20, algorithm_type="sde-dpmsolver", solver_order=3, final_sigmas_type="sigma_min")
    scheduler = diffusers_scheduler(sde)
    scheduler.set_timesteps(20)
    with pytest.raises(UnboundLocalError):
        run_diffusers(scheduler, 0.0, wide=False)
    with pytest.raises(SchedulerError, match='"solver_order": 2'):
        Plan.from_config(sde, 20)

    zero_snr, _, _ = case(DDIM, 4, timestep_spacing="trailing", rescale_betas_zero_snr=True)
    with pytest.raises(SchedulerError, match="v_prediction"):
        Plan.from_config(zero_snr, 4)
