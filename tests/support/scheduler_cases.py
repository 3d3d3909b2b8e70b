"""The scheduler configs that plans are compared with diffusers in, and the list of those that diffusers rejects."""

import itertools
from collections.abc import Iterator
from typing import Any

from support.scheduler_reference import TOLERANCE, product

from latentrt.runtime.scheduler.diffusers_options import OPTIONS
from latentrt.runtime.scheduler.samplers import SAMPLERS

STEPS = (1, 2, 4, 10, 20, 50)
SPACINGS = ("leading", "linspace", "trailing")
PREDICTIONS = ("epsilon", "v_prediction", "sample")
PRECONDITIONED = ("epsilon", "v_prediction")
LATENT_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
DDIM, DDPM, PNDM, LMS = "DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "LMSDiscreteScheduler"
EULER, EULER_A, HEUN = "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler"
DPM2, DPM2_A = "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"
DPM, DPM_S = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"
DEIS, UNIPC, LCM, TCD = "DEISMultistepScheduler", "UniPCMultistepScheduler", "LCMScheduler", "TCDScheduler"
FLOW, SA = "FlowMatchEulerDiscreteScheduler", "SASolverScheduler"
EDM, EDM_DPM = "EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"
# DPMSolverSDEScheduler draws from a Brownian motion; it is compared in test_web_ui_samplers.py.
CLASSES = tuple(name for name, sampler in SAMPLERS.items() if name in OPTIONS and not sampler.walks)
RESPACINGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")

Case = tuple[dict[str, Any], int, float]


def case(class_name: str, steps: int, *, respacing: str | None = None, eta: float = 0.0, **options: Any) -> Case:
    """A config with the betas of latent diffusion, a number of steps, and eta; what the class lacks is left out."""
    known = OPTIONS[class_name]
    config = {k: v for k, v in {**LATENT_BETAS, "clip_sample": False, **options}.items() if k in known}
    if respacing:
        config[respacing] = True
    return {"_class_name": class_name, **config}, steps, eta


def respacings(class_name: str) -> tuple[str | None, ...]:
    return (None, *(key for key in RESPACINGS if key in OPTIONS[class_name]))


def variants(class_name: str, **choices: tuple[Any, ...]) -> Iterator[dict[str, Any]]:
    """The product of the choices that the class has; the others are left at one value."""
    known = {*OPTIONS[class_name], "respacing", "eta", "steps"}
    yield from product(**{key: values for key, values in choices.items() if key in known})


def basic_cases(class_name: str) -> Iterator[Case]:
    """Class x spacing x prediction type x respacing x number of steps; both ways of PNDM, two values of eta."""
    for choice in variants(
        class_name,
        timestep_spacing=SPACINGS if class_name not in (LCM, TCD) else ("leading",),
        prediction_type=PREDICTIONS if class_name not in (EDM, EDM_DPM) else PRECONDITIONED,
        respacing=respacings(class_name),
        sigma_schedule=("karras", "exponential"),
        steps=STEPS,
        skip_prk_steps=(True, False),
        eta=(0.0, 0.7) if class_name in (DDIM, TCD) else (0.0,),
    ):
        yield case(class_name, **choice)


def option_cases(class_name: str) -> Iterator[Case]:
    """The options on how a schedule begins and ends, with a short and a long run."""
    for choice in variants(
        class_name,
        timestep_spacing=SPACINGS if class_name not in (LCM, TCD) else ("leading",),
        prediction_type=PREDICTIONS if class_name not in (EDM, EDM_DPM) else PRECONDITIONED,
        rescale_betas_zero_snr=(False, True),
        steps_offset=(0, 1) if class_name not in (LCM, TCD) else (0,),
        set_alpha_to_one=(True, False),
        skip_prk_steps=(True,),
        final_sigmas_type=("zero", "sigma_min"),
        respacing=tuple(r for r in respacings(class_name) if r in (None, "use_karras_sigmas")),
        variance_type=("fixed_small", "fixed_small_log", "fixed_large") if class_name == DDPM else (None,),
        steps=(4, 20),
        eta=(0.0, 1.0) if class_name in (DDIM, TCD) else (0.0,),
    ):
        yield case(class_name, **choice)


def beta_cases(class_name: str) -> Iterator[Case]:
    """Beta schedules, other numbers of training timesteps."""
    schedules: list[dict[str, Any]] = [
        {"beta_schedule": "linear"},
        {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02, "num_train_timesteps": 500},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"trained_betas": [0.0002 + 0.00002 * i for i in range(300)], "num_train_timesteps": 300},
    ]
    schedules += [{"beta_schedule": name} for name in {DDPM: ("sigmoid",), HEUN: ("exp",)}.get(class_name, ())]
    for options, spacing, respacing in itertools.product(schedules, SPACINGS, respacings(class_name)):
        yield case(class_name, 10, respacing=respacing, timestep_spacing=spacing, skip_prk_steps=True, **options)


def solver_cases(class_name: str) -> Iterator[Case]:
    """Every kind, order and end of the solvers that have several."""
    sde_third = ("sde-dpmsolver++", "sde-dpmsolver") if class_name == DPM else ()
    kinds = {DPM: ("dpmsolver++", "sde-dpmsolver++", "dpmsolver", "sde-dpmsolver")}.get(
        class_name, ("dpmsolver++", "sde-dpmsolver++", "dpmsolver")
    )
    for choice in variants(
        class_name,
        algorithm_type=("deis",) if class_name == DEIS else kinds,
        solver_order=(1, 2, 3),
        solver_type={UNIPC: ("bh1", "bh2"), DEIS: ("logrho",)}.get(class_name, ("midpoint", "heun")),
        final_sigmas_type=("zero", "sigma_min"),
        lower_order_final=(True, False),
        euler_at_final=(True, False),
        predict_x0=(True, False),
        disable_corrector=([], [0, 2]),
        prediction_type=("v_prediction",),
        respacing=(None, "use_karras_sigmas"),
        steps=(3, 14, 15) if class_name != DPM else (14, 15),
    ):
        kind, order = choice.get("algorithm_type", ""), choice["solver_order"]
        impossible = kind in sde_third and order == 3
        impossible |= kind == "sde-dpmsolver++" and order == 3 and choice["solver_type"] == "heun"
        impossible |= class_name in (DPM, DPM_S) and not kind.endswith("++") and choice["final_sigmas_type"] == "zero"
        impossible |= not choice.get("predict_x0", True) and choice["final_sigmas_type"] == "zero"
        needless = choice["lower_order_final"] and choice.get("euler_at_final", False)
        if not impossible and not needless:
            yield case(class_name, **choice)


def other_cases(class_name: str) -> Iterator[Case]:
    """Options that few classes have for themselves."""
    ends = {"sigma_min": 0.1, "sigma_max": 20.0}
    if class_name == EULER:
        for kind, spacing, given in itertools.product(
            ("linear", "log_linear"), SPACINGS, ({}, {"use_karras_sigmas": True, **ends})
        ):
            yield case(EULER, 10, interpolation_type=kind, timestep_spacing=spacing, **given)
        for respacing in respacings(EULER):
            yield case(EULER, 8, respacing=respacing, timestep_type="continuous", prediction_type="v_prediction")
    if class_name == UNIPC:
        for respacing, final in itertools.product(respacings(UNIPC)[1:], ("zero", "sigma_min")):
            yield case(UNIPC, 9, respacing=respacing, final_sigmas_type=final, lower_order_final=True, **ends)
    if class_name in (DPM, DPM_S):
        for clip, spacing in itertools.product((-5.1, -1.0), SPACINGS):
            options = {"lambda_min_clipped": clip, "timestep_spacing": spacing, "beta_schedule": "squaredcos_cap_v2"}
            yield case(class_name, 10, **options)
    if class_name in (DPM, DPM_S, DEIS, UNIPC):
        for solver_type, kind in itertools.product(
            ("bh2", "logrho", "midpoint", "heun"), ("deis", "dpmsolver", "dpmsolver++")
        ):
            own = kind == "dpmsolver++" and class_name in (DPM, DPM_S)
            if own or kind == "deis" or class_name in (DEIS, UNIPC):
                options = {"solver_type": solver_type, "algorithm_type": kind, "final_sigmas_type": "sigma_min"}
                yield case(class_name, 10, **options)
    if class_name in (LCM, TCD):
        etas = (0.0, 0.3) if class_name == TCD else (0.0,)
        for original, scaling, eta in itertools.product((20, 33, 100), (1.0, 10.0), etas):
            yield case(class_name, 7, original_inference_steps=original, timestep_scaling=scaling, eta=eta)
    if class_name == SA:
        for choice in product(
            predictor_order=(1, 2, 3, 4),
            corrector_order=(1, 2, 3, 4),
            algorithm_type=("data_prediction", "noise_prediction"),
            lower_order_final=(True, False),
            respacing=(None, "use_karras_sigmas"),
            steps=(3, 12),
        ):
            yield case(SA, prediction_type="v_prediction", **choice)
    if class_name in (EDM, EDM_DPM):
        for choice in product(sigma_min=(0.002, 0.01), sigma_data=(0.5, 1.3), rho=(5.0, 7.0), steps=(3, 9)):
            yield case(class_name, sigma_max=30.0, **choice)
    if class_name == EDM_DPM:
        for choice in product(
            solver_order=(1, 2, 3),
            algorithm_type=("dpmsolver++", "sde-dpmsolver++"),
            solver_type=("midpoint", "heun"),
            final_sigmas_type=("zero", "sigma_min"),
            lower_order_final=(True, False),
            euler_at_final=(True, False),
            steps=(4, 15),
        ):
            if not (choice["algorithm_type"].startswith("sde") and choice["solver_order"] == 3):
                yield case(EDM_DPM, **choice)
    if class_name == FLOW:
        for choice in product(
            shift=(1.0, 3.0),
            shift_terminal=(None, 0.1),
            stochastic_sampling=(False, True),
            steps=(1, 4, 28),
            num_train_timesteps=(1000, 500),
            respacing=respacings(FLOW),
        ):
            yield case(FLOW, **choice)


FAMILIES = (basic_cases, option_cases, beta_cases, solver_cases, other_cases)
MULTISTEP = (DPM, DPM_S, DEIS, UNIPC)


def all_cases(class_name: str) -> Iterator[Case]:
    for family in FAMILIES:
        if family is not solver_cases or class_name in MULTISTEP:
            yield from family(class_name)


def computed_wide(config: dict[str, Any]) -> bool:
    """Whether diffusers' class must be run in float64 to be a reference.

    With zero terminal SNR and with the cosine schedule the classes lose what is compared: Euler's samples are up to
    4096 times as large as its results, and DDIM's `1 - abar - std**2` is a difference of nearly equal numbers (eta 1:
    NaN in float32). Where the model predicts the sample, LMS and Heun divide a difference of samples by small sigmas.
    """
    by_slope = config["_class_name"] in (LMS, HEUN) and config.get("prediction_type") == "sample"
    cosine = config.get("beta_schedule") == "squaredcos_cap_v2"
    # Beta sigmas lie so close to each other at both ends that logarithms of their quotients lose digits.
    close = config["_class_name"] in (DEIS, UNIPC) and config.get("use_beta_sigmas")
    by_slope |= config["_class_name"] == SA and config.get("algorithm_type") == "noise_prediction"
    preconditioned = config["_class_name"] in (EDM, EDM_DPM)  # sigma 80 in few steps
    return bool(config.get("rescale_betas_zero_snr") or cosine or by_slope or close or preconditioned)


def tolerance(config: dict[str, Any]) -> float:
    """Relative. Slopes of LMS are differences of samples divided by sigmas down to 0.03, of which four are summed."""
    return 5e-5 if config["_class_name"] == LMS and config.get("prediction_type") == "sample" else TOLERANCE


def lost_by_diffusers(config: dict[str, Any], steps: int) -> bool:
    """Where float32 leaves diffusers no digits, or it begins elsewhere than it says.

    `sigma_down` of DPM2 ancestral is the root of a difference of squares: wrong by more than 1 %, or NaN, where sigma
    falls by a factor of hundreds in one step. The cosine schedule begins with `1 - abar = 4e-5`, to which PyTorch's
    square root, not rounded correctly, adds errors of 1e-7 when betas are rescaled to zero terminal SNR.
    """
    if config.get("sigma_schedule") == "exponential" and steps == 1:  # the lowest sigma, with noise for the highest
        return True
    spacing, cosine = config.get("timestep_spacing"), config.get("beta_schedule") == "squaredcos_cap_v2"
    falls = (cosine and spacing != "leading") or (steps == 2 and spacing == "linspace")
    return (config["_class_name"] == DPM2_A and falls) or bool(cosine and config.get("rescale_betas_zero_snr"))


def rejected_by_diffusers(config: dict[str, Any], steps: int) -> str:
    """Why diffusers has no result: it raises, or gives NaN. Empty where it has one."""
    name, spacing = config["_class_name"], config.get("timestep_spacing")
    zero_snr, prediction = config.get("rescale_betas_zero_snr"), config.get("prediction_type", "epsilon")
    if prediction == "sample" and name in (EULER_A, PNDM, DPM2, DPM2_A, EDM, EDM_DPM):
        return "not implemented"
    respaced = any(config.get(key) for key in RESPACINGS)
    order = config.get("solver_order", 2)
    one_step = (spacing, steps) == ("linspace", 1)  # timestep 0
    at_the_top = (spacing != "leading" and not one_step) or name in (LCM, TCD)  # begins at the last training timestep
    if name in (DDIM, DDPM, LCM, TCD) and zero_snr and prediction == "epsilon" and at_the_top:
        return "divides by alpha 0"
    to_zero = config.get("final_sigmas_type", "zero") == "zero"
    if name == UNIPC and respaced and not to_zero and order == 3 and not config.get("lower_order_final", True):
        return "last step has length 0, which the weights of order 3 divide by"
    if name == UNIPC and to_zero and config.get("solver_type") == "bh1":
        return "multiplies the last step's length, which is infinite, by 0"
    if name == UNIPC and to_zero and not config.get("lower_order_final", True) and order > 1:
        return "divides by the infinite length of the last step"
    sde = config.get("algorithm_type", "").startswith("sde")
    if name == EDM_DPM and sde and config.get("final_sigmas_type") == "sigma_min":
        return "last step has length 0, and its rounding a root"
    if name == FLOW and config.get("shift_terminal") and steps == 1:
        return "stretches a single sigma"
    if name == PNDM and not config.get("skip_prk_steps") and steps < 4:
        return "Runge-Kutta steps need 4 steps"
    higher = order == 3 or (order == 2 and config.get("solver_type") == "heun")
    at_order = not config.get("euler_at_final") and not (config.get("lower_order_final", True) and steps < 15)
    if name == DPM and respaced and config.get("final_sigmas_type") == "sigma_min" and higher and at_order:
        return "last step has length 0, which the formulas of heun and of order 3 divide by"
    return ""
